"""The figures of a judge's health: pure functions of what it said of labelled pairs.

A judge that gave no verdict counts in the abstention rate and in nothing else. Of two candidates, a tie counts half
wherever only the better one is asked for.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from judges.agreement import Interval, agreement, cohen_kappa, interval, krippendorff_alpha
from judges.health.canaries import CanaryReport
from judges.labels.reading import Label, LabelledPair
from pipeline.conditions import holds, metric_of, written

Orders = tuple[Label | None, Label | None]
WORTH: Mapping[Label, float] = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a judge said of one pair."""

    pair: LabelledPair
    verdict: Label | None
    margin: float | None
    """|score of a − score of b|, in the judge's units."""
    orders: Orders
    """The verdicts with a first and with b first, both told of the same a and b."""
    reason: str = ""
    """Why there is no verdict; empty where there is one."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Agreement on a part of the pairs that people decided."""

    name: str
    pairs: int
    agreement: float
    """A judge's tie counts half."""


@dataclass(frozen=True, slots=True)
class Health:
    """NaN where a figure has nothing to rest on. Intervals are 95% bootstraps over pairs."""

    judge: str
    pairs: int
    agreement: Interval
    """Share of the same labels, ties included."""
    agreement_decided: Interval
    """Of pairs that people decided alone; a judge's tie counts half."""
    kappa: Interval
    """Cohen's, of a, b and tie, between the judge and the people's majority."""
    swap_consistency: Interval
    """Share of the same verdict when the candidates change places."""
    tie_rate: Interval
    abstention_rate: Interval
    length_bias: Interval
    """How often the judge prefers the longer response, minus how often people do; ties count half on both sides."""
    length_correlation: Interval
    """Pearson's r between the verdict (1 a, ½ tie, 0 b) and log characters of a minus that of b."""
    people_alpha: float
    """Krippendorff's alpha among the annotators: how far people agree with each other."""
    people_tie_rate: float
    people_length_correlation: float
    abstentions: Mapping[str, int]
    """By reason."""
    by_margin: tuple[Slice, ...]
    """Quartiles of the judge's margin, the widest first: a judge that knows what it knows agrees more there."""
    by_category: tuple[Slice, ...]
    canaries: CanaryReport | None
    """None where none were asked."""

    @property
    def figures(self) -> dict[str, float | None]:
        """What conditions can name (``pipeline.config.health.HEALTH_METRICS``); None where not known."""
        values = {
            "agreement": self.agreement.value, "agreement_decided": self.agreement_decided.value,
            "kappa": self.kappa.value, "kappa_low": self.kappa.low, "swap_consistency": self.swap_consistency.value,
            "tie_rate": self.tie_rate.value, "abstention_rate": self.abstention_rate.value,
            "length_bias": self.length_bias.value,
            "canaries": math.nan if self.canaries is None or self.canaries.share is None else self.canaries.share,
        }  # fmt: skip
        return {name: None if math.isnan(value) else value for name, value in values.items()}

    def to_json(self) -> dict[str, Any]:
        """All of it, and ``figures``; NaN becomes null."""
        return {name: _without_nan(value) for name, value in {"figures": self.figures, **asdict(self)}.items()}


def unmet(figures: Mapping[str, float | None], require: Sequence[str]) -> list[str]:
    """The conditions that do not hold, each with its figure; a figure that is not known fails its condition."""
    return [
        f"{condition} does not hold ({written(value)})"
        for condition in require
        if not holds(condition, value := figures[metric_of(condition)])
    ]


def measure(name: str, seen: Sequence[Seen], found: CanaryReport | None = None, seed: int = 0) -> Health:
    """The figures of what a judge said."""
    spoken = [(each.verdict, each.pair) for each in seen if each.verdict is not None]
    both = [(verdict, pair.label) for verdict, pair in spoken if pair.label is not None]
    decided = [(verdict, label) for verdict, label in both if label != "tie"]
    orders = [each.orders for each in seen if None not in each.orders]
    longer = [
        (_for_longer(verdict, pair), _for_longer(pair.label, pair))
        for verdict, pair in spoken
        if pair.label is not None and len(pair.a) != len(pair.b)
    ]
    labels = [each.pair.label for each in seen if each.pair.label is not None]
    said = [(each.pair.label, each.pair) for each in seen if each.pair.label is not None]
    return Health(
        judge=name,
        pairs=len(seen),
        agreement=interval(_same, both, seed),
        agreement_decided=interval(_mean, [_credit(*row) for row in decided], seed),
        kappa=interval(lambda rows: cohen_kappa(*zip(*rows, strict=True)), both, seed),
        swap_consistency=interval(_same, orders, seed),
        tie_rate=interval(_mean, [float(verdict == "tie") for verdict, _ in spoken], seed),
        abstention_rate=interval(_mean, [float(each.verdict is None) for each in seen], seed),
        length_bias=interval(_mean, [judges - peoples for judges, peoples in longer], seed),
        length_correlation=interval(_correlation, [_with_length(*row) for row in spoken], seed),
        people_alpha=krippendorff_alpha([list(each.pair.annotators.values()) for each in seen]),
        people_tie_rate=_mean([float(label == "tie") for label in labels]),
        people_length_correlation=_correlation([_with_length(*row) for row in said]),
        abstentions=dict(Counter(each.reason for each in seen if each.verdict is None).most_common()),
        by_margin=_by_margin(seen),
        by_category=_by_category(seen),
        canaries=found,
    )


def _same(rows: Sequence[tuple[Label | None, Label | None]]) -> float:
    return agreement([one for one, _ in rows], [other for _, other in rows])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _credit(verdict: Label, label: Label) -> float:
    return 0.5 if verdict == "tie" else float(verdict == label)


def _for_longer(label: Label, pair: LabelledPair) -> float:
    worth = WORTH[label]
    return worth if len(pair.a) > len(pair.b) else 1 - worth


def _with_length(label: Label, pair: LabelledPair) -> tuple[float, float]:
    return WORTH[label], math.log((len(pair.a) + 1) / (len(pair.b) + 1))


def _correlation(rows: Sequence[tuple[float, float]]) -> float:
    """Pearson's; NaN where one side never varies."""
    values = np.array(rows, np.float64).reshape(-1, 2)
    if len(values) < 2 or (values == values[0]).all(axis=0).any():
        return math.nan
    return float(np.corrcoef(values.T)[0, 1])


def _decided(seen: Sequence[Seen]) -> list[tuple[Seen, float]]:
    return [
        (each, _credit(each.verdict, each.pair.label))
        for each in seen
        if each.verdict is not None and each.pair.label in ("a", "b")
    ]


def _by_margin(seen: Sequence[Seen]) -> tuple[Slice, ...]:
    """Equal margins stay together, so there may be fewer than four parts."""
    rows = [(each.margin, credit) for each, credit in _decided(seen) if each.margin is not None]
    if not rows:
        return ()
    edges = np.quantile([margin for margin, _ in rows], (0.25, 0.5, 0.75))
    parts: dict[int, list[tuple[float, float]]] = {}
    for margin, credit in rows:
        parts.setdefault(int(np.searchsorted(edges, margin)), []).append((margin, credit))
    return tuple(
        Slice(f"{min(part)[0]:.3g} to {max(part)[0]:.3g}", len(part), _mean([credit for _, credit in part]))
        for _, part in sorted(parts.items(), reverse=True)
    )


def _by_category(seen: Sequence[Seen]) -> tuple[Slice, ...]:
    parts: dict[str, list[float]] = {}
    for each, credit in _decided(seen):
        if each.pair.category:
            parts.setdefault(each.pair.category, []).append(credit)
    return tuple(Slice(name, len(credits), _mean(credits)) for name, credits in sorted(parts.items()))


def _without_nan(value: Any) -> Any:
    match value:
        case float():
            return None if math.isnan(value) else value
        case Mapping():
            return {name: _without_nan(each) for name, each in value.items()}
        case list() | tuple():
            return [_without_nan(each) for each in value]
    return value
