"""How far annotators agree, beyond chance. Pure functions of labels; nothing here knows where they came from.

A label is anything hashable (numbers, for ordinal and interval alpha); None is a missing one. Where a coefficient is
not defined — no item has two labels, or only one label was ever given, so that chance alone would agree always — it is
NaN, never 0 or 1.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")
Label = Hashable
Level = Literal["nominal", "ordinal", "interval"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    value: float
    """Of the items as they are; NaN where the statistic is not defined."""
    low: float
    """NaN with fewer than two items, which say nothing about others, or where too few resamples define it."""
    high: float
    items: int


def agreement(a: Sequence[Label], b: Sequence[Label]) -> float:
    """Share of the items [n] that both labelled and labelled the same; NaN without any.

    Raises:
        ValueError: ``a`` and ``b`` differ in length.
    """
    both = _both(a, b)
    return sum(x == y for x, y in both) / len(both) if both else math.nan


def cohen_kappa(a: Sequence[Label], b: Sequence[Label]) -> float:
    """Agreement of two annotators beyond chance: κ = (p_o − p_e) / (1 − p_e), with p_e = Σ_k p_ak p_bk.

    Cohen 1960, "A coefficient of agreement for nominal scales", equation 1. Items [n] that one of them did not label
    are left out.

    Raises:
        ValueError: ``a`` and ``b`` differ in length.
    """
    both = _both(a, b)
    if not both:
        return math.nan
    first, second = Counter(x for x, _ in both), Counter(y for _, y in both)
    by_chance = sum(count * second[label] for label, count in first.items())  # n² p_e
    agreed = sum(x == y for x, y in both)
    n = len(both)
    return (agreed * n - by_chance) / (n * n - by_chance) if by_chance < n * n else math.nan


def fleiss_kappa(table: Sequence[Sequence[int]] | npt.NDArray[np.int64]) -> float:
    """Agreement of m ≥ 2 annotators an item, not necessarily the same m people: κ = (P̄ − P̄_e) / (1 − P̄_e).

    Fleiss 1971, "Measuring nominal scale agreement among many raters", equations 1 to 7.

    Args:
        table: [items, labels]: how many annotators gave an item that label; :func:`label_counts` makes one.

    Raises:
        ValueError: items have different numbers of labels (Krippendorff's alpha allows that), or fewer than two.
    """
    counts = np.asarray(table, np.float64)
    if counts.size == 0:
        return math.nan
    labelled = np.unique(counts.sum(axis=1))
    if len(labelled) > 1 or labelled[0] < 2:
        raise ValueError(f"Fleiss' kappa needs the same number of labels, two or more, on every item, not {labelled}")
    m = float(labelled[0])
    observed = float(((counts**2).sum(axis=1) - m).mean() / (m * (m - 1)))
    by_chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return (observed - by_chance) / (1 - by_chance) if np.count_nonzero(counts.sum(axis=0)) > 1 else math.nan


def krippendorff_alpha(ratings: Sequence[Sequence[Label]], level: Level = "nominal") -> float:
    """Agreement of any number of annotators with labels missing anywhere: α = 1 − D_o / D_e.

    Krippendorff 2011, "Computing Krippendorff's alpha-reliability": coincidences o_ck = Σ_u (c–k pairs in u)/(m_u − 1)
    and α = 1 − (n − 1) Σ o_ck δ²_ck / Σ n_c n_k δ²_ck, with his δ² of each level of measurement.

    Args:
        ratings: [items][labels]: an item's labels in any order, as many as there are; None is missing. Items with
            fewer than two say nothing about agreement and do not count.
        level: ``ordinal`` and ``interval`` need numbers.
    """
    rows = [[label for label in item if label is not None] for item in ratings]
    rows = [row for row in rows if len(row) >= 2]
    counts, labels = _counted(rows, ordered=level != "nominal")
    if len(labels) < 2:
        return math.nan
    per_pair = counts / (counts.sum(axis=1, keepdims=True) - 1)
    coincidences = per_pair.T @ counts - np.diag(per_pair.sum(axis=0))
    totals = counts.sum(axis=0)
    distances = _distances(totals, labels, level)
    expected = float((np.outer(totals, totals) * distances).sum())
    return 1 - float((totals.sum() - 1) * (coincidences * distances).sum()) / expected


def label_counts(ratings: Sequence[Sequence[Label]]) -> npt.NDArray[np.int64]:
    """The table :func:`fleiss_kappa` reads, [items, labels], of [items][labels]; None is not counted."""
    rows = [[label for label in item if label is not None] for item in ratings]
    return _counted(rows, ordered=False)[0].astype(np.int64)


def interval(
    statistic: Callable[[list[Item]], float], items: Sequence[Item], seed: int, resamples: int = 2000
) -> Interval:
    """``statistic`` of ``items`` with its 95% percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Whole items are resampled, so labels of one item stay together. Of two annotators::

        interval(lambda rows: cohen_kappa(*zip(*rows)), list(zip(a, b)), seed=0)

    Resamples in which the statistic is not defined are left out; if that leaves less than half, there is no interval.
    """
    value = statistic(list(items)) if items else math.nan
    if len(items) < 2:
        return Interval(value, math.nan, math.nan, len(items))
    draws = np.random.default_rng(seed)
    picked = (draws.integers(len(items), size=len(items)).tolist() for _ in range(resamples))
    values = np.array([statistic([items[i] for i in picks]) for picks in picked])
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, (0.025, 0.975)) if 2 * len(known) >= resamples else (math.nan, math.nan)
    return Interval(value, float(low), float(high), len(items))


def _both(a: Sequence[Label], b: Sequence[Label]) -> list[tuple[Label, Label]]:
    return [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]


def _counted(rows: Sequence[Sequence[Label]], ordered: bool) -> tuple[Floats, list[Label]]:
    """Times each label was given to each item, [items, labels], and the labels; sorted, if ``ordered``."""
    labels = list(dict.fromkeys(label for row in rows for label in row))
    if ordered:
        labels.sort(key=_number)
    column = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(rows), len(labels)))
    for i, row in enumerate(rows):
        for label in row:
            counts[i, column[label]] += 1
    return counts, labels


def _distances(totals: Floats, labels: Sequence[Label], level: Level) -> Floats:
    """δ² between every two labels, [labels, labels]."""
    match level:
        case "nominal":
            return 1 - np.eye(len(labels))
        case "interval":
            values = np.array([_number(label) for label in labels])
            return np.asarray(np.subtract.outer(values, values) ** 2)
        case "ordinal":  # ranks between the two labels: |Σ_{g=c…k} n_g − (n_c + n_k)/2|
            middles = np.cumsum(totals) - totals / 2
            return np.asarray(np.subtract.outer(middles, middles) ** 2)


def _number(label: Label) -> float:
    if isinstance(label, (int, float)):
        return float(label)
    raise ValueError(f"label {label!r} has no order; only nominal alpha can be computed")
