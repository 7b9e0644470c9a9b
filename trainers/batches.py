"""Which examples an optimiser step takes: a function of seed and epoch alone, so that a resume needs no state."""

from collections.abc import Sequence

import torch

from trainers.examples import Example


def batches_of_epoch(
    examples: Sequence[Example], epoch: int, seed: int, batch_size: int, batch_tokens: int | None = None
) -> list[list[int]]:
    """Indices of ``examples`` in batches; every example once, those of one prompt together.

    Prompts are shuffled, and a batch ends after ``batch_size`` examples or, if given, as soon as it has
    ``batch_tokens`` completion tokens. One prompt's examples lie together, so that packing can share it; a batch's end
    may part them.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(examples):
        by_prompt.setdefault(example.rows[0].prompt, []).append(index)
    prompts = list(by_prompt.values())
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = [index for place in torch.randperm(len(prompts), generator=generator).tolist() for index in prompts[place]]
    batches: list[list[int]] = [[]]
    tokens = 0
    for index in order:
        if len(batches[-1]) == batch_size or (batch_tokens is not None and tokens >= batch_tokens):
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += sum(len(row.completion) for row in examples[index].rows)
    return batches
