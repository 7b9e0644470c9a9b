"""``kill -9`` of the whole process group, then the same command: nothing is left behind, nothing is made twice, and
pairs and policy are those of a run that nobody disturbed."""

import random
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from .conftest import RunSmall
from .small import LONGER, Ratchet, finished_files, left, store_of

MOMENTS = (
    ("artifacts/candidates/*/00000-*.parquet", 2),  # the evaluation's, and the first of the round's two
    ("artifacts/train/*/state/*", 1),
)
"""When a run is killed: at the first moment with so many files of this pattern."""


def outcome(status: Mapping[str, Any]) -> dict[str, Any]:
    """What does not depend on who was killed when; the artifacts' keys hold all that went into them."""
    rounds = [
        {
            "pairs": store_of(status).get("pairs", entry["artifacts"]["pairs"]).table()["pair_id"].to_pylist(),
            **{name: entry[name] for name in ("policy_out", "dropped", "evaluation", "gate", "artifacts")},
        }
        for entry in status["rounds"]
    ]
    return {"policy": status["policy"]["digest"], "initial": status["initial"]["evaluation"], "rounds": rounds}


def kill(run: Ratchet) -> None:
    """The whole process group; what the run had started elsewhere ends with it."""
    assert run.process.poll() is None, "it had ended already"
    processes = run.signal(signal.SIGKILL)
    assert run.wait() != 0
    assert not left(processes)
    assert "Traceback" not in run.err.read_text()


def test_resume_after_kills_repeats_nothing_and_ends_the_same(
    by_command: Ratchet, run_small: RunSmall, server: str, tmp_path: Path
) -> None:
    workspace = tmp_path / "killed"
    done: dict[Path, tuple[int, int]] = {}
    for pattern, count in MOMENTS:
        run = Ratchet(workspace, *by_command.arguments, server=server)
        run.until(pattern, count)
        kill(run)
        found = finished_files(workspace)
        assert done.items() <= found.items()
        done = found
    status = run_small("small", *LONGER, workspace=workspace)
    assert done.items() <= finished_files(workspace).items()
    assert outcome(status) == outcome(by_command.status())


@pytest.mark.soak
def test_the_demo_survives_kills_at_random_moments(tmp_path: Path) -> None:
    """Ten at least, and then as many as it takes to end in between; about ten minutes."""
    undisturbed = outcome(Ratchet(tmp_path / "undisturbed", "--json", recipe="food").status())
    draw = random.Random(0)
    kills = attempts = 0
    while kills < 10:
        workspace = tmp_path / f"killed-{attempts}"
        attempts += 1
        done: dict[Path, tuple[int, int]] = {}
        while killed_within(run := Ratchet(workspace, "--json", recipe="food"), draw.uniform(2, 45)):
            kills += 1
            assert done.items() <= finished_files(workspace).items()
            done = finished_files(workspace)
        assert outcome(run.status()) == undisturbed


def killed_within(run: Ratchet, seconds: float) -> bool:
    try:
        run.process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(run)
        return True
    return False
