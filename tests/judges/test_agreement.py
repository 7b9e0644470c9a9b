"""Agreement coefficients on the worked examples of their papers, and on published numbers of real annotators."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from judges.agreement import agreement, cohen_kappa, fleiss_kappa, interval, krippendorff_alpha, label_counts

PANDALM = "preferences/pandalm_testset_v1.json"


def two_by_two(yes_yes: int, yes_no: int, no_yes: int, no_no: int) -> tuple[list[str], list[str]]:
    cells = [("yes", "yes")] * yes_yes + [("yes", "no")] * yes_no + [("no", "yes")] * no_yes + [("no", "no")] * no_no
    return [a for a, _ in cells], [b for _, b in cells]


@pytest.mark.parametrize(
    ("cells", "kappa"),
    [
        ((20, 5, 10, 15), 0.4),
        ((45, 15, 25, 15), 0.1304),  # the same agreement of .60 in both …
        ((25, 35, 5, 35), 0.2593),  # … but chance alone would agree less in the second
        ((10, 0, 0, 10), 1.0),
        ((0, 10, 10, 0), -1.0),
    ],
)
def test_cohens_kappa_of_textbook_tables(cells: tuple[int, int, int, int], kappa: float) -> None:
    assert cohen_kappa(*two_by_two(*cells)) == pytest.approx(kappa, abs=5e-5)


def test_fleiss_kappa_of_fourteen_raters_ten_subjects_five_categories() -> None:
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(table) == pytest.approx(0.210, abs=5e-4)


KRIPPENDORFF = [  # 2011, section C: four observers, twelve units
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorffs_own_example_with_missing_labels(level: str, alpha: float) -> None:
    units = list(zip(*KRIPPENDORFF, strict=True))
    assert krippendorff_alpha(units, level) == pytest.approx(alpha, abs=5e-4)  # type: ignore[arg-type]


def test_alpha_cares_neither_for_the_order_of_labels_nor_for_items_with_one() -> None:
    units = [list(unit) for unit in zip(*KRIPPENDORFF, strict=True)]
    alpha = krippendorff_alpha(units, "ordinal")
    assert krippendorff_alpha([unit[::-1] for unit in units] + [[7], [None, 8]], "ordinal") == pytest.approx(alpha)


def test_items_that_one_annotator_left_out_do_not_count() -> None:
    assert agreement(["a", None, "b", "a"], ["a", "b", None, "b"]) == 0.5
    assert cohen_kappa(["a", None, "b", "a"], ["a", "b", "b", None]) == cohen_kappa(["a", "b"], ["a", "b"]) == 1


@pytest.mark.parametrize(
    "value",
    [
        agreement([], []),
        agreement([None], ["a"]),
        cohen_kappa([], []),
        cohen_kappa(["a", "a"], ["a", "a"]),
        fleiss_kappa([]),
        fleiss_kappa([[2, 0], [2, 0]]),
        krippendorff_alpha([]),
        krippendorff_alpha([["a"], ["b"]]),
        krippendorff_alpha([["a", "a"], ["a", "a"]]),
    ],
)
def test_what_labels_cannot_tell_is_nan_and_no_agreement(value: float) -> None:
    assert math.isnan(value)


def test_labels_of_different_people_are_not_lined_up_silently() -> None:
    with pytest.raises(ValueError, match="shorter"):
        cohen_kappa(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="same number of labels"):
        fleiss_kappa([[2, 0], [2, 1]])
    with pytest.raises(ValueError, match="'left' has no order"):
        krippendorff_alpha([["left", "tie"]], "ordinal")


def test_the_interval_holds_the_true_value_as_often_as_it_says() -> None:
    """Coverage over 200 drawn data sets of 60 items: 95% nominal; below 88% or above 99.5% would be a wrong one."""
    draws = np.random.default_rng(3)
    truth, held = 0.4, 0
    for seed in range(200):
        first = draws.integers(2, size=60)
        second = np.where(draws.random(60) < truth, first, draws.integers(2, size=60))  # copies with probability κ
        rows = list(zip(first.tolist(), second.tolist(), strict=True))
        found = interval(lambda drawn: cohen_kappa(*zip(*drawn, strict=True)), rows, seed, resamples=200)
        held += found.low <= truth <= found.high
    assert 0.88 <= held / 200 <= 0.995


def test_an_interval_is_the_same_for_the_same_seed_and_refused_to_one_item() -> None:
    rows = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "b")] * 5

    def kappa(drawn: list[tuple[str, str]]) -> float:
        return cohen_kappa(*zip(*drawn, strict=True))

    first = interval(kappa, rows, seed=1)
    assert first == interval(kappa, rows, seed=1) != interval(kappa, rows, seed=2)
    assert first.low < first.value < first.high
    assert math.isnan(interval(kappa, rows[:1], seed=1).low)
    assert math.isnan(interval(kappa, [("a", "a")] * 9, seed=1).high)  # defined in no resample


def test_pandalms_annotators_agree_as_published(shared_data: Path) -> None:
    rows = json.loads((shared_data / PANDALM).read_text())
    people = [[row[f"annotator{i}"] for row in rows] for i in (1, 2, 3)]
    pairs = [round(cohen_kappa(a, b), 3) for a, b in itertools.combinations(people, 2)]
    assert pairs == [0.852, 0.879, 0.862]  # annotators 1–2, 1–3, 2–3
    labels = list(zip(*people, strict=True))
    assert round(fleiss_kappa(label_counts(labels)), 3) == 0.864
    assert krippendorff_alpha(labels) == pytest.approx(0.864, abs=5e-4)  # many items: alpha ≈ Fleiss' kappa
