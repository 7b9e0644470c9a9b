"""A training from end to end: what it learns, what changes nothing, and what is refused."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import DataError, TrainingError
from pipeline.policy import tensor_shapes
from pipeline.types import Policy
from tests.tiny import make_policy
from tests.trainers.trainings import config, known, lines, make_examples, make_lesson
from trainers.checkpoints import load_model, load_tokenizer, save_policy, saved_dtype
from trainers.dpo import train_policy
from trainers.examples import Example, Pair, Single
from trainers.lesson import Lesson, Trained
from trainers.reference import mismatches
from trainers.step import KnownReference


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def examples(policy: Policy) -> list[Example]:
    return make_examples(policy)


@pytest.fixture(scope="module")
def lesson(policy: Policy, examples: list[Example]) -> Lesson:
    return make_lesson(policy, examples)


def run(policy: Policy, lesson: Lesson, directory: Path, **changes: Any) -> tuple[Policy, Trained]:
    return train_policy(policy, lesson, config(**changes), directory)


def parameters(policy: Policy) -> dict[str, torch.Tensor]:
    return dict(load_model(policy.path).named_parameters())


def assert_close(ours: Policy, theirs: Policy, atol: float) -> None:
    left, right = parameters(ours), parameters(theirs)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0.0, atol=atol)


def pairs_of(examples: Sequence[Example]) -> list[Pair]:
    return [example for example in examples if isinstance(example, Pair)]


# ---------------------------------------------------------------------------------------------- learning
def test_training_starts_at_ln_2_and_raises_the_margin(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    trained, outcome = train_policy(
        policy, lesson, config(epochs=6), tmp_path, lambda done, total, _: seen.append((done, total))
    )
    rows = lines(tmp_path)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert outcome.metrics["loss"] < 0.4
    assert outcome.metrics["rewards/margins"] > 1
    assert outcome.stopped is None
    steps = 6 * 5  # 22 pairs in batches of 5: the fifth holds the last two
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert [row["epoch"] for row in rows] == pytest.approx([step / 5 for step in range(1, steps + 1)])
    assert seen == [(step, steps) for step in range(1, steps + 1)]
    assert trained.digest != policy.digest
    assert not (tmp_path / "state").exists()
    after, before = known(trained, lesson.examples).logps, lesson.reference.logps
    margins = [
        after[pair.chosen] - before[pair.chosen] - after[pair.rejected] + before[pair.rejected]
        for pair in pairs_of(lesson.examples)
    ]
    assert sum(margins) / len(margins) > 10  # nats; β is 0.1


def test_metrics_are_means_over_the_batch(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    count = Counter(row for pair in pairs_of(lesson.examples) for row in pair.rows)
    pairs = [pair for pair in pairs_of(lesson.examples) if all(count[row] == 1 for row in pair.rows)]
    logps, n = lesson.reference.logps, len(pairs)
    shifted = {pair.chosen: logps[pair.chosen] - 2.0 for pair in pairs}
    shifted |= {pair.rejected: logps[pair.rejected] + 1.0 for pair in pairs}
    away = make_lesson(
        policy, pairs, reference=KnownReference(shifted), starts_at_reference=False, initial_logps=logps
    )  # fmt: skip
    run(policy, away, tmp_path, batch_size=22, epochs=1, beta=0.5)
    (row,) = lines(tmp_path)
    assert row["rewards/chosen"] == pytest.approx(1.0, abs=1e-5)
    assert row["rewards/rejected"] == pytest.approx(-0.5, abs=1e-5)
    assert row["rewards/margins"] == pytest.approx(1.5, abs=1e-5)
    assert row["rewards/accuracies"] == 1
    assert row["loss"] == pytest.approx(math.log1p(math.exp(-1.5)), abs=1e-5)
    assert row["logps/chosen"] == pytest.approx(sum(logps[pair.chosen] for pair in pairs) / n, abs=1e-4)
    assert row["lengths/rejected"] == sum(len(pair.rejected.completion) for pair in pairs) / n
    nll = sum(-logps[pair.chosen] / len(pair.chosen.completion) for pair in pairs) / n
    assert row["nll"] == pytest.approx(nll, abs=1e-5)
    assert row["kl"] == pytest.approx((-2.0 + 1.0) / 2, abs=1e-4)
    assert row["kl_initial"] == pytest.approx(0.0, abs=1e-4)


def test_loss_terms_are_weighted_and_added_and_told_apart(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    run(policy, lesson, tmp_path, loss=[{"type": "sigmoid", "weight": 2.0}, {"type": "nll", "weight": 0.25}])
    row = lines(tmp_path)[0]
    assert row["loss/sigmoid"] == pytest.approx(math.log(2), abs=1e-5)
    assert row["loss/nll"] == pytest.approx(row["nll"], abs=1e-6)
    assert row["loss"] == pytest.approx(2 * row["loss/sigmoid"] + 0.25 * row["loss/nll"], abs=1e-6)


@pytest.mark.parametrize("kind", ["kto", "bco"])
def test_labelled_completions_are_learnt_from_one_by_one(
    policy: Policy, examples: list[Example], tmp_path: Path, kind: str
) -> None:
    pairs = pairs_of(examples)
    singles = [Single(row, row == pair.chosen, prompt_id=pair.prompt_id) for pair in pairs for row in pair.rows]
    mismatched = mismatches(singles) if kind == "kto" else {}
    lesson = make_lesson(policy, singles, mismatched=mismatched)
    _, outcome = run(policy, lesson, tmp_path, loss=[{"type": kind}], epochs=6, batch_size=11)
    first, last = lines(tmp_path)[0], outcome.metrics
    assert first["loss"] == pytest.approx({"kto": 0.5, "bco": math.log(2)}[kind], abs=1e-4)
    assert last["rewards/desirable"] > last["rewards/undesirable"] + 0.3
    assert last["loss"] < first["loss"]


def test_a_loss_without_a_reference_needs_none(policy: Policy, examples: list[Example], tmp_path: Path) -> None:
    alone = make_lesson(policy, examples, reference=KnownReference(), starts_at_reference=False)
    _, outcome = run(policy, alone, tmp_path, loss=[{"type": "simpo"}], epochs=3, reference="none")
    assert "kl" not in outcome.metrics
    assert outcome.metrics["logps/chosen"] > lines(tmp_path)[0]["logps/chosen"]


# ---------------------------------------------------------------------------------------------- what changes nothing
def test_the_token_budget_changes_memory_and_not_the_result(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    one, some, all_at_once = (
        run(policy, lesson, tmp_path / str(budget), token_budget=budget) for budget in (16, 100, 100_000)
    )
    for trained, outcome in (some, all_at_once):
        assert outcome.metrics["loss"] == pytest.approx(one[1].metrics["loss"], abs=1e-6)
        assert outcome.metrics["grad_norm"] == pytest.approx(one[1].metrics["grad_norm"], rel=1e-4)
        assert_close(trained, one[0], 1e-4)  # Adam: ±rate where a gradient is all noise


def test_recomputing_activations_changes_nothing(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    kept, _ = run(policy, lesson, tmp_path / "kept")
    again, _ = run(policy, lesson, tmp_path / "again", recompute=True)
    assert again.digest == kept.digest
    assert lines(tmp_path / "again") == lines(tmp_path / "kept")


def test_a_rate_of_zero_learns_nothing(policy: Policy, examples: list[Example], tmp_path: Path) -> None:
    idle = make_lesson(policy, examples, rate=0.0)
    trained, _ = run(policy, idle, tmp_path, weight_decay=1.0)
    assert trained.digest == policy.digest
    assert [row["loss"] for row in lines(tmp_path)] == pytest.approx([math.log(2)] * 10, abs=1e-5)


def test_the_seed_orders_the_data_and_decides_the_weights(
    policy: Policy, examples: list[Example], tmp_path: Path
) -> None:
    digests = [
        run(policy, make_lesson(policy, examples, seed=seed), tmp_path / str(number))[0].digest
        for number, seed in enumerate([0, 0, 1])
    ]
    assert digests[0] == digests[1] != digests[2]


# ---------------------------------------------------------------------------------------------- the optimiser
def test_clipping_and_weight_decay_reach_the_optimiser(policy: Policy, examples: list[Example], tmp_path: Path) -> None:
    """Clipped to nothing, a step is the decay alone: weights shrink by rate × decay."""
    fast = make_lesson(policy, examples, rate=0.1)
    trained, _ = run(policy, fast, tmp_path, batch_size=22, epochs=1, weight_decay=1.0, max_grad_norm=1e-12)
    before, after = parameters(policy), parameters(trained)
    for name in before:
        torch.testing.assert_close(after[name], 0.9 * before[name], rtol=0.0, atol=1e-4)


def test_the_norm_that_is_told_is_from_before_clipping(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    for number, largest in enumerate((1e9, 1e-3)):
        run(policy, lesson, tmp_path / str(number), epochs=1, max_grad_norm=largest)
    free, clipped = (lines(tmp_path / name)[0]["grad_norm"] for name in "01")
    assert free == clipped > 0.1


def test_rates_follow_the_config(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    run(policy, lesson, tmp_path, schedule="linear", warmup_ratio=0.15)
    rates = [1e-3 * factor for factor in (0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8)]
    assert [row["learning_rate"] for row in lines(tmp_path)] == pytest.approx(rates)


def test_a_batch_ends_with_its_completion_tokens(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    run(policy, lesson, tmp_path, epochs=1, batch_size=22, batch_tokens=40)
    rows = lines(tmp_path)
    assert len(rows) > 2
    total = sum(len(row.completion) for example in lesson.examples for row in example.rows)
    assert len(rows) <= math.ceil(total / 40)


# ---------------------------------------------------------------------------------------------- the trained policy
def test_a_16_bit_policy_goes_on_in_float32_so_that_no_small_update_is_rounded_away(tmp_path: Path) -> None:
    """A step of 1e-6 is far below what a bfloat16 weight can move by, and must be in the next round's start."""
    policy = make_policy(tmp_path / "policy", dtype=torch.bfloat16, tied=True)
    lesson = make_lesson(policy, make_examples(policy), rate=1e-6, dtype="bfloat16")
    trained, outcome = run(policy, lesson, tmp_path / "out", dtype="bfloat16", epochs=1)
    assert outcome.metrics["loss"] < math.log(2) + 0.1
    assert tensor_shapes(trained.path) == tensor_shapes(policy.path)
    assert saved_dtype(trained.path) == torch.float32
    before, after = load_model(policy.path).state_dict(), load_model(trained.path).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert (before[name] != after[name]).float().mean() > 0.9
    assert (before[name] == after[name].bfloat16()).float().mean() > 0.9  # what 16 bit would have kept of it


def test_the_trained_policy_runs_like_any_other(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    """Nothing of the packed attention is in what is saved."""
    trained, _ = run(policy, lesson, tmp_path / "out")
    again = save_policy(load_model(trained.path), load_tokenizer(trained.path), tmp_path / "again")
    assert again.digest == trained.digest
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (trained.path / name).read_text() == (again.path / name).read_text()


# ---------------------------------------------------------------------------------------------- what is refused
def test_nothing_to_learn_from_and_losses_that_cannot_are_clear_errors(
    policy: Policy, examples: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="nothing to train on"):
        run(policy, make_lesson(policy, [], reference=KnownReference()), tmp_path)
    singles = [Single(example.rows[0], True) for example in examples]
    with pytest.raises(DataError, match="loss 'sigmoid' compares pairs"):
        run(policy, make_lesson(policy, singles), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
