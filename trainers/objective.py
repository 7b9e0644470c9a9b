"""The objective: a weighted sum of losses over a batch of examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config import LossConfig
from pipeline.errors import DataError
from trainers.comparisons import Batch, Comparisons, Completions
from trainers.examples import Pair
from trainers.losses.nll import nll
from trainers.losses.rewards import rewards
from trainers.terms import SINGLES, Label, Need, initial_state, is_coupled, label_of, needs, next_state, term_losses

COLUMNS: Mapping[Label, str] = {"margin": "margin, or score_chosen and score_rejected", "soft label": "preference"}
"""Where data sets have them: see ``trainers.records``."""


class Objective:
    """Weighted terms; each example's loss is the sum of theirs.

    Attributes:
        needs: what :class:`Completions` and :class:`Comparisons` must hold beyond the policy's log-probabilities.
        coupled: an example's loss depends on the rest of the batch, so one call must see the whole optimiser batch.
            Where False, the losses of a batch are those of its parts, whatever the parts.
        state: running figures, plain floats, to be saved with a checkpoint and set after one. Moved by
            :meth:`observe` alone, so that evaluation never does.
    """

    def __init__(self, terms: Sequence[LossConfig], beta: float, betas: Mapping[str, float] | None = None) -> None:
        """``beta`` is every source's but those in ``betas``; a term's own overrides both."""
        self.terms = {self._name(terms, index): term for index, term in enumerate(terms)}
        self.beta, self.betas = beta, dict(betas or {})
        self.needs: frozenset[Need] = frozenset[Need]().union(*map(needs, terms))
        self.coupled = any(map(is_coupled, terms))
        self.state: dict[str, float] = {}
        for name, term in self.terms.items():
            self._set_state(name, initial_state(term))

    @staticmethod
    def _name(terms: Sequence[LossConfig], index: int) -> str:
        """The term's type, numbered from its second use on."""
        before = sum(term.type == terms[index].type for term in terms[:index])
        return terms[index].type + (f".{before + 1}" if before else "")

    def beta_of(self, source: str) -> float:
        """What an example of ``source`` gets as its β in :class:`Comparisons`."""
        return self.betas.get(source, self.beta)

    def check(self, has_pairs: bool, has_singles: bool) -> None:
        """Raises DataError where a term cannot take the examples there are."""
        pairwise = [term.type for term in self.terms.values() if term.type not in SINGLES]
        if has_singles and pairwise:
            raise DataError(
                f"loss {pairwise[0]!r} compares pairs, and the data has completions labelled one by one;"
                f" losses for those: {', '.join(map(repr, SINGLES))}"
            )
        if not has_pairs and not has_singles:
            raise DataError("the data has neither pairs nor completions labelled one by one")

    def check_labels(self, pairs: Sequence[Pair]) -> list[str]:
        """A line for people for each term that reads of a pair what only some have: the others count as 0, or as sure.

        Raises:
            DataError: none has it, and the term would learn nothing, or what another one learns without.
        """
        lines = []
        for term in self.terms.values():
            if not pairs or (label := label_of(term)) is None:
                continue
            without = sum((pair.margin == 0 if label == "margin" else pair.preference == 1) for pair in pairs)
            if without == len(pairs):
                raise DataError(
                    f"loss {term.type!r} reads each pair's {label}, and no pair has one; columns: {COLUMNS[label]}"
                )
            if without:
                taken = "0" if label == "margin" else "1"
                lines.append(
                    f"{without:,} of {len(pairs):,} pairs have no {label} for loss {term.type!r}: as if {taken}"
                )
        return lines

    def observe(self, completions: Completions, comparisons: Comparisons) -> None:
        """Move the running figures by one whole optimiser batch. Call it once a step, before the step's loss.

        BCO's δ and β-DPO's M₀ have the batch's own rewards in them, as in the papers.
        """
        with torch.no_grad():
            batch = Batch(completions, comparisons)
            for name, term in self.terms.items():
                self._set_state(name, next_state(term, batch, self._state_of(name)))

    def __call__(self, completions: Completions, comparisons: Comparisons) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses, [p + s] float64, one an example, pairs first; and figures, without gradient.

        A figure's mean is over its own entries: figures of pairs are [p], those of single completions as many as there
        are. Where AOT is a term, a loss is not its example's own: only the sum over the batch means anything.
        """
        batch = Batch(completions, comparisons)
        losses = {name: term_losses(term, batch, self._state_of(name)) for name, term in self.terms.items()}
        total = torch.stack([term.weight * losses[name] for name, term in self.terms.items()]).sum(0)
        figures = _figures(batch)
        if len(losses) > 1:
            figures |= {f"loss/{name}": each for name, each in losses.items()}
        return total, {name: figure.detach() for name, figure in figures.items()}

    def _state_of(self, name: str) -> dict[str, float]:
        start = f"{name}/"
        return {key.removeprefix(start): value for key, value in self.state.items() if key.startswith(start)}

    def _set_state(self, name: str, state: Mapping[str, float]) -> None:
        self.state |= {f"{name}/{key}": value for key, value in state.items()}


def _figures(batch: Batch) -> dict[str, Tensor]:
    """Implicit rewards with each source's β, log-probabilities in nats a completion, lengths in tokens."""
    comparisons = batch.comparisons
    figures: dict[str, Any] = {}
    if len(comparisons.chosen):
        chosen, rejected = rewards(*batch.pairs, comparisons.betas)
        figures |= {
            "rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).double(),
            "logps/chosen": batch.pairs[0], "logps/rejected": batch.pairs[1],
            "reference_logps/chosen": batch.pairs[2], "reference_logps/rejected": batch.pairs[3],
            "lengths/chosen": batch.lengths[0].double(), "lengths/rejected": batch.lengths[1].double(),
            "nll": nll(batch.pairs[0], batch.lengths[0]),
        }  # fmt: skip
    for name, which in (("desirable", comparisons.desirable), ("undesirable", ~comparisons.desirable)):
        logps, reference, lengths = (each[which] for each in (*batch.singles, batch.single_lengths))
        if len(logps):
            figures |= {
                f"rewards/{name}": comparisons.single_betas[which] * (logps - reference),
                f"logps/{name}": logps, f"reference_logps/{name}": reference, f"lengths/{name}": lengths.double(),
            }  # fmt: skip
    return figures
