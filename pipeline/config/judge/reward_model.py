"""Reward models: sequence classifiers whose raw logits are scores."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Precision, Strict


class RewardModelJudge(Strict):
    """A sequence classifier: its raw logit, or a weighted sum of several, is the score."""

    type: Literal["reward_model"]
    path: str
    """Hub name or directory."""
    revision: str | None = None
    dtype: Precision = "auto"
    heads: dict[str, float] = {}
    """Weights of a classifier's several outputs, by label (``id2label``) or number; every output's logit is kept.
    Empty: the classifier must have one output."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """``vllm`` scores with a pooling engine, usually faster; the scores are the same to rounding."""
    base_url: str | None = None
    """Of a running ``vllm serve MODEL --runner pooling --convert classify``, in place of an engine of our own; ``path``
    is still read for the tokenizer. Where the server wants a key, it is in the environment's VLLM_API_KEY."""
    max_tokens: int = Field(4096, ge=16)
    """Conversations longer than this abstain."""
    token_budget: int | None = Field(None, ge=16)
    """Tokens a forward pass of transformers', padding included: bounds memory, decides speed, leaves the scores. None:
    16,384 on a GPU, and on a CPU 1,024, since more does not fit its caches."""
    gpu_memory_utilization: float = Field(0.85, gt=0.0, le=1.0)
    """Share of a GPU's memory that vLLM's engine takes."""
