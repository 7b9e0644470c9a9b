"""Batches of examples, and objectives of them with nothing saved: padded rows, pure losses, one graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.config import LossConfig
from tests.trainers.comparisons import term
from tests.trainers.naive import draw_rows, naive_logits, naive_logps
from trainers.examples import Example, Pair, Row, Single
from trainers.losses.aot import aot_paired, aot_unpaired
from trainers.losses.bco import bco, bco_pairs, running_mean
from trainers.losses.beta_dpo import batch_scale, beta_dpo, choose, moving_figures
from trainers.losses.kto import kto, kto_pairs, reference_point
from trainers.losses.length import ld_dpo
from trainers.losses.nll import nll
from trainers.losses.rewards import reward_margins, rewards
from trainers.losses.sigmoid import odpo, sigmoid
from trainers.losses.simpo import simpo
from trainers.losses.tdpo import tdpo1, tdpo2
from trainers.losses.wpo import wpo

BETA, BETAS = 0.3, {"other": 0.7}
ROWS = draw_rows([7, 3, 5, 2], [6, 1, 4])
A, B, C, D = (ROWS[start : start + 3] for start in range(0, 12, 3))
PAIRS = [
    Pair(A[0], A[1], margin=1.5, preference=0.9),
    Pair(C[1], C[0], margin=0.5, source="other"),
    Pair(A[0], A[2], margin=0.2, preference=0.6),
    Pair(B[0], B[1], margin=2.0, source="other"),
    Pair(A[2], A[1], margin=1.0, preference=0.7),
    Pair(D[2], D[0], margin=0.1),
    Pair(B[2], B[1], margin=3.0, preference=0.8),
    Pair(D[2], D[0], margin=0.1),  # the same once more
]
SINGLES = [
    Single(A[0], True),
    Single(A[1], False, "other"),
    Single(C[2], False),
    Single(B[0], True, "other"),
    Single(D[1], True),
]
MIXED = [example for both in zip(PAIRS[:5], SINGLES, strict=True) for example in both]
MISMATCHED = {row: Row(row.prompt, ROWS[(number + 3) % 12].completion[1:] or (9, 8)) for number, row in enumerate(ROWS)}


def beta_of(example: Example) -> float:
    return BETAS.get(example.source, BETA)


@dataclass
class Whole:
    """A batch's tensors with the whole graph behind them."""

    examples: Sequence[Example]
    model: PreTrainedModel
    reference: PreTrainedModel

    def tokens(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[Tensor]:
        return list(naive_logps(model, rows).split([len(row.completion) for row in rows]))

    def sums(self, model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
        return torch.stack([each.double().sum() for each in self.tokens(model, rows)])

    @property
    def sides(self) -> tuple[list[Row], list[Row]]:
        pairs = [example for example in self.examples if isinstance(example, Pair)]
        return [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]

    @property
    def pairs(self) -> tuple[Tensor, ...]:
        return tuple(self.sums(model, side) for model in (self.model, self.reference) for side in self.sides)

    @property
    def singles(self) -> tuple[Tensor, Tensor, Tensor]:
        mine = [example for example in self.examples if isinstance(example, Single)]
        rows = [single.row for single in mine]
        desirable = torch.tensor([single.desirable for single in mine])
        return self.sums(self.model, rows), self.sums(self.reference, rows), desirable

    @property
    def betas(self) -> Tensor:
        return torch.tensor([beta_of(each) for each in self.examples], dtype=torch.float64)

    @property
    def lengths(self) -> tuple[Tensor, ...]:
        return tuple(torch.tensor([len(row.completion) for row in side]) for side in self.sides)

    @property
    def margins(self) -> Tensor:
        return torch.tensor([pair.margin for pair in self.examples], dtype=torch.float64)

    @property
    def preferences(self) -> Tensor:
        return torch.tensor([pair.preference for pair in self.examples], dtype=torch.float64)

    @property
    def point(self) -> Tensor:
        """Every row's mismatched one counts, as often as the row is in an example."""
        rows = [MISMATCHED[row] for example in self.examples for row in example.rows]
        return reference_point(self.sums(self.model, rows), self.sums(self.reference, rows))

    @property
    def public(self) -> tuple[Tensor, ...]:
        shorter = torch.minimum(*self.lengths).tolist()
        return tuple(
            torch.stack([
                each[:count].double().sum() for each, count in zip(self.tokens(model, side), shorter, strict=True)
            ])
            for model in (self.model, self.reference)
            for side in self.sides
        )  # fmt: skip

    @property
    def alignments(self) -> tuple[Tensor, ...]:
        def mean(row: Row) -> Tensor:
            logps = naive_logits(self.model, [row])[0].detach().double().log_softmax(-1)
            picked = logps.gather(1, torch.tensor(row.completion)[:, None])[:, 0]
            return (picked - logps.exp().square().sum(-1).log()).mean()

        return tuple(torch.stack([mean(row) for row in side]) for side in self.sides)

    @property
    def kls(self) -> tuple[Tensor, ...]:
        def total(row: Row) -> Tensor:
            theirs, ours = (
                naive_logits(model, [row])[0].double().log_softmax(-1) for model in (self.reference, self.model)
            )
            return (theirs.exp() * (theirs - ours)).sum()

        return tuple(torch.stack([total(row) for row in side]) for side in self.sides)


Losses = Callable[[Whole], Tensor]


@dataclass(frozen=True)
class Case:
    terms: list[LossConfig]
    make: Callable[[], Losses]
    """A fresh function from a batch to its examples' losses; one with running figures remembers earlier batches."""
    coupled: bool = False
    examples: Sequence[Example] = tuple(PAIRS)


def plain(losses: Losses) -> Callable[[], Losses]:
    return lambda: losses


def bco_with_delta() -> Losses:
    state = (0.0, 0.0)

    def losses(batch: Whole) -> Tensor:
        nonlocal state
        state = running_mean(*state, torch.cat(rewards(*batch.pairs, batch.betas)).detach())
        return bco_pairs(*batch.pairs, batch.betas, state[0])

    return losses


def bco_of_singles() -> Losses:
    state = (0.0, 0.0)

    def losses(batch: Whole) -> Tensor:
        nonlocal state
        logps, reference, desirable = batch.singles
        state = running_mean(*state, (batch.betas * (logps - reference)).detach())
        return bco(logps, reference, desirable, batch.betas, state[0])

    return losses


def dynamic_beta() -> Losses:
    state, batches = (0.0, 0.0), 0

    def losses(batch: Whole) -> Tensor:
        nonlocal state, batches
        margins = reward_margins(*batch.pairs, batch.betas).detach()
        state, batches = moving_figures(*state, margins, 0.9), batches + 1
        kept = choose(margins, *state, 0.6, batches)
        return beta_dpo(*batch.pairs, batch.betas, kept, batch_scale(margins[kept], state[0], 0.6))

    return losses


def kto_of_both(batch: Whole) -> Tensor:
    pairs = [isinstance(example, Pair) for example in batch.examples]
    point, betas = batch.point, batch.betas[torch.tensor(pairs)]
    logps, reference, desirable = batch.singles
    return torch.cat([
        kto_pairs(*batch.pairs, point, betas, 1.3, 0.8),
        kto(logps, reference, desirable, point, batch.betas[~torch.tensor(pairs)], 1.3, 0.8),
    ])  # fmt: skip


KTO = term("kto", desirable_weight=1.3, undesirable_weight=0.8)
CASES = {
    "sigmoid": Case([term("sigmoid")], plain(lambda b: sigmoid(*b.pairs, b.betas))),
    "soft sigmoid and nll": Case(
        [term("sigmoid", soft_labels=True, weight=0.8), term("nll", weight=0.2)],
        plain(lambda b: 0.8 * sigmoid(*b.pairs, b.betas, 0.0, b.preferences) + 0.2 * nll(b.pairs[0], b.lengths[0])),
    ),
    "odpo": Case([term("odpo", alpha=0.5)], plain(lambda b: odpo(*b.pairs, b.margins, b.betas, 0.5, "log"))),
    "simpo": Case([term("simpo")], plain(lambda b: simpo(*b.pairs[:2], *b.lengths, 2.0, 1.0))),
    "wpo": Case([term("wpo")], plain(lambda b: wpo(*b.pairs, *b.alignments, b.betas))),
    "ld_dpo": Case([term("ld_dpo", alpha=0.25)], plain(lambda b: ld_dpo(*b.pairs, *b.public, b.betas, 0.25))),
    "tdpo1": Case([term("tdpo1")], plain(lambda b: tdpo1(*b.pairs, *b.kls, b.betas))),
    "tdpo2": Case([term("tdpo2")], plain(lambda b: tdpo2(*b.pairs, *b.kls, b.betas, 0.5))),
    "kto": Case([KTO], plain(lambda b: kto_pairs(*b.pairs, b.point, b.betas, 1.3, 0.8)), coupled=True),
    "kto of singles": Case([KTO], plain(lambda b: kto(*b.singles, b.point, b.betas, 1.3, 0.8)), True, SINGLES),
    "kto of both": Case([KTO], plain(kto_of_both), True, MIXED),
    "bco": Case([term("bco")], bco_with_delta, coupled=True),
    "bco of singles": Case([term("bco")], bco_of_singles, True, SINGLES),
    "bco of singles without delta": Case(
        [term("bco", delta=False)], plain(lambda b: bco(*b.singles, b.betas)), False, SINGLES
    ),
    "aot_paired": Case([term("aot_paired")], plain(lambda b: aot_paired(*b.pairs, b.betas)), coupled=True),
    "aot_unpaired": Case([term("aot_unpaired")], plain(lambda b: aot_unpaired(*b.pairs, b.betas)), coupled=True),
    "beta_dpo": Case([term("beta_dpo", keep=0.6)], dynamic_beta, coupled=True),
    "tdpo1 and aot": Case(
        [term("tdpo1"), term("aot_paired")],
        plain(lambda b: tdpo1(*b.pairs, *b.kls, b.betas) + aot_paired(*b.pairs, b.betas)),
        coupled=True,
    ),
    "everything a token has": Case(
        [term("tdpo2"), term("wpo"), term("ld_dpo", alpha=0.25), term("kto", weight=2.0)],
        plain(
            lambda b: (
                tdpo2(*b.pairs, *b.kls, b.betas, 0.5)
                + wpo(*b.pairs, *b.alignments, b.betas)
                + ld_dpo(*b.pairs, *b.public, b.betas, 0.25)
                + 2 * kto_pairs(*b.pairs, b.point, b.betas)
            )
        ),
        coupled=True,
    ),
}
