"""Trainings in processes started from here: what they leave when something ends them, and that none is left."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.errors import StepZeroError, TrainingError
from pipeline.policy import read_policy
from pipeline.types import Policy
from tests.tiny import make_policy
from tests.trainers.trainings import config, lines, make_examples, make_lesson
from trainers.checkpoints import STATE, load_model
from trainers.dpo import train_policy
from trainers.launch import JOB, train_in_processes
from trainers.lesson import Lesson
from trainers.step import KnownReference

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24
"""So many that no process is at the end when the one that started it ends, three steps after the start."""
SETTINGS = config(batch_size=4, epochs=8, processes=2, checkpoint_steps=2)
PATIENCE = 300.0

STARTED = """
import os, sys
from pathlib import Path
from pipeline.policy import read_policy
from tests.trainers import test_launch
from trainers.launch import train_in_processes
policy, directory, number = read_policy(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
signal = lambda done, total, note: os.kill(os.getpid(), number) if done == 3 else None
train_in_processes(policy, test_launch.lesson_of(policy), test_launch.SETTINGS, directory, signal)
"""
"""A training that sends its first process, the one that started the others, a signal after its third step."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return make_policy(tmp_path_factory.mktemp("policy"), tied=True)


@pytest.fixture(scope="module")
def alone(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training in one process, from its start to its end."""
    directory = tmp_path_factory.mktemp("alone")
    train_in_processes(policy, lesson_of(policy), SETTINGS.model_copy(update={"processes": 1}), directory)
    return directory


def lesson_of(policy: Policy) -> Lesson:
    return make_lesson(policy, make_examples(policy, 12))


def started(policy: Policy, directory: Path, number: int) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", STARTED, policy.path, directory, str(number)], env=environment)


def of_job(directory: Path) -> list[psutil.Process]:
    """The processes that work on the training in ``directory``."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(directory / JOB) in (process.info["cmdline"] or ()):
            found.append(process)
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def assert_same_training(directory: Path, alone: Path) -> None:
    ours, theirs = lines(directory), lines(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(1, STEPS + 1))
    for line, other in zip(ours, theirs, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    weights = load_model(alone / "policy").state_dict()
    for name, weight in load_model(directory / "policy").state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------- ends
def test_killed_with_its_parent_a_training_goes_on_from_its_state_to_the_same_weights(
    policy: Policy, alone: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "training"
    parent = started(policy, directory, signal.SIGKILL)
    wait_for(lambda: len(of_job(directory)) == 2 or parent.poll() is not None)
    assert parent.wait() == -signal.SIGKILL
    wait_for(lambda: not of_job(directory))
    assert not (directory / "policy").exists()
    saved = torch.load(directory / STATE / "state.pt", weights_only=True)["step"]

    steps: list[tuple[int, int]] = []
    trained, outcome = train_in_processes(
        policy, lesson_of(policy), SETTINGS, directory, lambda done, total, note: steps.append((done, total))
    )
    assert steps == [(step, STEPS) for step in range(saved + 1, STEPS + 1)]
    assert_same_training(directory, alone)
    assert trained == read_policy(directory / "policy")
    assert outcome.metrics["step"] == STEPS
    assert not (directory / JOB).exists()
    assert not of_job(directory)
    steps.clear()
    assert train_in_processes(policy, lesson_of(policy), SETTINGS, directory)[0] == trained
    assert steps == []


def test_told_to_end_all_processes_save_the_same_step_and_one_alone_can_go_on(
    policy: Policy, alone: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "training"
    parent = started(policy, directory, signal.SIGTERM)
    assert parent.wait(PATIENCE) == 128 + signal.SIGTERM
    assert not of_job(directory)
    saved = torch.load(directory / STATE / "state.pt", weights_only=True)["step"]
    assert saved == len(lines(directory)) < STEPS
    assert not (directory / "policy").exists()

    steps: list[int] = []
    train_policy(policy, lesson_of(policy), SETTINGS, directory, lambda done, *_: steps.append(done))
    assert steps == list(range(saved + 1, STEPS + 1))
    assert_same_training(directory, alone)


# ---------------------------------------------------------------------------------------------- failures
def test_what_one_process_raises_ends_all_and_is_what_the_caller_gets(policy: Policy, tmp_path: Path) -> None:
    """A reference that is wrong for one row: only the process that has it finds out."""
    lesson = lesson_of(policy)
    poisoned = KnownReference({**lesson.reference.logps, lesson.examples[0].rows[0]: -1.0})
    settings = SETTINGS.model_copy(update={"batch_size": len(lesson.examples)})
    with pytest.raises(StepZeroError, match="nats a completion away from its reference"):
        train_in_processes(policy, replace(lesson, reference=poisoned), settings, tmp_path)
    assert not of_job(tmp_path)
    assert not (tmp_path / "policy").exists()


def test_a_process_that_is_killed_ends_all_with_one_error_that_names_it(policy: Policy, tmp_path: Path) -> None:
    def kill_second(done: int, _total: int, _note: str) -> None:
        if done == 1:
            ranks = {process.environ()["RANK"]: process for process in of_job(tmp_path)}
            ranks["1"].kill()

    with pytest.raises(TrainingError, match=r"process 2 of 2 ended before its time \(exit code -9\)"):
        train_in_processes(policy, lesson_of(policy), SETTINGS, tmp_path, kill_second)
    assert not of_job(tmp_path)


# ---------------------------------------------------------------------------------------------- torchrun
@pytest.mark.soak
def test_torchrun_starts_the_same_processes(policy: Policy, alone: Path, tmp_path: Path) -> None:
    job = tmp_path / JOB
    job.write_bytes(pickle.dumps((policy, lesson_of(policy), SETTINGS, tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, "-m", "trainers.launch", job], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert_same_training(tmp_path, alone)


@pytest.mark.soak
def test_a_training_in_two_processes_killed_half_way_goes_on_bit_for_bit(policy: Policy, tmp_path: Path) -> None:
    whole, _ = train_in_processes(policy, lesson_of(policy), SETTINGS, tmp_path / "whole")
    directory = tmp_path / "training"
    assert started(policy, directory, signal.SIGKILL).wait() == -signal.SIGKILL
    wait_for(lambda: not of_job(directory))
    again, _ = train_in_processes(policy, lesson_of(policy), SETTINGS, directory)
    assert again.digest == whole.digest
    assert lines(directory) == lines(tmp_path / "whole")
