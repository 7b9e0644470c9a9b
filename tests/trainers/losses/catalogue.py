"""Every loss of pairs as a function of the same inputs, each with parameters that make its own part matter."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.losses.aot import aot_paired, aot_quantiles, aot_unpaired
from trainers.losses.apo import apo_down, apo_zero
from trainers.losses.bco import bco_pairs
from trainers.losses.beta_dpo import batch_scale, beta_dpo, choose
from trainers.losses.cpo import cpo
from trainers.losses.discopop import discopop
from trainers.losses.divergence import alpha_divergence, forward_kl, jensen_shannon
from trainers.losses.exo import exo
from trainers.losses.hinge import hinge
from trainers.losses.ipo import ipo_length_normalised, ipo_sum
from trainers.losses.kto import kto_pairs, reference_point
from trainers.losses.length import ld_dpo
from trainers.losses.nca import nca
from trainers.losses.nll import nll
from trainers.losses.odds import odds
from trainers.losses.rewards import Beta, reward_margins, rewards
from trainers.losses.sigmoid import dpo_positive, modpo, odpo, r_dpo, robust, sigmoid, sigmoid_length_normalised
from trainers.losses.simpo import simpo
from trainers.losses.sppo import sppo
from trainers.losses.tdpo import tdpo1, tdpo2
from trainers.losses.wpo import wpo


@dataclass(frozen=True)
class Inputs:
    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    chosen_extra: Tensor
    """Of the chosen completion: the sum of its public part, its alignment or its KL."""
    rejected_extra: Tensor
    margins: Tensor
    beta: Beta = 0.3

    @property
    def policies(self) -> tuple[Tensor, Tensor]:
        return self.chosen, self.rejected

    @property
    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.chosen, self.rejected, self.reference_chosen, self.reference_rejected

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        return self.chosen_lengths, self.rejected_lengths

    @property
    def extras(self) -> tuple[Tensor, Tensor]:
        return self.chosen_extra, self.rejected_extra


def dynamic(i: Inputs) -> Tensor:
    margins = reward_margins(*i.pairs, i.beta).detach()
    kept = choose(margins, center=0.0, spread=1.0, keep=0.8, seed=0)
    return beta_dpo(*i.pairs, i.beta, kept, batch_scale(margins[kept], 0.0, 0.6))


def quantiles(i: Inputs) -> Tensor:
    chosen, rejected = rewards(*i.pairs, i.beta)
    return aot_quantiles(chosen, torch.cat([rejected, rejected[:1] - 1]), 0.1).expand(len(chosen))


PAIRWISE: dict[str, Callable[[Inputs], Tensor]] = {
    "sigmoid": lambda i: sigmoid(*i.pairs, i.beta),
    "sigmoid, smoothed": lambda i: sigmoid(*i.pairs, i.beta, 0.1, 0.8),
    "robust": lambda i: robust(*i.pairs, i.beta, 0.1),
    "sigmoid_length_normalised": lambda i: sigmoid_length_normalised(*i.pairs, *i.lengths, i.beta),
    "odpo": lambda i: odpo(*i.pairs, i.margins, i.beta),
    "odpo, identity": lambda i: odpo(*i.pairs, i.margins, i.beta, 0.5, "identity"),
    "r_dpo": lambda i: r_dpo(*i.pairs, *i.lengths, i.beta, 0.05),
    "dpo_positive": lambda i: dpo_positive(*i.pairs, i.beta, 50.0),
    "modpo": lambda i: modpo(*i.pairs, i.margins, i.beta, 0.3),
    "ipo_sum": lambda i: ipo_sum(*i.pairs, i.beta),
    "ipo_length_normalised": lambda i: ipo_length_normalised(*i.pairs, *i.lengths, i.beta),
    "hinge": lambda i: hinge(*i.pairs, i.beta),
    "simpo": lambda i: simpo(*i.policies, *i.lengths, 2.0, 1.0, 0.05),
    "odds": lambda i: odds(*i.policies, *i.lengths),
    "cpo": lambda i: cpo(*i.policies, i.beta, 0.05),
    "nll": lambda i: nll(i.chosen, i.chosen_lengths),
    "kto_pairs": lambda i: kto_pairs(*i.pairs, reference_point(*i.pairs[::2]), i.beta, 1.3, 0.8),
    "bco_pairs": lambda i: bco_pairs(*i.pairs, i.beta, 0.4),
    "nca": lambda i: nca(*i.pairs, i.beta),
    "exo": lambda i: exo(*i.pairs, i.beta, 1e-3),
    "sppo": lambda i: sppo(*i.pairs, i.beta, 0.8, 0.2),
    "aot_paired": lambda i: aot_paired(*i.pairs, i.beta, 0.1),
    "aot_unpaired": lambda i: aot_unpaired(*i.pairs, i.beta, 0.1),
    "aot_quantiles": quantiles,
    "apo_zero": lambda i: apo_zero(*i.pairs, i.beta),
    "apo_down": lambda i: apo_down(*i.pairs, i.beta),
    "discopop": lambda i: discopop(*i.pairs, i.beta, 0.05),
    "discopop, τ = 1": lambda i: discopop(*i.pairs, i.beta, 1.0),
    "forward_kl": lambda i: forward_kl(*i.pairs, i.beta),
    "jensen_shannon": lambda i: jensen_shannon(*i.pairs, i.beta),
    "alpha_divergence": lambda i: alpha_divergence(*i.pairs, i.beta, 0.5),
    "ld_dpo": lambda i: ld_dpo(*i.pairs, *i.extras, *i.extras, i.beta, 0.5),
    "wpo": lambda i: wpo(*i.pairs, *i.extras, i.beta),
    "tdpo1": lambda i: tdpo1(*i.pairs, *i.extras, i.beta),
    "tdpo2": lambda i: tdpo2(*i.pairs, *i.extras, i.beta, 0.5),
    "beta_dpo": dynamic,
}

FALLING = PAIRWISE.keys() - {
    "sigmoid, smoothed", "ipo_sum", "ipo_length_normalised", "simpo", "cpo", "nca", "exo", "sppo", "aot_paired",
    "aot_unpaired", "aot_quantiles", "apo_down", "discopop", "discopop, τ = 1",
}  # fmt: skip
"""Losses that never rise with the chosen completion's probability, nor fall with the rejected one's. Smoothing, a
target for the log-ratio, or APO-down's wish that chosen falls too make the others turn round."""
