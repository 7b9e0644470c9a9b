"""What would each margin keep?"""

import numpy as np

from pipeline.pairing.preview import preview


def test_a_row_says_how_much_a_margin_keeps_and_how_much_of_that_is_longer() -> None:
    margins = np.array([4.0, 1.0, 2.0, 3.0])
    longer = np.array([True, False, False, True])
    rows = preview(margins, longer, 2.0, quantiles=(0.0, 0.5, 1.0))
    assert [(row["margin"], row["sigma"], row["pairs"], row["share"]) for row in rows] == [
        (1.0, 0.5, 4, 1.0), (3.0, 1.5, 2, 0.5), (4.0, 2.0, 1, 0.25),
    ]  # fmt: skip
    assert [(row["mean_margin"], row["chosen_longer"]) for row in rows] == [(2.5, 0.5), (3.5, 1.0), (4.0, 1.0)]


def test_margins_that_are_few_are_all_shown_and_each_once() -> None:
    margins = np.array([0.5] * 97 + [1.0] * 2 + [0.1 + 0.2 + 1.2, 1.5])  # the last two are one, but for rounding
    rows = preview(margins, np.zeros(101, bool), 1.0)
    assert [(round(row["margin"], 9), row["pairs"]) for row in rows] == [(0.5, 101), (1.0, 4), (1.5, 2)]


def test_many_pairs_at_the_narrowest_margin_are_one_row() -> None:
    margins = np.concatenate([np.full(60, 1.0), np.arange(2.0, 42.0)])
    kept = [row["pairs"] for row in preview(margins, np.zeros(100, bool), 1.0)]
    assert kept == sorted(set(kept), reverse=True) and kept[0] == 100 and 1 < len(kept) <= 7


def test_without_pairs_there_is_nothing_to_show_and_without_spread_no_sigma() -> None:
    assert preview(np.empty(0), np.empty(0, bool), 1.0) == []
    assert preview(np.ones(3), np.zeros(3, bool), 0.0)[0]["sigma"] is None
