"""One session of a training in a process of its own, for tests that kill it: ``python -m tests.trainers.session JSON``.

Its lesson is the same whenever it is asked for the same, so that a test can go on with it, or repeat it undisturbed.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.config import TrainerConfig
from pipeline.policy import read_policy
from pipeline.protocols import Progress, silent
from pipeline.types import Policy
from tests.tiny import EOS
from tests.trainers.trainings import make_examples, make_lesson
from trainers.dpo import train_policy
from trainers.examples import Pair, Row
from trainers.lesson import Lesson, Trained

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0
"""Seconds until a test that waits gives up."""


def lesson_of(policy: Policy, config: TrainerConfig, kind: str) -> Lesson:
    if kind == "long":
        return make_lesson(policy, _long_examples())
    examples = make_examples(policy, 30)
    prompts = tuple(dict.fromkeys(example.rows[0].prompt for example in examples))
    return make_lesson(policy, examples[:22], dtype=config.dtype, held_out=examples[22:], sample_prompts=prompts)


def _long_examples() -> list[Pair]:
    """64 prompts of 100 tokens with two completions of 100: 19 thousand tokens in a batch."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, 30, (length,), generator=generator).tolist())

    prompts = [draw(100) for _ in range(64)]
    return [Pair(Row(prompt, (*draw(99), EOS)), Row(prompt, (*draw(99), EOS))) for prompt in prompts]


def go_on(policy: Policy, directory: Path, config: TrainerConfig, kind: str, progress: Progress = silent) -> Any:
    """Train, in this process: what ``train_policy`` returns."""
    result: tuple[Policy, Trained] = train_policy(policy, lesson_of(policy, config, kind), config, directory, progress)
    return result


def start(policy: Policy, directory: Path, config: TrainerConfig, kind: str, **more: int) -> "subprocess.Popen[bytes]":
    """Train, in another process; ``memory``, ``end_at`` and ``by`` are what :func:`main` says they are."""
    settings = {"policy": str(policy.path), "directory": str(directory), "kind": kind, **more}
    settings["config"] = config.model_dump_json()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "MALLOC_MMAP_THRESHOLD_": "100000",  # what a step took goes back, so that a limit can be set after one
    }  # fmt: skip
    with open(directory.with_suffix(".err"), "wb") as err:
        command = [sys.executable, "-m", "tests.trainers.session", json.dumps(settings)]
        return subprocess.Popen(command, env=environment, stderr=err, stdin=subprocess.DEVNULL, cwd=ROOT)


def steps_done(directory: Path) -> int:
    file = directory / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def until(condition: Callable[[], bool], *processes: "subprocess.Popen[bytes]") -> None:
    """Wait for ``condition``; an error where one of ``processes`` ends before it holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert not [ended.returncode for ended in processes if ended.poll() is not None]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def main(settings: dict[str, Any]) -> None:
    """``memory``: bytes of address space it may take beyond what it has after its first step. ``end_at``: the step
    after which it sends itself a signal, the one that ``by`` says, or SIGKILL."""

    def progress(done: int, total: int, note: str) -> None:
        if done == 1 and "memory" in settings:
            has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (has + settings["memory"],) * 2)
        if done == settings.get("end_at"):
            os.kill(os.getpid(), settings.get("by", signal.SIGKILL))

    config = TrainerConfig.model_validate_json(settings["config"])
    go_on(read_policy(Path(settings["policy"])), Path(settings["directory"]), config, settings["kind"], progress)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
