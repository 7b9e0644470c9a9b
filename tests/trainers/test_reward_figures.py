import math

import pytest

from trainers.reward_figures import Judged, report


def test_accuracy_by_margin_and_length() -> None:
    """Eight pairs: the four the rewards hardly tell apart are coin flips, the others right."""
    judged = [Judged(sign * 0.1, 1.0, longer=-5) for sign in (1, -1, 1, -1)]
    judged += [Judged(3.0, 1.0, longer=2) for _ in range(4)]
    found = report(judged)
    assert found["pairs"] == 8
    assert found["accuracy"] == 0.75
    assert [part["accuracy"] for part in found["by_margin"]] == [0.5, 0.5, 1.0, 1.0]
    assert found["by_margin"][0]["expected"] == pytest.approx(1 / (1 + math.exp(-0.1)))
    assert found["by_margin"][3]["expected"] == pytest.approx(1 / (1 + math.exp(-3.0)))
    assert found["by_margin"][3]["up_to"] == 3.0
    assert found["by_length"] == {
        "longer": {"pairs": 4, "accuracy": 1.0}, "shorter": {"pairs": 4, "accuracy": 0.5},
    }  # fmt: skip


def test_equal_rewards_are_half_right_and_few_pairs_make_few_quartiles() -> None:
    found = report([Judged(0.0, 1.0, 0), Judged(2.0, 0.6, 0)])
    assert found["accuracy"] == 0.75
    assert sum(part["pairs"] for part in found["by_margin"]) == 2
    assert found["by_length"] == {"equal": {"pairs": 2, "accuracy": 0.75}}
