"""A whole run."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config.base import CONDITION, Fraction, Strict
from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.gate import GATE_METRICS, GateConfig
from pipeline.config.health import HealthConfig
from pipeline.config.judge import HumanJudge, JudgeConfig, PairwiseJudge, PanelJudge
from pipeline.config.pairing import PairingConfig
from pipeline.config.policy import PolicyConfig
from pipeline.config.prompts import PromptsConfig
from pipeline.config.sampling import SamplingConfig
from pipeline.config.trainer import TrainerConfig


class LimitsConfig(Strict):
    """What a run may take of its machine, and how long and how often a stage may try."""

    threads: int | None = Field(None, ge=1)
    """CPU threads of the trainer and of the engine. None lets torch take every core; small models are faster with 1."""

    budget: float | None = Field(None, ge=0.0)
    """Money the run may spend on judges and on models that others serve, in the currency of their prices. Reserved
    before a call is sent."""
    unanswered: Fraction = 0.2
    """Share of a shard's calls to language models that may be given up. More is an outage or a wrong setting: the run
    stops instead of keeping abstentions, and asks again when it goes on."""
    retries: int = Field(1, ge=0)
    """Further tries of a stage whose engine or judge failed; finished shards are kept."""
    retry_delay: float = Field(2.0, ge=0)
    """Seconds."""
    stage_timeout: float = Field(86_400.0, gt=0)
    """Seconds a stage may take."""


class RunConfig(Strict):
    """A whole run."""

    title: str = ""
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**32)
    rounds: int = Field(3, ge=1)
    policy: PolicyConfig
    prompts: PromptsConfig
    sampling: SamplingConfig = SamplingConfig()
    judge: JudgeConfig
    health: HealthConfig = HealthConfig()
    pairing: PairingConfig = PairingConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _gate_reads_what_is_measured(self) -> Self:
        allowed = [*GATE_METRICS, *(f"probes.{name}" for name in self.evaluation.probes)]
        for condition in self.gate.require:
            match = CONDITION.fullmatch(condition)
            if match is None or match["metric"] not in allowed:
                raise ValueError(
                    f"gate.require: {condition!r} is not '<metric> <operator> <number>' with an operator of"
                    f" >=, <=, >, < and a metric of {', '.join(allowed)}"
                )
        return self

    @model_validator(mode="after")
    def _losses_read_what_rounds_have(self) -> Self:
        for term in self.trainer.loss:
            if term.type == "modpo":
                raise ValueError(
                    "trainer.loss: 'modpo' subtracts another objective's margins, and those of a round are of the judge"
                    " that labels; allowed: every other loss here, and 'modpo' in ratchet train"
                )
            if getattr(term, "soft_labels", False) and not self.soft_verdicts:
                raise ValueError(
                    f"trainer.loss: soft_labels of {term.type!r} need probabilities, and the judge,"
                    f" {self.judge.type!r}, gives none; allowed: type 'pairwise' with schedule 'all_pairs'"
                )
        return self

    @model_validator(mode="after")
    def _betas_are_of_members(self) -> Self:
        members = self.prompts.weights or {}
        for name in self.trainer.betas.keys() - members:
            raise ValueError(
                f"trainer.betas.{name}: no pair will be of that source; allowed: the members of prompts.source,"
                f" {', '.join(sorted(members)) or 'which is one source here, without any'}"
            )
        return self

    @property
    def soft_verdicts(self) -> bool:
        """Whether the judge that labels gives Bradley-Terry strengths, in logits: a margin says how probable it is that
        one is better."""
        return isinstance(self.judge, PairwiseJudge) and self.judge.schedule == "all_pairs"

    @model_validator(mode="after")
    def _nobody_waits_for_people_to_evaluate(self) -> Self:
        judge = self.evaluation.judge or self.judge
        members = judge.members.values() if isinstance(judge, PanelJudge) else ()
        if isinstance(judge, HumanJudge) or any(isinstance(member.judge, HumanJudge) for member in members):
            found = "" if self.evaluation.judge else "none is given, so [judge] would evaluate; "
            raise ValueError(
                f"evaluation.judge: {found}'human' votes on a round's candidates, not on answers to held-out prompts;"
                " allowed: rules, callable, reward_model, pointwise, pairwise, a panel of these"
            )
        return self

    @model_validator(mode="after")
    def _something_is_held_out(self) -> Self:
        if self.prompts.held_out == 0:
            raise ValueError("prompts.held_out: 0 leaves nothing to evaluate on; allowed: 1 or more")
        return self
