import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.normalisation import Calibration, LengthLine, Scale

NUMBERS = st.floats(-1e6, 1e6)


@given(st.lists(NUMBERS, min_size=2, max_size=30))
def test_z_scores_of_what_was_fitted_have_mean_0_and_deviation_1_or_are_all_0(scores: list[float]) -> None:
    scale = Scale.fit(scores)
    assert scale is not None
    z = [scale.z(score) for score in scores]
    assert math.fsum(z) / len(z) == pytest.approx(0, abs=1e-4)
    assert math.fsum(each * each for each in z) / len(z) == pytest.approx(0 if scale.constant else 1, abs=1e-4)


@pytest.mark.parametrize("score", [0.1, 1 / 3, -7e20])
def test_a_constant_judge_is_known_in_spite_of_rounding_and_counts_0_whatever_it_says_later(score: float) -> None:
    scale = Scale.fit([score] * 1001)
    assert scale == Scale(score, 0.0, 1001)
    assert scale.constant
    assert (scale.z(score), scale.z(score + 5)) == (0.0, 0.0)


def test_nothing_is_fitted_on_nothing() -> None:
    assert Scale.fit([]) is None
    assert LengthLine.fit([], []) is None


def test_the_line_is_the_least_squares_one_and_an_average_length_keeps_its_score() -> None:
    line = LengthLine.fit([10, 20, 30], [1.0, 1.5, 4.0])
    assert line is not None
    assert (line.slope, line.words) == pytest.approx((0.15, 20.0))
    assert line.share(20) == 0.0
    assert line.share(30) == pytest.approx(1.5)


def test_texts_of_one_length_explain_nothing() -> None:
    line = LengthLine.fit([7, 7], [1.0, 3.0])
    assert line is not None
    assert line.share(100) == 0.0


@given(st.floats(-1e9, 1e9), st.floats(0, 1e6), st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20))
def test_the_last_score_is_below_all_others_and_bounds_keep_their_order(
    mean: float, std: float, scores: list[float]
) -> None:
    calibration = Calibration(total=Scale(mean, std, 9))
    bounded = [calibration.bounded(score) for score in sorted(scores)]
    assert bounded == sorted(bounded)
    assert all(math.isfinite(score) and score > calibration.last for score in bounded)
    inside = [score for score in scores if score >= mean]
    assert [calibration.bounded(score) for score in inside] == inside


@given(
    st.dictionaries(st.text(max_size=3), st.builds(Scale, NUMBERS, st.floats(0, 9), st.integers(1, 99)), max_size=3),
    st.none() | st.builds(LengthLine, NUMBERS, st.floats(0, 999)),
    st.none() | st.builds(Scale, NUMBERS, st.floats(0, 9), st.integers(1, 99)),
)
def test_a_calibration_survives_json_exactly(
    scales: dict[str, Scale], line: LengthLine | None, total: Scale | None
) -> None:
    calibration = Calibration(scales, line, total)
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
