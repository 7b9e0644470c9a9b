"""Scores of several judges on one scale, and without what length explains. Pure; fitted once and frozen.

A scale that moved with every round would make the same answer score differently in each, and a policy that became
better could not be told from a judge that became milder.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

CONSTANT = 1e-12
"""A standard deviation below this share of the largest score is rounding: the scores are all one."""
LOWEST = 4.0
"""Standard deviations below the mean from where on scores are squeezed, in order, into one more."""
LAST = 6.0
"""Standard deviations below the mean: what is last whatever else is said of it."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Where scores lie: in z-scores a judge's mean is 0 and its standard deviation 1."""

    mean: float
    std: float
    """Of the population; 0 where all scores are equal."""
    count: int

    @classmethod
    def fit(cls, scores: Sequence[float]) -> Self | None:
        """None where there is no score to fit on. All must be finite."""
        if not scores:
            return None
        column = np.asarray(scores, np.float64)
        mean, std = float(column.mean()), float(column.std())
        constant = std <= CONSTANT * float(np.abs(column).max())
        return cls(float(column[0]) if constant else mean, 0.0 if constant else std, len(scores))

    @property
    def constant(self) -> bool:
        return self.std == 0.0

    def z(self, score: float) -> float:
        """0 of a judge that always said the same: what it may say later has no measure."""
        return 0.0 if self.constant else (score - self.mean) / self.std


@dataclass(frozen=True, slots=True)
class LengthLine:
    """The least-squares line of score on words."""

    slope: float
    """Score a word; 0 where all texts are equally long."""
    words: float
    """Mean words of those it was fitted on: a text so long keeps its score."""

    @classmethod
    def fit(cls, words: Sequence[int], scores: Sequence[float]) -> Self | None:
        """None where there is nothing to fit on."""
        if not scores:
            return None
        lengths, column = np.asarray(words, np.float64), np.asarray(scores, np.float64)
        offsets = lengths - lengths.mean()
        square = float(offsets @ offsets)
        slope = float(offsets @ (column - column.mean())) / square if square > 0 else 0.0
        return cls(slope, float(lengths.mean()))

    def share(self, words: int) -> float:
        """The part of a score that ``words`` explains; 0 on average over those it was fitted on."""
        return self.slope * (words - self.words)


@dataclass(frozen=True, slots=True)
class Calibration:
    """All that a panel learnt from its calibration set. The same for every later round."""

    scales: Mapping[str, Scale] = field(default_factory=dict)
    """By member; those that scored nothing have none."""
    line: LengthLine | None = None
    """None where length is not regressed out."""
    total: Scale | None = None
    """Of the panel's own scores, length taken out; None where it gave none."""

    @property
    def last(self) -> float:
        """The score of what is vetoed: finite, and below whatever :meth:`bounded` gives."""
        assert self.total is not None, "a panel without a score has no last one"
        return self.total.mean - LAST * self._spread

    def bounded(self, score: float) -> float:
        """``score``; where far below all that was seen, squeezed, in order, into one standard deviation."""
        assert self.total is not None, "a panel without a score has no bounds"
        lowest = self.total.mean - LOWEST * self._spread
        beyond = (lowest - score) / self._spread
        return score if beyond <= 0 else lowest - self._spread * (beyond / (1 + beyond))

    @property
    def _spread(self) -> float:
        """At least 1, so that a panel whose members cancel out on the calibration set keeps room; and never lost in
        the rounding of the mean."""
        assert self.total is not None, "a panel without a score has no spread"
        return max(1.0, self.total.std, abs(self.total.mean) * 1e-9)

    def to_json(self) -> dict[str, Any]:
        return {
            "scales": {name: _plain(scale) for name, scale in self.scales.items()},
            "line": None if self.line is None else {"slope": self.line.slope, "words": self.line.words},
            "total": None if self.total is None else _plain(self.total),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """What :meth:`to_json` gave, exactly."""
        line, total = document["line"], document["total"]
        return cls(
            {name: Scale(**scale) for name, scale in document["scales"].items()},
            None if line is None else LengthLine(**line),
            None if total is None else Scale(**total),
        )


def _plain(scale: Scale) -> dict[str, Any]:
    return {"mean": scale.mean, "std": scale.std, "count": scale.count}


def finite(score: float | None) -> float | None:
    """``score``, or None where it is no finite number: that is no opinion either."""
    return score if score is not None and math.isfinite(score) else None
