"""A real ``vllm serve`` for the tests, on CPU, in a process group of its own that does not outlive the ``with``."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",  # eager mode compiles one small function all the same, for half a minute
    "OMP_NUM_THREADS": "1",
}
PATIENCE = 240.0
"""Seconds for a start; ten times what it takes on an idle machine."""


@contextmanager
def serve(model: Path, log: Path, *arguments: str, development: bool = False) -> Iterator[str]:
    """The API's address, ``http://127.0.0.1:PORT/v1``; the model is served as ``judge``. In ``development`` mode it
    takes new weights, by a worker extension of ours, say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # ``vllm serve`` itself does not start from the CPU wheel: no package metadata. And vLLM 0.32 on CPU dies of a
    # prompt that is read in chunks where its request has a seed: "CPU Generator does not use offset".
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
        "--dtype", "float32", "--kv-cache-memory-bytes", str(1 << 26), "--no-enable-chunked-prefill",
        *arguments,
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
    if development:
        environment |= {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": str(ROOT)}
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, env=environment | ENVIRONMENT, stdout=out, stderr=out, start_new_session=True
        )
    try:
        _until_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _until_healthy(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")
