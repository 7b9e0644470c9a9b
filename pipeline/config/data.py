"""Preference data without training: several models answer, a judge scores, pairs come out."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config.base import Name, Strict
from pipeline.config.health import HealthConfig
from pipeline.config.judge import JudgeConfig
from pipeline.config.pairing import PairingConfig, ReplayConfig
from pipeline.config.prompts import PromptsConfig
from pipeline.config.run import LimitsConfig
from pipeline.config.sampling import LocalModel, Model, SamplingConfig

OF_A_MODEL = ("n", "temperature", "top_p", "top_k", "max_tokens", "logprobs", "endpoints", "proposers")
"""Settings of sampling that a data run says with each model, or not at all."""
IN_TOKENS = ("min_tokens", "max_tokens")
"""Settings of prompts that say something of a policy's token ids."""


class DataConfig(Strict):
    """A run that makes preference data and trains nothing. Its records are text: no policy, so no token ids."""

    title: str = ""
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**32)
    rounds: int = Field(1, ge=1)
    """Windows of ``prompts.per_round`` prompts, one after another."""
    models: dict[Name, Model] = Field(min_length=1)
    """Who answers, by name. The candidates of all of them make one group a prompt."""
    sampling: SamplingConfig = SamplingConfig()
    """How this machine's engine runs local models, one after another; what is drawn is said with each model."""
    prompts: PromptsConfig
    judge: JudgeConfig
    health: HealthConfig = HealthConfig()
    pairing: PairingConfig = PairingConfig()
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _a_group_can_give_a_pair(self) -> Self:
        if (drawn := sum(model.n for model in self.models.values())) < 2:
            raise ValueError(f"models: {drawn} candidate a prompt; allowed: n of all models together at least 2")
        return self

    @model_validator(mode="after")
    def _nothing_is_set_in_vain(self) -> Self:
        fields = SamplingConfig.model_fields
        if vain := [name for name in OF_A_MODEL if getattr(self.sampling, name) != fields[name].default]:
            raise ValueError(f"sampling.{vain[0]} has no effect on data; allowed: in models.NAME, what a model takes")
        if self.sampling.engine == "server":
            raise ValueError(
                'sampling.engine: "server" is for a policy; allowed: a model of type "server" under models'
            )
        prompts = PromptsConfig.model_fields
        if vain := [name for name in IN_TOKENS if getattr(self.prompts, name) != prompts[name].default]:
            raise ValueError(f"prompts.{vain[0]} has no effect on data, whose prompts are text; allowed: none")
        for name, model in self.models.items():
            if self.prompts.template == "plain" and isinstance(model, LocalModel) and model.system is not None:
                raise ValueError(f'models.{name}.system: {model.system!r} needs prompts.template = "chat"')
        if self.pairing.replay != ReplayConfig():
            raise ValueError("pairing.replay has no effect on data, which nothing is trained on; allowed: none")
        return self
