"""Preference data without training: several models answer, a judge scores, pairs come out."""

from pydantic import Field

from pipeline.config.base import Strict
from pipeline.config.health import HealthConfig
from pipeline.config.judge import JudgeConfig
from pipeline.config.pairing import PairingConfig
from pipeline.config.prompts import PromptsConfig
from pipeline.config.run import LimitsConfig
from pipeline.config.sampling import Model, SamplingConfig


class DataConfig(Strict):
    """A run that makes preference data and trains nothing. Its records are text: no policy, so no token ids."""

    title: str = ""
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**32)
    rounds: int = Field(1, ge=1)
    """Windows of ``prompts.per_round`` prompts, one after another."""
    models: dict[str, Model] = Field(min_length=1)
    """Who answers, by name. The candidates of all of them make one group a prompt."""
    engine: SamplingConfig = SamplingConfig()
    """How this machine's engine runs local models; what is drawn is said with each model."""
    prompts: PromptsConfig
    judge: JudgeConfig
    health: HealthConfig = HealthConfig()
    pairing: PairingConfig = PairingConfig()
    limits: LimitsConfig = LimitsConfig()
