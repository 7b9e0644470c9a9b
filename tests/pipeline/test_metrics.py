"""Known values, symmetries, and intervals that hold the truth as often as they say."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.metrics import kl_estimate, mean_delta, win_rate

score = st.none() | st.integers(-3, 3).map(float)
prompts = st.lists(st.tuples(st.lists(score, max_size=5), st.lists(score, max_size=5)), min_size=1, max_size=8)


def test_win_rate_counts_all_pairs_of_samples_and_half_of_ties() -> None:
    # Prompt 1: 2 > 1, 2 = 2, 0 < 1, 0 < 2 gives 1.5 of 4. Prompt 2: 1 of 1. Each prompt weighs the same.
    found = win_rate([[2, 0], [5]], [[1, 2], [4]])
    assert found.value == pytest.approx((1.5 / 4 + 1) / 2)
    assert (found.prompts, found.left_out, found.abstained) == (2, 0, 0)


def test_mean_delta_is_the_mean_over_prompts_of_differences_of_means() -> None:
    assert mean_delta([[2, 0], [5]], [[1, 2, 3], [1]]).value == pytest.approx((-1 + 4) / 2)


@pytest.mark.parametrize("statistic", [win_rate, mean_delta])
def test_abstentions_are_left_out_and_counted(statistic: Any) -> None:
    with_gaps = statistic([[2, None, 0], [5], [None], [1]], [[1, 2], [math.nan, 4], [3], []])
    assert with_gaps.value == statistic([[2, 0], [5]], [[1, 2], [4]]).value
    assert (with_gaps.prompts, with_gaps.left_out, with_gaps.abstained) == (2, 2, 3)


@pytest.mark.parametrize("statistic", [win_rate, mean_delta])
def test_one_prompt_has_a_value_and_no_interval_and_none_has_neither(statistic: Any) -> None:
    one = statistic([[1.0, 2.0]], [[0.0]])
    assert not math.isnan(one.value)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = statistic([[None]], [[0.0]])
    assert math.isnan(none.value)
    assert (none.prompts, none.left_out, none.abstained) == (0, 1, 1)


def test_sides_with_different_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="longer than argument 1"):
        win_rate([[1.0]], [[1.0], [2.0]])


@given(prompts)
def test_win_rate_is_antisymmetric_interval_included(
    drawn: list[tuple[list[float | None], list[float | None]]],
) -> None:
    new, old = [a for a, _ in drawn], [b for _, b in drawn]
    there, back = win_rate(new, old, resamples=200), win_rate(old, new, resamples=200)
    assert there.value == pytest.approx(1 - back.value, nan_ok=True)
    assert there.low == pytest.approx(1 - back.high, nan_ok=True)
    assert there.high == pytest.approx(1 - back.low, nan_ok=True)
    assert (there.prompts, there.left_out, there.abstained) == (back.prompts, back.left_out, back.abstained)


@given(prompts)
def test_interval_is_a_range_of_probabilities_and_a_policy_against_itself_is_even(drawn: Any) -> None:
    new, old = [a for a, _ in drawn], [b for _, b in drawn]
    found = win_rate(new, old, resamples=200)
    if found.prompts > 1:
        assert 0 <= found.low <= found.high <= 1
    itself = win_rate(new, new, resamples=200)
    if itself.prompts:
        assert itself.value == 0.5
        assert mean_delta(new, new).value == 0


def test_same_seed_same_interval_and_another_seed_another(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(0)
    new, old = draws.normal(0.2, 1, (50, 4)), draws.normal(0, 1, (50, 4))
    first = mean_delta(new, old, seed=1)
    assert first == mean_delta(new, old, seed=1)
    assert first != mean_delta(new, old, seed=2)
    monkeypatch.setattr(metrics, "BLOCK", 170)  # three resamples at a time
    assert first == mean_delta(new, old, seed=1)


def coverage(statistic: Any, truth: float, shift: float) -> float:
    """Share of 300 studies, each 60 prompts with 4 samples a side, whose interval holds the truth."""
    draws = np.random.default_rng(7)
    held = 0
    for study in range(300):
        by_prompt = draws.normal(0, 1, (60, 1))  # makes the samples of a prompt alike: hence the clusters
        new = by_prompt * 2 + draws.normal(shift, 1, (60, 4))
        old = by_prompt + draws.normal(0, 1, (60, 4))
        found = statistic(new, old, resamples=500, seed=study)
        held += found.low <= truth <= found.high
    return held / 300


def test_95_percent_of_the_intervals_of_mean_delta_hold_the_truth() -> None:
    assert 0.91 <= coverage(mean_delta, truth=0.3, shift=0.3) <= 0.98


def test_95_percent_of_the_intervals_of_win_rate_hold_the_truth() -> None:
    # new − old is normal with mean 0.3 and variance 1 + 1 + 1 (prompt effect, both noises).
    truth = 0.5 * (1 + math.erf(0.3 / math.sqrt(3) / math.sqrt(2)))
    assert 0.91 <= coverage(win_rate, truth=truth, shift=0.3) <= 0.98


def test_samples_of_one_prompt_are_not_taken_for_independent() -> None:
    draws = np.random.default_rng(3)
    effect = draws.normal(0, 1, (20, 1))
    few, many = (mean_delta(np.repeat(effect, copies, axis=1), np.zeros((20, copies))) for copies in (1, 100))
    assert (few.value, few.low, few.high) == pytest.approx((many.value, many.low, many.high))


# ---------------------------------------------------------------------------------------------- KL
def test_kl_of_a_policy_to_itself_is_nothing() -> None:
    found = kl_estimate([-3.0, -5.0], [-3.0, -5.0])
    assert (found.value, found.standard_error, found.samples) == (0.0, 0.0, 2)


def test_kl_is_the_mean_log_ratio_with_its_standard_error() -> None:
    found = kl_estimate([-1.0, -2.0, -3.0], [-2.0, -4.0, -6.0])
    assert found.value == 2.0
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))


def test_kl_estimate_finds_the_kl_of_two_known_distributions() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    samples = np.random.default_rng(0).choice(3, 4000, p=p)
    found = kl_estimate(np.log(p[samples]), np.log(q[samples]))
    truth = float((p * np.log(p / q)).sum())
    assert abs(found.value - truth) < 3 * found.standard_error
    assert found.standard_error < 0.03


def test_kl_of_nothing_is_unknown_and_of_one_sample_has_no_error() -> None:
    assert math.isnan(kl_estimate([], []).value)
    one = kl_estimate([-1.0], [-2.0])
    assert one.value == 1.0
    assert math.isnan(one.standard_error)


def test_kl_of_unequal_sets_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="one a completion"):
        kl_estimate([-1.0, -2.0], [-1.0])
