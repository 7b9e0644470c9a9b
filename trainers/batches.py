"""Which examples an optimiser step takes: a function of seed and epoch alone, so that a resume needs no state."""

from collections.abc import Sequence
from itertools import groupby

import torch

from trainers.examples import Example


def batches_of_epoch(
    examples: Sequence[Example], epoch: int, seed: int, batch_size: int, batch_tokens: int | None = None
) -> list[list[int]]:
    """Indices of ``examples`` in batches; every example once.

    Neighbours of one prompt, the pairs of one group, are shuffled as one, so that a pack can share what they have in
    common. A batch ends after ``batch_size`` examples or, if given, once it has ``batch_tokens`` completion tokens.
    """

    def group(index: int) -> tuple[str, tuple[int, ...]]:
        return examples[index].prompt_id, examples[index].rows[0].prompt

    runs = [list(run) for _, run in groupby(range(len(examples)), group)]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = [index for place in torch.randperm(len(runs), generator=generator).tolist() for index in runs[place]]
    batches: list[list[int]] = [[]]
    tokens = 0
    for index in order:
        if len(batches[-1]) == batch_size or (batch_tokens is not None and tokens >= batch_tokens):
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += sum(len(row.completion) for row in examples[index].rows)
    return batches
