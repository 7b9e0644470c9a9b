"""Two processes, started by torchrun, against one: the same steps, the same weights.

One start of torchrun does all trainings, for starting takes longer than training.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import TrainerConfig
from pipeline.types import Policy
from tests.tiny import make_policy
from tests.trainers.trainings import all_lines, config, known, make_examples, make_lesson
from trainers.checkpoints import load_model
from trainers.dpo import train_policy
from trainers.examples import Example, Pair, Single
from trainers.lesson import Lesson
from trainers.reference import mismatches

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {"loss", "grad_norm", "kl", "rewards/margins", "rewards/desirable", "eval/loss"}
CASES: Mapping[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tied": True},
    "adapters": {"lora": {"rank": 4}},
    "coupled loss": {"loss": [{"type": "kto"}], "tied": True},
    "an empty share": {"batch_size": 1, "epochs": 1, "pairs": 4},
    "live reference": {"loss": [{"type": "tdpo2"}], "pairs": 6},
    "live base": {"loss": [{"type": "tdpo2"}], "lora": {"rank": 4}, "pairs": 6},
    "layers run again": {"recompute": True, "tied": True},
    "bfloat16": {"dtype": "bfloat16", "tied": True},
}
COMPILED = {"compile": True, "epochs": 1, "pairs": 12}
WATCHED = ("tied", "adapters")
"""Those with sample completions."""


def training(name: str, folder: Path) -> tuple[Policy, Lesson, TrainerConfig]:
    changes = dict(COMPILED if name == "compiled" else CASES[name])
    policy = make_policy(folder / "policy", tied=changes.pop("tied", False))
    pairs = make_examples(policy, changes.pop("pairs", 10) + 4)
    settings = config(**{"eval_steps": 2, "checkpoint_steps": 2, **changes})
    examples: list[Example] = list(pairs)
    if settings.loss[0].type == "kto":
        examples = [Single(row, row is pair.chosen) for pair in pairs if isinstance(pair, Pair) for row in pair.rows]
    mismatched = mismatches(examples)
    lesson = make_lesson(
        policy, examples[:-4], dtype=settings.dtype, held_out=examples[-4:], mismatched=mismatched,
        reference=known(policy, examples, mismatched, settings.dtype),
        sample_prompts=[pairs[0].rows[0].prompt] if name in WATCHED else (),
    )  # fmt: skip
    if settings.loss[0].type == "tdpo2":
        lesson = replace(lesson, live=policy)
    return policy, lesson, settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_in(tmp_path_factory.mktemp("parallel"), CASES, 2)


def train_in(root: Path, cases: Collection[str], processes: int) -> Path:
    """Of each case ``one`` and ``two``, the directories of its trainings in one and in several processes."""
    jobs = []
    for name in cases:
        policy, lesson, settings = training(name, root / name)
        jobs.append(root / name / "job")
        jobs[-1].write_bytes(pickle.dumps((policy, lesson, settings, root / name / "two")))
        train_policy(policy, lesson, settings, root / name / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "-m", "tests.trainers.several", *jobs], env=environment, check=True, cwd=root)
    return root


@pytest.mark.parametrize("name", [name for name in CASES if name != "bfloat16"])
def test_two_processes_take_the_steps_of_one_to_the_same_weights(folder: Path, name: str) -> None:
    assert_same(folder, name)


@pytest.mark.soak
def test_three_processes_and_compiled_layers_do_so_too(tmp_path: Path) -> None:
    cases = ("tied", "adapters", "coupled loss", "an empty share", "live base", "compiled")
    folder = train_in(tmp_path, cases, 3)
    for name in cases:
        assert_same(folder, name)


def assert_same(folder: Path, name: str) -> None:
    one, two = (all_lines(folder / name / size) for size in ("one", "two"))
    assert len(one) > 2
    for line, other in zip(one, two, strict=True):
        assert line.keys() == other.keys()
        for figure in line.keys() & FIGURES:
            assert other[figure] == pytest.approx(line[figure], rel=1e-5, abs=1e-5), figure
    start, ours, theirs = (
        load_model(folder / name / size).state_dict() for size in ("policy", "two/policy", "one/policy")
    )
    assert ours.keys() == theirs.keys()
    for parameter, expected in theirs.items():
        torch.testing.assert_close(ours[parameter], expected, rtol=1e-5, atol=1e-5)
    assert max(float((theirs[each] - start[each]).abs().max()) for each in theirs) > 1e-3


def test_in_bfloat16_two_processes_differ_by_the_rounding_of_steps_and_never_of_weights(folder: Path) -> None:
    one, two = (all_lines(folder / "bfloat16" / size) for size in ("one", "two"))
    for line, other in zip(one, two, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=0.02)
        assert other["grad_norm"] == pytest.approx(line["grad_norm"], rel=0.05)
    policies = [load_model(folder / "bfloat16" / size / "policy").state_dict() for size in ("one", "two")]
    for name, weight in policies[1].items():
        assert float((policies[0][name] - weight).abs().mean()) < 3e-4, name
        assert not torch.equal(weight, weight.bfloat16().float()), name


def test_files_are_written_once_and_samples_are_the_same(folder: Path) -> None:
    for name in WATCHED:
        one, two = (folder / name / size for size in ("one", "two"))
        assert (two / "samples.jsonl").read_text() == (one / "samples.jsonl").read_text() != ""
        assert len(list((two / "tensorboard").iterdir())) == 1
        assert sorted(file.name for file in two.iterdir()) == sorted(file.name for file in one.iterdir())
