"""Every knob of a run, as pydantic models: what a recipe file may say, with defaults and limits. One part a file.

Nothing here imports torch, vLLM or Prefect, so that a wrong recipe is refused at once. Unknown keys are errors.
Where a part comes in several kinds, ``type`` names the kind. How files become these models: ``pipeline.recipe``.
"""

from pipeline.config.base import Call, Strict
from pipeline.config.evaluation import EvaluationConfig, KlProbe, Probe, ShareProbe
from pipeline.config.gate import GATE_CONDITION, GATE_METRICS, GateConfig
from pipeline.config.judge import CallableJudge, JudgeConfig, LengthRule, RegexRule, RewardModelJudge, Rule, RulesJudge
from pipeline.config.pairing import PairingConfig
from pipeline.config.policy import PolicyConfig, PretrainedPolicy, ScratchPolicy
from pipeline.config.prompts import CallablePrompts, FilePrompts, HubPrompts, PromptsConfig
from pipeline.config.run import LimitsConfig, RunConfig
from pipeline.config.sampling import SamplingConfig
from pipeline.config.trainer import LossConfig, NllLoss, SigmoidLoss, TrainerConfig

__all__ = [
    "GATE_CONDITION",
    "GATE_METRICS",
    "Call",
    "CallableJudge",
    "CallablePrompts",
    "EvaluationConfig",
    "FilePrompts",
    "GateConfig",
    "HubPrompts",
    "JudgeConfig",
    "KlProbe",
    "LengthRule",
    "LimitsConfig",
    "LossConfig",
    "NllLoss",
    "PairingConfig",
    "PolicyConfig",
    "PretrainedPolicy",
    "Probe",
    "PromptsConfig",
    "RegexRule",
    "RewardModelJudge",
    "Rule",
    "RulesJudge",
    "RunConfig",
    "SamplingConfig",
    "ScratchPolicy",
    "ShareProbe",
    "SigmoidLoss",
    "Strict",
    "TrainerConfig",
]
