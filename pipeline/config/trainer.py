"""How the policy learns from pairs."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pipeline.config.base import Fraction, Strict
from pipeline.config.losses import LossConfig, SigmoidLoss


class TrainerConfig(Strict):
    loss: tuple[LossConfig, ...] = Field((SigmoidLoss(type="sigmoid"),), min_length=1)
    """Weighted sum of these terms."""
    beta: float = Field(0.1, gt=0)
    betas: dict[str, Annotated[float, Field(gt=0)]] = {}
    """β of pairs by their source, a data set or a judge's axis; others take ``beta``."""
    reference: Literal["previous", "initial"] = "previous"
    """Policy the log-ratios are taken against: the one that sampled, or the very first."""
    learning_rate: float = Field(5e-7, gt=0)
    learning_rate_decay: float = Field(1.0, gt=0, le=1.0)
    """Factor on the learning rate a round."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """After the warm-up."""
    warmup_ratio: Fraction = 0.1
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(128, ge=1)
    """Pairs an optimiser step."""
    token_budget: int = Field(8192, ge=16)
    """Tokens a forward pass, padding included; bounds memory, not the result."""
    max_grad_norm: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16`` runs the forward pass under autocast; weights and optimiser stay in float32."""
    checkpoint_steps: int = Field(50, ge=1)
    """Optimiser steps between full-state checkpoints."""

    @field_validator("loss")
    @classmethod
    def _has_a_preference_term(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if all(term.type == "nll" for term in value):
            raise ValueError("needs one term that prefers chosen over rejected, e.g. {type = 'sigmoid'}")
        return value
