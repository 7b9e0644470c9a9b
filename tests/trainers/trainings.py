"""Trainings of the tiny policies: random pairs and their reference in, and what a training of them leaves."""

import json
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import TrainerConfig
from pipeline.types import Policy
from tests.trainers.examples import make_pairs
from trainers.checkpoints import load_specials
from trainers.encoding import encode_pairs
from trainers.examples import Example, Row
from trainers.lesson import Lesson
from trainers.reference import Reference, reference_rows
from trainers.step import KnownReference

OF_THE_MACHINE = ("pairs_per_second", "tokens_per_second", "memory/process_gib", "memory/gpu_gib", "mfu")
"""Figures that no seed decides."""


def config(**changes: Any) -> TrainerConfig:
    return TrainerConfig(**({"batch_size": 5, "epochs": 2, "token_budget": 100, "schedule": "constant"} | changes))


def make_examples(policy: Policy, count: int = 22, seed: int = 0) -> list[Example]:
    return list(encode_pairs(make_pairs(count, seed), load_specials(policy.path)))


def known(
    policy: Policy, examples: Sequence[Example], mismatched: Mapping[Row, Row] | None = None, dtype: str = "float32"
) -> KnownReference:
    """Log-probabilities of all that a training on ``examples`` asks for, tokens' and sums."""
    rows = reference_rows(examples, mismatched or {})
    tokens = dict(zip(rows, Reference(policy, dtype, 1000).token_logps(rows), strict=True))
    return KnownReference({row: sum(logps) for row, logps in tokens.items()}, tokens)


def make_lesson(
    policy: Policy, examples: Sequence[Example], rate: float = 1e-3, dtype: str = "float32", **more: Any
) -> Lesson:
    """``examples`` against the policy itself, unless told otherwise."""
    settings = {"seed": 7, "starts_at_reference": True} | more
    if "reference" not in settings:
        everything = [*examples, *settings.get("held_out", ())]
        settings["reference"] = known(policy, everything, settings.get("mismatched"), dtype)
    return Lesson(examples, learning_rate=rate, **settings)


def all_lines(directory: Path) -> list[dict[str, Any]]:
    """The figures of each step."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def lines(directory: Path) -> list[dict[str, Any]]:
    """The same without those that no seed decides."""
    return [{name: each for name, each in line.items() if name not in OF_THE_MACHINE} for line in all_lines(directory)]


@contextmanager
def full_disk(most: int = 20_000) -> Iterator[None]:
    """Within, no file of this process can grow beyond ``most`` bytes: to who writes, as where the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
