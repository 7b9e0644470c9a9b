"""Who scores the candidates. One kind of judge a file."""

from typing import Annotated

from pydantic import Field

from pipeline.config.base import Strict
from pipeline.config.judge.function import CallableJudge
from pipeline.config.judge.human import HumanJudge
from pipeline.config.judge.llm import JudgeEndpoint, PairwiseJudge, PointwiseJudge
from pipeline.config.judge.panel import PanelJudge, PanelMember, SingleJudge
from pipeline.config.judge.reward_model import RewardModelJudge
from pipeline.config.judge.rules import (
    ConstraintRule,
    FinalAnswerRule,
    JsonSchemaRule,
    LengthRule,
    RegexRule,
    Rule,
    RulesJudge,
)

JudgeConfig = Annotated[
    RulesJudge | CallableJudge | RewardModelJudge | PointwiseJudge | PairwiseJudge | HumanJudge | PanelJudge,
    Field(discriminator="type"),
]


class JudgeFile(Strict):
    """A judge alone, in a file of its own."""

    judge: JudgeConfig


__all__ = [
    "CallableJudge",
    "ConstraintRule",
    "FinalAnswerRule",
    "HumanJudge",
    "JsonSchemaRule",
    "JudgeConfig",
    "JudgeEndpoint",
    "JudgeFile",
    "LengthRule",
    "PairwiseJudge",
    "PanelJudge",
    "PanelMember",
    "PointwiseJudge",
    "RegexRule",
    "RewardModelJudge",
    "Rule",
    "RulesJudge",
    "SingleJudge",
]  # fmt: skip
