"""How candidates are drawn, and by which engine."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Precision, Strict


class SamplingConfig(Strict):
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """``auto`` takes vLLM where it is installed."""
    n: int = Field(8, ge=2, le=1024)
    """Candidates a prompt."""
    temperature: float = Field(1.0, gt=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0)
    max_tokens: int = Field(256, ge=1)
    logprobs: bool = True
    """Record cumulative log-probabilities (costs up to a third of throughput)."""
    dtype: Precision = "auto"
    """``auto`` keeps the checkpoint's precision."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest prompt plus completion in tokens; None takes the model's own."""
    max_num_seqs: int = Field(256, ge=1)
    """Sequences the engine runs at once."""
    gpu_memory_utilization: float = Field(0.85, gt=0.0, le=1.0)
    kv_cache_mib: int | None = Field(None, ge=16)
    """Size of the key-value cache in MiB; None lets the engine choose."""
    sync_tolerance: float | None = Field(None, gt=0.0)
    """Largest difference (nats a token) between the engine's and the trainer's probe log-probabilities after a weight
    sync. None: 1e-3 in float32, 0.25 in 16 bit."""
