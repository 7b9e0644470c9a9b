"""Runs of ``small.toml``: as the command a user gives, in a process of its own, or in this one."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from pipeline.store import Store

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_name("small.toml")
LONGER = (
    "prompts.source.call.args.ravin=300", "sampling.n=8", "policy.epochs=30", "trainer.batch_size=16",
    "sampling.engine=auto",
)  # fmt: skip
"""Settings that make every stage long enough to be interrupted, and the prompts two shards; with vLLM, where it is
installed."""
PATIENCE = 300.0
"""Seconds until a test that waits gives up: ten times what anything here takes on an idle machine."""


def until(condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait for ``condition``; an error where ``process`` ends before it holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, f"it ended with exit code {process.returncode}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class Ratchet:
    """``ratchet run small.toml`` in a session of its own, so that it can be signalled as a terminal would."""

    def __init__(
        self,
        workspace: Path,
        *arguments: str,
        recipe: str = str(RECIPE),
        server: str | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """``server`` is the address of Prefect's API; without one, Prefect starts a temporary server. ``command`` is
        another one than ``run RECIPE``."""
        self.workspace, self.arguments = workspace, arguments
        workspace.mkdir(exist_ok=True)
        output = Path(tempfile.mkdtemp(dir=workspace, prefix="output-"))
        self.out, self.err = output / "out.txt", output / "err.txt"
        words = [*(command or ("run", recipe)), "--workspace", str(workspace), *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"PREFECT_API_URL": server} if server else {})
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows", *words],
                env=environment, stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=ROOT, start_new_session=True,
            )  # fmt: skip

        STARTED.append(self)

    def until(self, pattern: str, count: int = 1) -> None:
        """Wait until so many files of this pattern are in the workspace."""
        until(lambda: len(list(self.workspace.glob(pattern))) >= count, self.process)

    def signal(self, number: signal.Signals) -> list[psutil.Process]:
        """Signal the whole process group; all processes the run had, those of other groups too."""
        processes = [main := psutil.Process(self.process.pid), *main.children(recursive=True)]
        os.killpg(self.process.pid, number)
        return processes

    def end(self) -> None:
        """Whatever the test did: leave nothing of the run behind."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.wait()

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def status(self) -> dict[str, Any]:
        """What ``--json`` printed, after a run that ended well."""
        code = self.wait()
        assert code == 0, self.err.read_text()
        status: dict[str, Any] = json.loads(self.out.read_text())
        return status


def engine_process() -> psutil.Process:
    """The newest engine that is a child of this process."""
    children = psutil.Process().children()
    return max((p for p in children if "pipeline.sampling.worker" in p.cmdline()), key=lambda p: p.create_time())


STARTED: list[Ratchet] = []
"""Every run of this session, for ``conftest`` to end where its test failed to."""


def sets(*settings: str) -> list[str]:
    """``--set`` before each."""
    return [part for setting in settings for part in ("--set", setting)]


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that do not end, given time."""
    _, alive = psutil.wait_procs(processes, timeout=60)
    return alive


def finished_files(workspace: Path) -> dict[Path, tuple[int, int]]:
    """(mtime in ns, inode) of all that will never be written again: whole shards, and files of complete artifacts."""
    found = {}
    for manifest in workspace.glob("artifacts/*/*/manifest.json"):
        found |= {file: _written(file) for file in manifest.parent.rglob("*") if _counts(file)}
    found |= {file: _written(file) for file in workspace.glob("artifacts/*/*/[0-9]*-*.parquet")}
    return found


def _counts(file: Path) -> bool:
    return file.is_file() and file.name not in (".lock", "seconds") and "state" not in file.parts


def _written(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_ino


def store_of(status: Mapping[str, Any]) -> Store:
    return Store(Path(status["workspace"]) / "artifacts")
