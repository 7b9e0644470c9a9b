"""The terms an objective can be a weighted sum of, one model a loss. Equations and papers: ``trainers/losses``."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Fraction, Strict

Smoothing = Annotated[float, Field(ge=0.0, lt=0.5)]
"""Probability that a label is wrong."""


class Term(Strict):
    """What every term has."""

    weight: float = Field(1.0, gt=0)


class BetaTerm(Term):
    """A term with a β."""

    beta: float | None = Field(None, gt=0)
    """In place of the trainer's, and of those by source."""


class SigmoidLoss(BetaTerm):
    """Direct preference optimisation; with label smoothing or soft labels, conservative DPO."""

    type: Literal["sigmoid"]
    label_smoothing: Smoothing = 0.0
    soft_labels: bool = False
    """Use the probability that the chosen one is better: of a data set its column ``preference``; in rounds that of the
    judge's Bradley-Terry strengths, which only a pairwise judge of all pairs gives."""


class RobustLoss(BetaTerm):
    """DPO that is unbiased where labels are flipped at a known rate."""

    type: Literal["robust"]
    label_smoothing: Smoothing = 0.1


class LengthNormalisedSigmoidLoss(BetaTerm):
    """DPO on log-ratios a token."""

    type: Literal["sigmoid_length_normalised"]


class OffsetLoss(BetaTerm):
    """ODPO: the margin must exceed an offset that grows with the judge's."""

    type: Literal["odpo"]
    alpha: float = Field(1.0, ge=0)
    scaling: Literal["log", "identity"] = "log"


class LengthRegularisedLoss(BetaTerm):
    """R-DPO: a penalty a token."""

    type: Literal["r_dpo"]
    alpha: float = Field(0.01, ge=0)
    """Reward a token costs."""


class PositiveLoss(BetaTerm):
    """DPO-Positive: the chosen completion may not lose probability."""

    type: Literal["dpo_positive"]
    penalty: float = Field(50.0, ge=0)
    """λ of the paper."""


class MultiObjectiveLoss(BetaTerm):
    """MODPO: the data set's margin is another objective's, and counts beside the labels. Not in rounds: their margins
    are of the judge that labels."""

    type: Literal["modpo"]
    share: float = Field(0.5, gt=0, le=1)
    """Weight of the objective the pairs are labelled for."""


class IpoSumLoss(BetaTerm):
    """IPO as in its paper: log-ratios summed over tokens; β is its τ."""

    type: Literal["ipo_sum"]


class IpoLengthNormalisedLoss(BetaTerm):
    """IPO as its authors ran it: log-ratios a token; β is its τ."""

    type: Literal["ipo_length_normalised"]


class HingeLoss(BetaTerm):
    """The hinge on the reward margin, of SLiC and RSO."""

    type: Literal["hinge"]


class SimpoLoss(BetaTerm):
    """SimPO: no reference, log-probabilities a token, a target margin."""

    type: Literal["simpo"]
    beta: float | None = Field(2.0, gt=0)
    """Far above DPO's: it scales a mean over tokens."""
    gamma: float = Field(1.0, ge=0)
    """Target margin, in units of the reward."""
    label_smoothing: Smoothing = 0.0


class OddsLoss(Term):
    """ORPO's odds-ratio term; the whole of ORPO adds an `nll` of weight 1."""

    type: Literal["odds"]
    weight: float = Field(0.1, gt=0)
    """λ of the paper."""


class CpoLoss(BetaTerm):
    """CPO's preference term; the whole of CPO adds an `nll`."""

    type: Literal["cpo"]
    label_smoothing: Smoothing = 0.0


class KtoLoss(BetaTerm):
    """KTO, of pairs or of completions labelled one by one."""

    type: Literal["kto"]
    desirable_weight: float = Field(1.0, gt=0)
    undesirable_weight: float = Field(1.0, gt=0)


class BcoLoss(BetaTerm):
    """BCO, of pairs or of completions labelled one by one."""

    type: Literal["bco"]
    delta: bool = True
    """Shift rewards by their running mean."""


class NcaLoss(BetaTerm):
    """NCA: the chosen completion's own likelihood may not fall."""

    type: Literal["nca"]


class ExoLoss(BetaTerm):
    """EXO: reverse KL to the smoothed label."""

    type: Literal["exo"]
    label_smoothing: float = Field(1e-3, gt=0, lt=0.5)


class SppoLoss(BetaTerm):
    """SPPO: log-ratios regressed on win rates, 1 and 0 without soft labels."""

    type: Literal["sppo"]
    soft_labels: bool = False
    """Use the probability that the chosen one is better: of a data set its column ``preference``; in rounds that of the
    judge's Bradley-Terry strengths, which only a pairwise judge of all pairs gives."""


class AotPairedLoss(BetaTerm):
    """AOT: the policy's margins dominate the reference's in distribution."""

    type: Literal["aot_paired"]
    label_smoothing: Smoothing = 0.0


class AotUnpairedLoss(BetaTerm):
    """AOT: rewards of good completions dominate those of bad ones in distribution; also of single labels."""

    type: Literal["aot_unpaired"]
    label_smoothing: Smoothing = 0.0


class ApoZeroLoss(BetaTerm):
    """APO for chosen completions better than the policy's own."""

    type: Literal["apo_zero"]


class ApoDownLoss(BetaTerm):
    """APO for chosen completions worse than the policy's own."""

    type: Literal["apo_down"]


class DiscopopLoss(BetaTerm):
    """DiscoPOP's discovered log-ratio modulated loss."""

    type: Literal["discopop"]
    tau: float = Field(0.05, gt=0, le=1)


class ForwardKlLoss(BetaTerm):
    """f-DPO with the forward KL."""

    type: Literal["forward_kl"]


class JensenShannonLoss(BetaTerm):
    """f-DPO with the Jensen-Shannon divergence."""

    type: Literal["jensen_shannon"]


class AlphaDivergenceLoss(BetaTerm):
    """f-DPO with an α-divergence, between DPO (0) and the forward KL (1)."""

    type: Literal["alpha_divergence"]
    alpha: float = Field(0.5, gt=0, lt=1)


class LengthDesensitisedLoss(BetaTerm):
    """LD-DPO: tokens beyond the shorter completion's length count by α."""

    type: Literal["ld_dpo"]
    alpha: Fraction = 0.5


class WpoLoss(BetaTerm):
    """WPO: DPO weighted by how likely the policy would sample the pair."""

    type: Literal["wpo"]


class Tdpo1Loss(BetaTerm):
    """TDPO: DPO with the KL along each completion in the margin."""

    type: Literal["tdpo1"]


class Tdpo2Loss(BetaTerm):
    """TDPO with the chosen completion's KL held constant."""

    type: Literal["tdpo2"]
    alpha: float = Field(0.5, ge=0)


class BetaDpoLoss(BetaTerm):
    """β-DPO: β follows the batch's margins, and outliers are left out."""

    type: Literal["beta_dpo"]
    alpha: float = Field(0.6, ge=0)
    keep: float = Field(0.8, gt=0, le=1)
    """Share of a batch's pairs that count."""
    momentum: float = Field(0.9, ge=0, lt=1)


class NllLoss(Term):
    """Mean negative log-likelihood a token of the chosen completion (RPO's regulariser)."""

    type: Literal["nll"]


LossConfig = Annotated[
    SigmoidLoss | RobustLoss | LengthNormalisedSigmoidLoss | OffsetLoss | LengthRegularisedLoss | PositiveLoss
    | MultiObjectiveLoss | IpoSumLoss | IpoLengthNormalisedLoss | HingeLoss | SimpoLoss | OddsLoss | CpoLoss | KtoLoss
    | BcoLoss | NcaLoss | ExoLoss | SppoLoss | AotPairedLoss | AotUnpairedLoss | ApoZeroLoss | ApoDownLoss
    | DiscopopLoss | ForwardKlLoss | JensenShannonLoss | AlphaDivergenceLoss | LengthDesensitisedLoss | WpoLoss
    | Tdpo1Loss | Tdpo2Loss | BetaDpoLoss | NllLoss,
    Field(discriminator="type"),
]  # fmt: skip
