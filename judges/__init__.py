"""Judges: candidates to scores. One ``match`` from config to class; each class says what its scores mean."""

from typing import assert_never

from pipeline.calls.request import Desk
from pipeline.config import (
    CallableJudge,
    HumanJudge,
    JudgeConfig,
    PairwiseJudge,
    PanelJudge,
    PointwiseJudge,
    RewardModelJudge,
    RulesJudge,
)
from pipeline.protocols import Judge

__all__ = ["Desk", "make_judge"]


def make_judge(config: JudgeConfig, name: str, desk: Desk | None = None) -> Judge:
    """The judge ``config`` describes, ready to work; ``name`` appears in its judgments.

    ``desk`` is what language models are paid from; other judges need none. The imports wait in here because a reward
    model brings torch with it, and a language model its client.

    Raises:
        ConfigError: a callable judge's function cannot be found.
        JudgeError: a judge cannot work at all: no reward model, no key, no votes.
    """
    match config:
        case RulesJudge():
            from judges import rules

            return rules.RulesJudge(config, name)
        case CallableJudge():
            from judges import function

            return function.FunctionJudge(config, name)
        case RewardModelJudge(engine="transformers", base_url=None):
            from judges import reward_model

            return reward_model.RewardModelJudge(config, name)
        case RewardModelJudge():
            from judges import pooled

            return pooled.PooledRewardModel(config, name)
        case PointwiseJudge():
            from judges import pointwise

            return pointwise.PointwiseJudge(config, name, _needed(desk))
        case PairwiseJudge():
            from judges import pairwise

            return pairwise.PairwiseJudge(config, name, _needed(desk))
        case HumanJudge():
            from judges import human

            return human.HumanJudge(config, name)
        case PanelJudge():
            from judges import panel

            members = {member: make_judge(each.judge, member, desk) for member, each in config.members.items()}
            return panel.PanelJudge(config, name, members)
        case _:
            assert_never(config)


def _needed(desk: Desk | None) -> Desk:
    assert desk is not None, "a language model as a judge is paid from a desk"
    return desk
