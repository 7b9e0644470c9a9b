"""Several judges as one."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Strict
from pipeline.config.judge.function import CallableJudge
from pipeline.config.judge.human import HumanJudge
from pipeline.config.judge.llm import PairwiseJudge, PointwiseJudge
from pipeline.config.judge.reward_model import RewardModelJudge
from pipeline.config.judge.rules import RulesJudge

SingleJudge = Annotated[
    RulesJudge | CallableJudge | RewardModelJudge | PointwiseJudge | PairwiseJudge | HumanJudge,
    Field(discriminator="type"),
]


class PanelMember(Strict):
    judge: SingleJudge
    weight: float = 1.0
    """Among the members of its axis; 0: asked, kept and able to veto, but not counted. Below 0: higher is worse."""
    axis: str = "overall"
    """What it measures: helpful, harmless, …"""
    veto_below: float | None = None
    """A raw score below this puts the candidate last, whatever the others say: under every candidate, of any group and
    round, that is not vetoed. Vetoed candidates' scores count in ``pairing``'s sigma like all others."""
    required: bool = True
    """Whether its abstention is the panel's; else the others decide."""


class PanelJudge(Strict):
    """Members' scores, each put on one scale by a frozen calibration set, become one score a candidate."""

    type: Literal["panel"]
    members: dict[str, PanelMember] = Field(min_length=1)
    axes: dict[str, float] = {}
    """Weights of the axes; 1 for those not named, below 0 where more is worse."""
    normalise: Literal["zscore", "none"] = "zscore"
    """By mean and standard deviation of each member's scores on the first round's candidates, frozen for the run. A
    member that gave them all the same score counts 0."""
    combine: Literal["weighted_sum", "minimum", "mean_minus_variance"] = "weighted_sum"
    """How members make an axis and axes the score. ``weighted_sum`` is over the weights' sum, so that an optional
    member's abstention shifts nothing. ``minimum`` is the worst case: weights tell only who counts. In
    ``mean_minus_variance`` an axis is the weighted mean less ``variance_weight`` times the variance of its members
    (2310.02743); axes, which may rightly differ, are averaged."""
    variance_weight: float = Field(0.5, ge=0.0)
    largest_disagreement: float | None = Field(None, gt=0.0)
    """A candidate on which the normalised scores of one axis's members have a larger standard deviation abstains."""
    length_penalty: float = Field(0.0, ge=0.0)
    """Taken off a score for every 100 words of the completion, after ``length_regression``."""
    length_regression: bool = False
    """Take the part of the score that length explains out: a line fitted on the calibration set, frozen."""

    @model_validator(mode="after")
    def _weights_go_to_something(self) -> Self:
        known = {member.axis for member in self.members.values()}
        if unknown := sorted(self.axes.keys() - known):
            raise ValueError(f"axes: no member is on {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
        if not any(member.weight and self.axes.get(member.axis, 1.0) for member in self.members.values()):
            raise ValueError("members: all weights, times those of their axes, are 0; allowed: at least one other")
        return self
