"""From a term's config to its loss: which function, and what of a batch it is given."""

from collections.abc import Mapping
from typing import Literal, assert_never

import torch
from torch import Tensor

from pipeline import config as c
from trainers.comparisons import Batch
from trainers.losses.aot import aot_paired, aot_quantiles
from trainers.losses.apo import apo_down, apo_zero
from trainers.losses.bco import bco, bco_pairs, running_mean
from trainers.losses.beta_dpo import batch_scale, beta_dpo, choose, moving_figures
from trainers.losses.cpo import cpo
from trainers.losses.discopop import discopop
from trainers.losses.divergence import alpha_divergence, forward_kl, jensen_shannon
from trainers.losses.exo import exo
from trainers.losses.hinge import hinge
from trainers.losses.ipo import ipo_length_normalised, ipo_sum
from trainers.losses.kto import kto, kto_pairs, reference_point
from trainers.losses.length import ld_dpo
from trainers.losses.nca import nca
from trainers.losses.nll import nll
from trainers.losses.odds import odds
from trainers.losses.rewards import Beta, reward_margins, rewards
from trainers.losses.sigmoid import (
    dpo_positive,
    modpo,
    odpo,
    r_dpo,
    robust,
    sigmoid,
    sigmoid_length_normalised,
)
from trainers.losses.simpo import simpo
from trainers.losses.sppo import sppo
from trainers.losses.tdpo import tdpo1, tdpo2
from trainers.losses.wpo import wpo

Need = Literal["reference", "reference_tokens", "reference_kl", "collision", "mismatched"]
State = Mapping[str, float]
"""A term's running figures, by name."""

SINGLES = ("aot_unpaired", "bco", "kto", "nll")
"""Types that also take completions labelled one by one."""


def needs(term: c.LossConfig) -> set[Need]:
    """What a term asks for beyond the policy's log-probabilities."""
    match term:
        case c.SimpoLoss() | c.OddsLoss() | c.CpoLoss() | c.NllLoss():
            return set()
        case c.LengthDesensitisedLoss():
            return {"reference", "reference_tokens"}
        case c.WpoLoss():
            return {"reference", "collision"}
        case c.Tdpo1Loss() | c.Tdpo2Loss():
            return {"reference", "reference_kl"}
        case c.KtoLoss():
            return {"reference", "mismatched"}
        case _:
            return {"reference"}


Label = Literal["margin", "soft label"]


def label_of(term: c.LossConfig) -> Label | None:
    """What a term reads of a pair beside which completion was chosen."""
    match term:
        case c.OffsetLoss():
            return "margin"
        case c.MultiObjectiveLoss():
            return "margin" if term.share < 1 else None
        case c.SigmoidLoss(soft_labels=True) | c.SppoLoss(soft_labels=True):
            return "soft label"
        case _:
            return None


def is_coupled(term: c.LossConfig) -> bool:
    """Whether one example's loss depends on the others in the batch, by the batch itself or by a running figure."""
    match term:
        case c.BcoLoss():
            return term.delta
        case c.KtoLoss() | c.AotPairedLoss() | c.AotUnpairedLoss() | c.BetaDpoLoss():
            return True
        case _:
            return False


def initial_state(term: c.LossConfig) -> State:
    """The running figures of a term before any batch."""
    match term:
        case c.BcoLoss(delta=True):
            return {"delta": 0.0, "count": 0.0}
        case c.BetaDpoLoss():
            return {"center": 0.0, "spread": 0.0, "batches": 0.0}
        case _:
            return {}


def next_state(term: c.LossConfig, batch: Batch, state: State) -> State:
    """A term's running figures after a whole batch."""
    match term:
        case c.BcoLoss(delta=True):
            beta, single_beta = _betas(term, batch)
            seen = torch.cat([*rewards(*batch.pairs, beta), single_beta * (batch.singles[0] - batch.singles[1])])
            delta, count = running_mean(state["delta"], state["count"], seen.detach())
            return {"delta": delta, "count": count}
        case c.BetaDpoLoss():
            margins = reward_margins(*batch.pairs, _betas(term, batch)[0])
            center, spread = moving_figures(state["center"], state["spread"], margins, term.momentum)
            return {"center": center, "spread": spread, "batches": state["batches"] + 1}
        case _:
            return {}


def term_losses(term: c.LossConfig, batch: Batch, state: State) -> Tensor:
    """The term's loss of each example, unweighted, pairs first: [p + s] float64."""
    return torch.cat([pair_losses(term, batch, state), single_losses(term, batch, state)])


def pair_losses(term: c.LossConfig, batch: Batch, state: State) -> Tensor:
    """[p] float64."""
    pairs, lengths, beta = batch.pairs, batch.lengths, _betas(term, batch)[0]
    if pairs[0].numel() == 0:
        return pairs[0]
    preferences, margins = batch.comparisons.preferences, batch.comparisons.margins
    match term:
        case c.SigmoidLoss():
            return sigmoid(*pairs, beta, term.label_smoothing, preferences if term.soft_labels else 1.0)
        case c.RobustLoss():
            return robust(*pairs, beta, term.label_smoothing)
        case c.LengthNormalisedSigmoidLoss():
            return sigmoid_length_normalised(*pairs, *lengths, beta)
        case c.OffsetLoss():
            return odpo(*pairs, margins.clamp(min=0), beta, term.alpha, term.scaling)
        case c.LengthRegularisedLoss():
            return r_dpo(*pairs, *lengths, beta, term.alpha)
        case c.PositiveLoss():
            return dpo_positive(*pairs, beta, term.penalty)
        case c.MultiObjectiveLoss():
            return modpo(*pairs, margins, beta, term.share)
        case c.IpoSumLoss():
            return ipo_sum(*pairs, beta)
        case c.IpoLengthNormalisedLoss():
            return ipo_length_normalised(*pairs, *lengths, beta)
        case c.HingeLoss():
            return hinge(*pairs, beta)
        case c.SimpoLoss():
            return simpo(*pairs[:2], *lengths, beta, term.gamma, term.label_smoothing)
        case c.OddsLoss():
            return odds(*pairs[:2], *lengths)
        case c.CpoLoss():
            return cpo(*pairs[:2], beta, term.label_smoothing)
        case c.KtoLoss():
            return kto_pairs(*pairs, _point(batch), beta, term.desirable_weight, term.undesirable_weight)
        case c.BcoLoss():
            return bco_pairs(*pairs, beta, state.get("delta", 0.0))
        case c.NcaLoss():
            return nca(*pairs, beta)
        case c.ExoLoss():
            return exo(*pairs, beta, term.label_smoothing)
        case c.SppoLoss(soft_labels=True):
            return sppo(*pairs, beta, preferences, 1 - preferences)
        case c.SppoLoss():
            return sppo(*pairs, beta)
        case c.AotPairedLoss():
            return aot_paired(*pairs, beta, term.label_smoothing)
        case c.AotUnpairedLoss():
            return _quantile_loss(term, batch).expand(len(pairs[0]))
        case c.ApoZeroLoss():
            return apo_zero(*pairs, beta)
        case c.ApoDownLoss():
            return apo_down(*pairs, beta)
        case c.DiscopopLoss():
            return discopop(*pairs, beta, term.tau)
        case c.ForwardKlLoss():
            return forward_kl(*pairs, beta)
        case c.JensenShannonLoss():
            return jensen_shannon(*pairs, beta)
        case c.AlphaDivergenceLoss():
            return alpha_divergence(*pairs, beta, term.alpha)
        case c.LengthDesensitisedLoss():
            return ld_dpo(*pairs, *batch.public_sums(), beta, term.alpha)
        case c.WpoLoss():
            return wpo(*pairs, *batch.alignments(), beta)
        case c.Tdpo1Loss():
            return tdpo1(*pairs, *batch.reference_kls(), beta)
        case c.Tdpo2Loss():
            return tdpo2(*pairs, *batch.reference_kls(), beta, term.alpha)
        case c.BetaDpoLoss():
            discrepancies = reward_margins(*pairs, beta).detach()
            kept = choose(discrepancies, state["center"], state["spread"], term.keep, int(state["batches"]))
            scale = batch_scale(discrepancies[kept], state["center"], term.alpha)
            return beta_dpo(*pairs, beta, kept, scale)
        case c.NllLoss():
            return nll(pairs[0], lengths[0])
        case _:
            assert_never(term)


def single_losses(term: c.LossConfig, batch: Batch, state: State) -> Tensor:
    """[s] float64. The likelihood of undesirable completions is nobody's to raise: their `nll` is 0."""
    beta, desirable = _betas(term, batch)[1], batch.comparisons.desirable
    match term:
        case c.KtoLoss():
            weights = (term.desirable_weight, term.undesirable_weight)
            return kto(*batch.singles, desirable, _point(batch), beta, *weights)
        case c.BcoLoss():
            return bco(*batch.singles, desirable, beta, state.get("delta", 0.0))
        case c.AotUnpairedLoss():
            return _quantile_loss(term, batch).expand(len(desirable))
        case c.NllLoss():
            return torch.where(desirable, nll(batch.singles[0], batch.single_lengths), 0.0)
        case _:
            return batch.singles[0] * 0


def _betas(term: c.LossConfig, batch: Batch) -> tuple[Beta, Beta]:
    """Of pairs and of singles: the term's own, else those of the examples' sources."""
    own = None if isinstance(term, c.OddsLoss | c.NllLoss) else term.beta
    return (batch.comparisons.betas, batch.comparisons.single_betas) if own is None else (own, own)


def _point(batch: Batch) -> Tensor:
    mismatched = batch.comparisons.mismatched
    return reference_point(batch.logps[mismatched], batch.reference_logps[mismatched])


def _quantile_loss(term: c.AotUnpairedLoss, batch: Batch) -> Tensor:
    """All good completions against all bad ones, from pairs and singles alike: a scalar, every example's loss."""
    beta, single_beta = _betas(term, batch)
    chosen, rejected = rewards(*batch.pairs, beta)
    single, desirable = single_beta * (batch.singles[0] - batch.singles[1]), batch.comparisons.desirable
    good, bad = torch.cat([chosen, single[desirable]]), torch.cat([rejected, single[~desirable]])
    return aot_quantiles(good, bad, term.label_smoothing)
