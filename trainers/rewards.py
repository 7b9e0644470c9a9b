"""Rewards of conversations under a classifier in training, padded together by length."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.errors import TrainingError
from pipeline.padding import by_length, padded, padding_id
from trainers.examples import Pair, Row


class Rewards:
    """Rewards under ``model`` of rows, in batches of similar length within a budget of tokens, padding included."""

    def __init__(self, model: PreTrainedModel, token_budget: int) -> None:
        self.model, self.token_budget = model, token_budget
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
        """In as many passes as it takes, in the order of ``rows``."""
        found = [0.0] * len(rows)
        for batch in by_length([len(row) for row in rows], self.token_budget):
            for position, reward in zip(batch, self.of([rows[position] for position in batch]).tolist(), strict=True):
                found[position] = reward
        return found

    def parts(self, pairs: Sequence[Pair]) -> list[list[Pair]]:
        """``pairs`` in parts that run at once, the two rows of a pair together."""
        lengths = [_longest(pair) for pair in pairs]
        return [[pairs[position] for position in batch] for batch in by_length(lengths, self.token_budget // 2)]

    def halve(self, pairs: Sequence[Pair]) -> None:
        """Take half as many tokens at once. Raises TrainingError where one pair alone was too much."""
        taken = max(2 * len(part) * max(map(_longest, part)) for part in self.parts(pairs))
        least = 2 * max(map(_longest, pairs))
        if taken <= least:
            raise TrainingError(f"out of memory on one pair of {least} tokens; drop long rows with --max-length")
        self.token_budget = max(least, taken // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def ids_of(row: Row) -> list[int]:
    return [*row.prompt, *row.completion]


def _longest(pair: Pair) -> int:
    return max(map(len, pair.rows))
