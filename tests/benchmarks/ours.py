"""Ratchet's trainer as a contestant: the one file of the benchmark that knows its interface."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from models import Settings
from pipeline.config.losses import SigmoidLoss
from regimes import Preference
from trainers.examples import Pair, Row
from trainers.objective import Objective
from trainers.packed import PackedPolicy
from trainers.packing import group_rows, pack, split_by_budget
from trainers.step import KnownReference, Step
from trainers.weights import Weights

TOKEN_BUDGET = 4096


class Ratchet:
    """Packed prompt groups with a shared prefix, the chunked head, and the gradient found chunk by chunk."""

    def __init__(self, model: PreTrainedModel, settings: Settings, token_budget: int = TOKEN_BUDGET) -> None:
        self._settings, self._budget = settings, token_budget
        self._weights = Weights(model, settings.precision)
        self._policy = PackedPolicy(model, self._weights)
        self._optimiser = settings.optimiser(self._weights)
        self._objective = Objective([SigmoidLoss(type="sigmoid")], settings.beta)

    def step(self, pairs: Sequence[Preference]) -> float:
        """One optimiser step; the mean loss over the pairs before it."""
        known: dict[Row, float] = {}
        examples = []
        for preference in pairs:
            pair = compared(preference)
            known |= zip(pair.rows, preference.reference, strict=True)
            examples.append(pair)
        step = Step(self._policy, self._objective, KnownReference(known), self._budget)
        loss = step.backward(examples)["loss"]
        torch.nn.utils.clip_grad_norm_(self._weights, self._settings.max_grad_norm)
        self._optimiser.step()
        self._weights.publish()
        self._weights.clear()
        return loss

    def reference(self, pairs: Sequence[Preference]) -> list[tuple[float, float]]:
        """Summed log-probabilities (nats) of chosen and rejected."""
        examples = list(map(compared, pairs))
        sums: dict[Row, float] = {}
        for groups in split_by_budget(group_rows(row for pair in examples for row in pair.rows), self._budget):
            part = pack(groups, self._settings.device)
            tokens = self._policy.statistics(part).logps.double().split(part.lengths)
            sums |= {row: logps.sum().item() for row, logps in zip(part.rows, tokens, strict=True)}
        return [(sums[pair.chosen], sums[pair.rejected]) for pair in examples]


def compared(pair: Preference) -> Pair:
    return Pair(Row(pair.prompt, pair.chosen), Row(pair.prompt, pair.rejected))
