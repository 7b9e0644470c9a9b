"""Rewards of conversations under a classifier in training, padded together by length."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.errors import TrainingError
from pipeline.padding import by_length, padded, padding_id
from trainers.examples import Pair, Row
from trainers.memory import is_out_of_memory

log = logging.getLogger("ratchet.trainers")


class Rewards:
    """Rewards under ``model`` of rows, in batches of similar length within a budget of tokens, padding included."""

    def __init__(self, model: PreTrainedModel, token_budget: int) -> None:
        self.model, self.token_budget = model, token_budget
        self.measured_at_once = token_budget
        """Tokens that :meth:`measured` takes at once, at most."""
        self._text_config = model.config.get_text_config()
        self._own_pad_id: int | None = self._text_config.pad_token_id

    def of(self, rows: Sequence[Row]) -> Tensor:
        """In one forward pass; float32 [rows]."""
        plain = [ids_of(row) for row in rows]
        token = padding_id(plain, self._own_pad_id)
        ids, mask = (torch.tensor(each, device=self.model.device) for each in padded(plain, token))
        self._text_config.pad_token_id = token
        try:
            rewards: Tensor = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
        finally:
            self._text_config.pad_token_id = self._own_pad_id
        return rewards

    @torch.no_grad()
    def measured(self, rows: Sequence[Row]) -> list[float]:
        """In as many passes as it takes, in the order of ``rows``.

        Where memory runs out, what is missing takes half as many tokens at once. The training's budget stays: it is
        part of its rounding. Raises TrainingError where one row alone was too much.
        """
        found: dict[int, float] = {}
        while missing := [position for position in range(len(rows)) if position not in found]:
            lengths = [len(rows[position]) for position in missing]
            batches = list(by_length(lengths, min(self.token_budget, self.measured_at_once)))
            try:
                for batch in batches:
                    positions = [missing[each] for each in batch]
                    found |= zip(positions, self.of([rows[each] for each in positions]).tolist(), strict=True)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            taken = max(len(batch) * lengths[batch[0]] for batch in batches)
            self.measured_at_once = _halved(taken, max(lengths), "one row")
        return [found[position] for position in range(len(rows))]

    def parts(self, pairs: Sequence[Pair]) -> list[list[Pair]]:
        """``pairs`` in parts that run at once, the two rows of a pair together."""
        return parts(pairs, self.token_budget)

    def halve(self, pairs: Sequence[Pair]) -> None:
        """Take half as many tokens at once. Raises TrainingError where one pair alone was too much."""
        taken = max(map(padded_tokens, self.parts(pairs)))
        self.token_budget = _halved(taken, 2 * max(map(_longest, pairs)), "one pair")


def parts(pairs: Sequence[Pair], token_budget: int) -> list[list[Pair]]:
    """``pairs`` in parts of that many tokens at most, padding included; one that is longer is a part of its own."""
    return [
        [pairs[position] for position in batch] for batch in by_length(list(map(_longest, pairs)), token_budget // 2)
    ]


def padded_tokens(part: Sequence[Pair]) -> int:
    return 2 * len(part) * max(map(_longest, part))


def ids_of(row: Row) -> list[int]:
    return [*row.prompt, *row.completion]


def _longest(pair: Pair) -> int:
    return max(map(len, pair.rows))


def _halved(taken: int, least: int, alone: str) -> int:
    if taken <= least:
        raise TrainingError(f"out of memory on {alone} of {least} tokens; drop long rows with --max-length")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    halved = max(least, taken // 2)
    log.warning("out of memory on %d tokens at once; the token budget is now %d", taken, halved)
    return halved
