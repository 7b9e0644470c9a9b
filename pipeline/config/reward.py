"""How a reward model learns from pairs."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Fraction, Strict


class RewardTrainerConfig(Strict):
    """Bradley-Terry: −log σ(r(chosen) − r(rejected)), r being the one logit of a sequence classifier."""

    margin_weight: float = Field(0.0, ge=0)
    """m in −log σ(r(chosen) − r(rejected) − m · margin): how far apart pairs with a known margin are to be pushed
    (Llama 2, arXiv:2307.09288, eq. 2). Margins are in the units of whoever gave them."""
    centring: float = Field(0.0, ge=0)
    """λ of a term λ (r(chosen) + r(rejected))², which keeps rewards around 0 (arXiv:2312.09244); 0.01 is usual."""
    learning_rate: float = Field(1e-5, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """After the warm-up."""
    warmup_ratio: Fraction = 0.05
    epochs: int = Field(1, ge=1)
    """More than one soon learns the pairs by heart; give held-out pairs, and the best epoch's part is kept."""
    batch_size: int = Field(64, ge=1)
    """Pairs an optimiser step."""
    token_budget: int | None = Field(None, ge=16)
    """Tokens a forward pass, padding included; bounds memory, not the result. Halved when memory runs out. None: 16,384
    on a GPU, and on a CPU 1,024, since more does not fit its caches."""
    max_grad_norm: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in, and is saved in; weights in training, gradients and optimiser are float32."""
    eval_steps: int = Field(50, ge=1)
    """Optimiser steps between evaluations on held-out pairs, where there are any. The weights with the lowest loss on
    them are the ones that are saved."""
    patience: int | None = Field(None, ge=1)
    """Evaluations without a better one after which training ends; None: never."""
    checkpoint_steps: int = Field(50, ge=1)
    """Optimiser steps between full-state checkpoints."""
