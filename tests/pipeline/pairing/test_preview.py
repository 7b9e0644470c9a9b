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


def test_without_pairs_there_is_nothing_to_show_and_without_spread_no_sigma() -> None:
    assert preview(np.empty(0), np.empty(0, bool), 1.0) == []
    assert preview(np.ones(3), np.zeros(3, bool), 0.0)[0]["sigma"] is None
