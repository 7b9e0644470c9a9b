"""What is measured after each round."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Pattern, Strict
from pipeline.config.judge import JudgeConfig


class ShareProbe(Strict):
    """Share of samples that match ``pattern`` as a whole."""

    type: Literal["share"]
    prompts: tuple[str, ...] = Field(min_length=1)
    samples: int = Field(100, ge=1)
    """Samples a prompt, at temperature 1."""
    pattern: Pattern


class KlProbe(Strict):
    """KL(policy ‖ initial policy) in nats a completion, estimated on samples at temperature 1."""

    type: Literal["kl"]
    prompts: tuple[str, ...] = Field(min_length=1)
    samples: int = Field(100, ge=1)


Probe = Annotated[ShareProbe | KlProbe, Field(discriminator="type")]


class EvaluationConfig(Strict):
    judge: JudgeConfig | None = None
    """The held-out judge. None uses the labelling judge, and the report says so."""
    n: int = Field(4, ge=1)
    """Samples a held-out prompt."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples behind every 95% interval."""
    pairs: float | None = Field(None, ge=0.0, lt=1.0)
    """Share of each round's pairs, by prompt, that is measured while a policy is trained (``trainer.eval_steps``) and
    never trained on. None: 0.05 where a round asks at least 640 different prompts, else none."""
    probes: dict[str, Probe] = {}
