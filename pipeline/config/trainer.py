"""How the policy learns from pairs."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Fraction, Strict
from pipeline.config.losses import LossConfig, SigmoidLoss

Positive = Annotated[float, Field(gt=0)]


class LoraConfig(Strict):
    """Low-rank adapters in place of all weights (Hu et al. 2021, arXiv:2106.09685); merged when the policy is saved."""

    rank: int = Field(64, ge=1)
    alpha: float = Field(64.0, gt=0)
    """The adapter's product is scaled by ``alpha / rank``."""
    modules: str | tuple[str, ...] = "all-linear"
    """Names of the linear layers that get one; ``all-linear`` is every one but the head."""
    quantise: Literal["nf4"] | None = None
    """Hold the frozen weights in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314): GPU and bitsandbytes only."""


class GuardsConfig(Strict):
    """Signs that training goes wrong. The first to fire ends it; what was learnt until then is saved and says why."""

    kl: float | None = Field(None, gt=0)
    """Mean of log π_ref − log π over the batch's completions, nats a completion, at most. Off, since rejected ones fall
    by tens of nats in trainings that are well; the gate's ``kl`` is measured on fresh samples."""
    displacement: float | None = Field(None, gt=0)
    """How far the chosen completions' mean log-probability may fall below the reference's, nats a completion."""
    margin: float | None = Field(None, gt=0)
    """Mean implicit reward margin at most; beyond it a sigmoid loss has nothing left to say."""


class TrainerConfig(Strict):
    loss: tuple[LossConfig, ...] = Field((SigmoidLoss(type="sigmoid"),), min_length=1)
    """Weighted sum of these terms."""
    beta: float = Field(0.1, gt=0)
    betas: dict[str, Positive] = {}
    """β of pairs by their source: a data set or what its rows name; in rounds, the member of the prompts' mixture.
    Others take ``beta``."""
    reference: Literal["previous", "initial", "ema", "lora_base", "none"] = "previous"
    """Policy the log-ratios are taken against: the one that sampled, the very first, a moving average of all that were
    promoted, the weights under the adapters, or none (log-ratios are log-probabilities). Adapters are merged at the end
    of a round, so the weights under them are those that sampled: "lora_base" is "previous"."""
    ema_decay: Fraction = 0.5
    """Share of the moving average that stays when a policy is promoted."""
    learning_rate: float = Field(5e-7, gt=0)
    learning_rate_decay: float = Field(1.0, gt=0, le=1.0)
    """Factor on the learning rate a round."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """After the warm-up."""
    warmup_ratio: Fraction = 0.1
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(128, ge=1)
    """Pairs an optimiser step, at most."""
    batch_tokens: int | None = Field(None, ge=1)
    """Completion tokens after which an optimiser step takes no more pairs."""
    token_budget: int = Field(8192, ge=16)
    """Tokens a forward pass; bounds memory, not the result. Halved when memory runs out."""
    max_grad_norm: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; weights, gradients and optimiser are float32 in either case."""
    recompute: bool = False
    """Activation checkpointing: about a third more work, a fraction of the memory."""
    compile: bool = False
    """``torch.compile`` of the decoder layers: a minute at the start for 5 to 15 % of speed."""
    lora: LoraConfig | None = None
    processes: int = Field(1, ge=1)
    """Processes that share each step and keep a shard of the weights (FSDP2), each with a GPU of its own where there
    are any. The reference's log-probabilities are found before, by one process, for which the model has to be small
    enough."""
    guards: GuardsConfig = GuardsConfig()
    checkpoint_steps: int = Field(50, ge=1)
    """Optimiser steps between full-state checkpoints."""
    eval_steps: int = Field(50, ge=1)
    """Optimiser steps between evaluations on held-out pairs, and sample completions, where there are any."""

    @field_validator("loss")
    @classmethod
    def _has_a_preference_term(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if all(term.type == "nll" for term in value):
            raise ValueError("needs one term that prefers chosen over rejected, e.g. {type = 'sigmoid'}")
        return value

    @model_validator(mode="after")
    def _base_of_adapters(self) -> "TrainerConfig":
        if self.reference == "lora_base" and self.lora is None:
            raise ValueError("reference 'lora_base' needs adapters: give lora, e.g. {rank = 64}")
        return self

    @model_validator(mode="after")
    def _reference_of_tokens(self) -> "TrainerConfig":
        of_tokens = [term.type for term in self.loss if term.type in ("ld_dpo", "tdpo1", "tdpo2")]
        if self.reference == "none" and of_tokens:
            raise ValueError(f"reference 'none' does not go with loss {of_tokens[0]!r}, which takes it token by token")
        return self

    @model_validator(mode="after")
    def _guarded_by_what_there_is(self) -> "TrainerConfig":
        for name in ("kl", "displacement"):
            if self.reference == "none" and getattr(self.guards, name) is not None:
                raise ValueError(f"guards.{name} is measured against the reference, and reference is 'none'")
        return self

    @model_validator(mode="after")
    def _shardable(self) -> "TrainerConfig":
        if self.processes > 1 and self.lora is not None and self.lora.quantise is not None:
            raise ValueError(f"processes = {self.processes} cannot share quantised weights: leave lora.quantise out")
        return self
