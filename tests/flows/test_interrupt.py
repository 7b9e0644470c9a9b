"""Two runs of one name, and Ctrl-C."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.environment import INTERRUPTED
from pipeline.errors import BusyError
from pipeline.runs import Run

from .small import RECIPE, ROOT, Ratchet, left, sets, until

ENDLESS = sets("policy.epochs=100000")


def test_a_second_run_of_one_name_is_refused_and_ctrl_c_ends_the_first(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    first = Ratchet(workspace, *ENDLESS)
    first.until("artifacts/policy/*/state/*")

    second = Ratchet(workspace, *ENDLESS, "--json")
    assert second.wait() == BusyError.exit_code
    assert second.err.read_text() == (
        f"error: run 'small' is already running in {workspace}; wait for it, or give --name"
        f" (process {first.process.pid})\n"
    )
    assert second.out.read_text() == ""
    assert first.process.poll() is None
    assert Run.existing(workspace, "small").status()["state"] == "running"

    interrupt(first, processes=3)  # itself, its engine, Prefect's temporary server
    assert Run.existing(workspace, "small").status()["state"] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_saves_its_state_before_the_run_leaves(
    finished: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    # All up to the training is there already.
    made = Path(finished["workspace"]) / "artifacts"
    shutil.copytree(made, tmp_path / "workspace" / "artifacts", ignore=shutil.ignore_patterns("train"))
    run = Ratchet(tmp_path / "workspace", *sets("trainer.epochs=5000", "trainer.checkpoint_steps=1000000"))
    metrics = _metrics(run)
    steps = len(metrics.read_text().splitlines())
    assert not list(run.workspace.glob("artifacts/train/*/state/*"))
    found = run.signal(number)
    assert run.wait() == 128 + number
    assert not left(found)
    assert list(run.workspace.glob("artifacts/train/*/state/*"))
    assert len(metrics.read_text().splitlines()) >= steps
    assert "Traceback" not in run.err.read_text()


def _metrics(run: Ratchet) -> Path:
    """A training's figures, as soon as there are some."""
    run.until("artifacts/train/*/metrics.jsonl")
    (file,) = run.workspace.glob("artifacts/train/*/metrics.jsonl")
    until(lambda: file.read_text().count("\n") > 3, run.process)
    return file


WAITING = """
import signal, time
from flows import environment
environment.leave_on_signals()
with environment.leaving():
    signal.raise_signal(signal.{name})
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_with_a_server_of_the_users_own_the_exit_code_tells_the_signal_too(number: signal.Signals) -> None:
    """Without a temporary server Prefect hears of it first, by an exception."""
    ended = subprocess.run(
        [sys.executable, "-c", WAITING.format(name=number.name)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (ended.returncode, ended.stderr.strip()) == (128 + number, INTERRUPTED)


def test_ctrl_c_while_libraries_load(tmp_path: Path) -> None:
    run = Ratchet(tmp_path / "workspace", *ENDLESS)
    until(lambda: "starting" in run.err.read_text(), run.process)
    interrupt(run, processes=1)


@pytest.mark.parametrize(
    ("command", "library", "number"),
    [
        (("status",), "pydantic_core", signal.SIGINT),
        (("status",), "_multiarray_umath", signal.SIGINT),
        (("run", str(RECIPE), "--dry-run"), "libarrow", signal.SIGTERM),
        (("doctor",), "libtorch_cpu", signal.SIGTERM),
    ],
)
def test_a_signal_while_a_command_imports_what_it_needs(
    command: tuple[str, ...], library: str, number: signal.Signals, tmp_path: Path
) -> None:
    run = Ratchet(tmp_path / "workspace", command=command)
    mapped = Path(f"/proc/{run.process.pid}/maps")
    until(lambda: library in mapped.read_text(), run.process)
    interrupt(run, processes=1, number=number)
    assert run.out.read_text() == ""


def test_ctrl_c_is_how_voting_ends_well(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "which?", "chosen": "this", "rejected": "that"}\n')
    run = Ratchet(tmp_path / "workspace", command=("annotate", str(pairs), "--votes", str(tmp_path / "votes.jsonl")))
    until(lambda: "Ctrl-C ends it" in run.out.read_text(), run.process)
    run.signal(signal.SIGINT)
    assert (run.wait(), run.err.read_text()) == (0, "")


def interrupt(run: Ratchet, processes: int, number: signal.Signals = signal.SIGINT) -> None:
    """Ctrl-C in its terminal, at which it says one line and ends with everything it started."""
    said = run.err.read_text()
    found = run.signal(number)
    assert len(found) >= processes
    assert run.wait() == 128 + number
    assert not left(found)
    assert run.err.read_text().removeprefix(said).split("\n")[-2:] == [INTERRUPTED, ""]
    assert "Traceback" not in run.err.read_text()
