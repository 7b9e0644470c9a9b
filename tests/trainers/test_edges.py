"""Trainings at their edges: sessions that end where an epoch does, or while they measure; next to no data."""

import json
import logging
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from pipeline.config import LossConfig
from pipeline.errors import DataError
from pipeline.types import Policy
from tests.tiny import make_policy
from tests.trainers.trainings import config, lines, make_examples, make_lesson
from trainers import loop
from trainers.checkpoints import load_model
from trainers.data import split_held_out
from trainers.dpo import objective_of, train, train_policy
from trainers.examples import Example, Pair, Row
from trainers.lesson import Lesson
from trainers.loop import Loop
from trainers.metrics import Sample
from trainers.packed import PackedPolicy
from trainers.reference import mismatches
from trainers.samples import sample_completions
from trainers.step import Step
from trainers.weights import Weights

LOSSES = [each.model_fields["type"].annotation.__args__[0] for each in get_args(get_args(LossConfig)[0])]
TWO_EPOCHS: dict[str, Any] = {"epochs": 2, "eval_steps": 3, "guards": {"kl": None}}
"""Of five steps each, the last of one of two examples."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return make_policy(tmp_path_factory.mktemp("policy"), layers=1)


@pytest.fixture(scope="module")
def lesson(policy: Policy) -> Lesson:
    examples = make_examples(policy, 30)
    prompts = tuple(example.rows[0].prompt for example in examples[:2])
    return make_lesson(policy, examples[:22], held_out=examples[22:], sample_prompts=prompts)


@pytest.fixture(scope="module")
def whole(policy: Policy, lesson: Lesson, tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Path]:
    """What comes of it where nothing happens, and where its figures are."""
    out = tmp_path_factory.mktemp("whole")
    return train_policy(policy, lesson, config(**TWO_EPOCHS), out)[0], out


# ---------------------------------------------------------------------------------------------- sessions that end
def at_step(number: int, patch: pytest.MonkeyPatch) -> Callable[[int, int, str], None]:
    """SIGTERM when that step is done."""
    return lambda done, total, note: signal.raise_signal(signal.SIGTERM) if done == number else None


def while_measuring(number: int, patch: pytest.MonkeyPatch) -> Callable[[int, int, str], None]:
    """SIGTERM when the ``number``-th evaluation is half done."""
    evaluate, times = Step._statistics, iter(range(1, 100))

    def interrupted(self: Step, rows: Any) -> Any:
        if next(times) == number:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(self, rows)

    patch.setattr(Step, "_statistics", interrupted)
    return lambda done, total, note: None


def while_sampling(number: int, patch: pytest.MonkeyPatch) -> Callable[[int, int, str], None]:
    sample, times = loop.sample_completions, iter(range(1, 100))

    def interrupted(*arguments: Any) -> Any:
        if next(times) == number:
            signal.raise_signal(signal.SIGTERM)
        return sample(*arguments)

    patch.setattr(loop, "sample_completions", interrupted)
    return lambda done, total, note: None


@pytest.mark.parametrize(
    ("moment", "number", "done", "every"),
    [
        (at_step, 5, 5, 100),  # the end of the first epoch
        (at_step, 5, 5, 5),  # there is a state of it anyway
        (at_step, 10, 10, 100),  # the end
        (while_measuring, 1, 3, 100),
        (while_measuring, 4, 10, 3),  # at the end
        (while_sampling, 2, 6, 100),
    ],
)
def test_a_session_that_is_ended_loses_no_step_and_the_next_ends_the_same(
    policy: Policy, lesson: Lesson, whole: tuple[Policy, Path], tmp_path: Path,
    moment: Callable[[int, pytest.MonkeyPatch], Callable[[int, int, str], None]], number: int, done: int, every: int,
) -> None:  # fmt: skip
    settings = config(**TWO_EPOCHS, checkpoint_steps=every)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        train_policy(policy, lesson, settings, tmp_path, moment(number, patch))
    assert ended.value.code == 128 + signal.SIGTERM
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, done + 1))
    steps: list[int] = []
    trained, _ = train_policy(policy, lesson, settings, tmp_path, lambda step, total, note: steps.append(step))
    assert steps == list(range(done + 1, 11))
    assert trained.digest == whole[0].digest
    assert lines(tmp_path) == lines(whole[1])
    assert (tmp_path / "samples.jsonl").read_text() == (whole[1] / "samples.jsonl").read_text()


def test_memory_that_runs_out_while_measuring_leaves_the_training_as_it_is(
    policy: Policy,
    lesson: Lesson,
    whole: tuple[Policy, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its budget is part of its rounding, and a state from before the evaluation has the old one."""
    measure, budgets = Step.measure, []

    def failing(self: Step, examples: Any) -> dict[str, float]:
        budgets.append(self.token_budget)
        if len(budgets) == 1:
            raise MemoryError
        return measure(self, examples)

    monkeypatch.setattr(Step, "measure", failing)
    with caplog.at_level(logging.WARNING, "ratchet.trainers"):
        trained, _ = train_policy(policy, lesson, config(**TWO_EPOCHS), tmp_path)
    assert caplog.messages == [f"out of memory on 70 tokens at once; the token budget is now {budgets[1]}"]
    assert budgets[0] == 100 > budgets[1] and set(budgets[1:]) == {budgets[1]}
    assert trained.digest == whole[0].digest
    for ours, theirs in zip(lines(tmp_path), lines(whole[1]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_memory_that_runs_out_on_samples_costs_those_of_that_step_alone(
    policy: Policy,
    lesson: Lesson,
    whole: tuple[Policy, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = []

    def failing(*given: Any) -> list[Sample]:
        calls.append(given)
        if len(calls) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return sample_completions(*given)

    monkeypatch.setattr(loop, "sample_completions", failing)
    with caplog.at_level(logging.WARNING, "ratchet.trainers"):
        trained, _ = train_policy(policy, lesson, config(**TWO_EPOCHS), tmp_path)
    assert caplog.messages == ["out of memory on sample completions; step 6 has none"]
    assert trained.digest == whole[0].digest
    assert lines(tmp_path) == lines(whole[1])
    shown = [json.loads(line) for line in (whole[1] / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in shown} == {3, 6, 9, 10}
    left = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert left == [sample for sample in shown if sample["step"] != 6]


def test_a_budget_below_the_smallest_prompt_group_runs_them_one_by_one(policy: Policy, lesson: Lesson) -> None:
    some = lesson.examples[:9]
    prompts = len({example.rows[0].prompt for example in some})
    norms, packs = [], []
    for budget in (16, 100_000):
        model = load_model(policy.path)
        weights = Weights(model, "float32")
        step = Step(PackedPolicy(model, weights), objective_of(config()), lesson.reference, budget)
        packs.append(len(list(step._packs(row for example in some for row in example.rows))))
        step.backward(some)
        norms.append(weights.clip(1e9))
    assert packs == [prompts, 1] and prompts > 2
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


# ---------------------------------------------------------------------------------------------- next to no data
def one_pair(examples: list[Example]) -> list[Example]:
    return examples[:1]


def one_prompt(examples: list[Example]) -> list[Example]:
    prompt = examples[0].rows[0].prompt
    return [Pair(*(Row(prompt, row.completion) for row in example.rows), margin=1.0) for example in examples[:3]]


def one_token(examples: list[Example]) -> list[Example]:
    """A completion each, and no input but the prompt."""
    prompt = examples[0].rows[0].prompt
    return [Pair(Row(prompt, (5,)), Row(prompt, (6,)), margin=1.0)]


@pytest.mark.parametrize("few", [one_pair, one_prompt, one_token])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_from_next_to_no_data_or_says_why_not(
    policy: Policy, tmp_path: Path, loss: str, few: Callable[[list[Example]], list[Example]]
) -> None:
    examples = few(make_examples(policy, 8))
    terms = [{"type": loss}] if loss != "nll" else [{"type": "sigmoid"}, {"type": "nll", "weight": 0.1}]
    settings = config(loss=terms, epochs=2, batch_size=2, guards={"kl": None})
    needs = objective_of(settings).needs
    if "mismatched" in needs:
        with pytest.raises(DataError, match="all examples have one prompt"):
            mismatches(examples)
        return
    lesson = make_lesson(policy, examples, live=policy if "reference_kl" in needs else None)
    trained = train(load_model(policy.path), lesson, settings, tmp_path)
    found = lines(tmp_path)
    assert len(found) == 2 * math.ceil(len(examples) / 2)
    assert all(math.isfinite(value) for line in found for value in line.values())
    assert trained.metrics["grad_norm"] > 0
    assert not any(name.startswith("eval/") for line in found for name in line)


def test_of_one_prompt_nothing_can_be_held_out(policy: Policy) -> None:
    with pytest.raises(DataError, match=r"held_out: 0\.1 of 1 prompts"):
        split_held_out(one_prompt(make_examples(policy, 8)), 0.1)


def test_epochs_that_end_in_a_smaller_batch_have_all_examples_once(
    policy: Policy, lesson: Lesson, tmp_path: Path
) -> None:
    model = load_model(policy.path)
    weights = Weights(model, "float32")
    settings = config(**TWO_EPOCHS)
    step = Step(PackedPolicy(model, weights), objective_of(settings), lesson.reference, 100)
    batches = Loop(step, weights, lesson, settings, tmp_path).batches
    assert [len(batch) for _, batch in batches] == [5, 5, 5, 5, 2] * 2
    assert [sorted(index for _, batch in part for index in batch) for part in (batches[:5], batches[5:])] == [
        list(range(22))
    ] * 2
    assert [epoch for epoch, _ in batches][4::5] == [1.0, 2.0]
