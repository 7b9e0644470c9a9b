"""Judges: candidates to scores. One ``match`` from config to class; each class says what its scores mean."""

from typing import assert_never

from pipeline.config import CallableJudge, JudgeConfig, RewardModelJudge, RulesJudge
from pipeline.protocols import Judge


def make_judge(config: JudgeConfig, name: str) -> Judge:
    """The judge ``config`` describes, ready to work; ``name`` appears in its judgments.

    The imports wait in here because a reward model brings torch with it.

    Raises:
        ConfigError: a callable judge's function cannot be found.
        JudgeError: a reward model cannot be used as one.
    """
    match config:
        case RulesJudge():
            from judges import rules

            return rules.RulesJudge(config, name)
        case CallableJudge():
            from judges import function

            return function.FunctionJudge(config, name)
        case RewardModelJudge():
            from judges import reward_model

            return reward_model.RewardModelJudge(config, name)
        case _:
            assert_never(config)
