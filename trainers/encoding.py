"""Preference pairs to token rows: the sampler's own ids, checked, padded and cut into batches by a token budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import DataError
from pipeline.types import PreferencePair

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and one completion of it."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right; all tensors are [rows, longest]."""

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    """True at the completion's tokens: the positions whose log-probability counts."""


def special_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[int | None, frozenset[int]]:
    """The BOS id, if there is one, and every id that ends a completion."""
    generation = getattr(model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    bos = tokenizer.bos_token_id
    return bos if isinstance(bos, int) else None, frozenset(token for token in found if isinstance(token, int))


def pair_rows(pair: PreferencePair, bos: int | None, eos: frozenset[int]) -> tuple[Row, Row]:
    """The chosen and the rejected row of a pair, from the very ids that were sampled.

    Raises:
        DataError: an empty prompt or completion, a prompt that begins with two BOS, or an EOS that is not the
            completion's last token: the ids are not what the policy saw. A BOS later in the prompt is none of these:
            some chat templates begin every turn with one.
    """
    prompt = pair.prompt.token_ids
    if not prompt or (bos is not None and prompt[:2] == (bos, bos)):
        raise DataError(
            f"pair {pair.id}: prompt {prompt[:8]}… must be non-empty and begin with one BOS ({bos}) at most"
        )
    for name, candidate in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        ids = candidate.token_ids
        if not ids or any(token in eos for token in ids[:-1]):
            raise DataError(
                f"pair {pair.id}: {name} completion {ids[:8]}… must be non-empty, with an EOS"
                f" ({', '.join(map(str, sorted(eos)))}) nowhere but at its end"
            )
    return Row(prompt, pair.chosen.token_ids), Row(prompt, pair.rejected.token_ids)


def pad(rows: Sequence[Row], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """One batch of ``rows``. Padding is masked out, so ``pad_id`` may be any id."""
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    attention = torch.zeros((len(rows), longest), dtype=torch.long)
    completion = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row.prompt + row.completion)
        attention[index, : len(row)] = 1
        completion[index, len(row.prompt) : len(row)] = True
    return Batch(input_ids.to(device), attention.to(device), completion.to(device))


def split_by_budget(items: Sequence[T], cost: Callable[[T], int], budget: int) -> list[list[int]]:
    """Indices of ``items`` in groups of similar length whose padded size, longest × count, fits ``budget``.

    An item longer than the budget gets a group of its own. Used inside one optimiser batch only: which items are
    summed together changes memory and speed, never the result.
    """
    order = sorted(range(len(items)), key=lambda index: (-cost(items[index]), index))
    groups: list[list[int]] = []
    for index in order:
        if groups and cost(items[groups[-1][0]]) * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
