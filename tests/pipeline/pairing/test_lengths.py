"""Scores that length has been taken out of."""

import random

import numpy as np
import pytest

from pipeline.pairing.lengths import Line, deviation, exact_sum, fit_line

from .rounds import group, only_drop, only_pair, paired


def test_a_penalty_is_a_hundred_tokens_worth_and_pairs_carry_the_scores_that_were_compared() -> None:
    texts = ["x" * 199, "y" * 99, "z"]  # and a token more each, for the end
    assert only_pair(texts, [1.0, 0.9, 0.0]) == (texts[0], "z")
    (pair,) = paired([group("p", texts)], [[1.0, 0.9, 0.0]], length_penalty=0.2).pairs
    assert (pair.chosen.text, pair.rejected.text) == (texts[1], "z")
    assert pair.score_chosen == pytest.approx(0.9 - 0.2) and pair.score_rejected == pytest.approx(-0.2 * 0.02)


def test_lengths_are_words_where_there_are_no_ids() -> None:
    texts = ["one two three four", "five", "extraordinarily"]
    with_words = paired([group("p", texts, ids=False)], [[1.0, 0.9, 0.0]], length_penalty=10.0).pairs
    assert [(pair.chosen.text, pair.rejected.text) for pair in with_words] == [("five", "extraordinarily")]
    assert with_words[0].score_chosen == pytest.approx(0.9 - 10 * 1 / 100)


def test_regression_takes_out_what_length_explains_and_leaves_the_rest_in_the_judges_units() -> None:
    rng = random.Random(0)
    quality = [[rng.gauss(0, 1) for _ in range(8)] for _ in range(50)]
    sizes = [[rng.randrange(1, 60) for _ in range(8)] for _ in range(50)]
    groups = [group(f"p{number}", ["x" * size for size in row]) for number, row in enumerate(sizes)]
    scores = [[7 + q + 0.5 * size for q, size in zip(*rows, strict=True)] for rows in zip(quality, sizes, strict=True)]
    plain, controlled = paired(groups, scores), paired(groups, scores, length_regression=True)

    def longer(found: object) -> float:
        return np.mean([len(pair.chosen.text) > len(pair.rejected.text) for pair in found.pairs])  # type: ignore

    assert longer(plain) > 0.95
    assert 0.3 < longer(controlled) < 0.7
    raw = np.mean([value for row in scores for value in row])
    means = [(pair.score_chosen + pair.score_rejected) / 2 for pair in controlled.pairs]
    assert np.mean(means) == pytest.approx(raw, abs=0.5)  # not moved to zero


def test_a_line_is_least_squares_about_the_mean_and_flat_where_lengths_are_equal() -> None:
    scores, lengths = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 2.0])
    slope = np.polyfit(lengths, scores, 1)[0]
    line = fit_line([scores[:1], scores[1:]], [lengths[:1], lengths[1:]])
    assert line.slope == pytest.approx(slope) and line.middle == 1.0
    assert fit_line([scores], [np.ones(3)]) == Line(0.0, 1.0)
    assert fit_line([], []) == Line(0.0, 0.0)


def test_what_length_explains_all_of_is_a_tie_and_no_label_of_rounding() -> None:
    sizes = [[3 * number % 17 + place**2 for place in range(1, 6)] for number in range(20)]
    groups = [group(f"p{number}", [letter * size for letter, size in zip("abcde", row, strict=True)])
              for number, row in enumerate(sizes)]  # fmt: skip
    scores = [[0.1 * (size + 1) - 7.3 for size in row] for row in sizes]
    assert paired(groups, scores, length_regression=True).counts == {"tie": 20}


def test_scores_the_judge_gave_alike_are_no_label_under_length_control() -> None:
    assert only_drop(["x", "y" * 50], [1.0, 1.0], length_penalty=1.0)[0] == "tie"
    # Best and worst after the penalty were scored alike: the next comparison is taken.
    texts = ["a", "b" * 99, "c" * 60]
    assert only_pair(texts, [1.0, 1.0, 0.9], length_penalty=1.0) == ("a", "c" * 60)


def test_sums_are_exact_whatever_the_order_and_the_blocks() -> None:
    values = [1e16, 1.0, -1e16, 1e-3] * 50
    rng = random.Random(1)
    sums = set()
    for _ in range(5):
        rng.shuffle(values)
        cut = rng.randrange(len(values))
        sums.add(exact_sum([np.array(values[:cut]), np.array(values[cut:])]))
    assert len(sums) == 1
    assert deviation([np.array([0.0, 0.0]), np.array([4.0, 0.0])]) == pytest.approx(3**0.5)
