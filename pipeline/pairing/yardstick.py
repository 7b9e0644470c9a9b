"""What one measures a round's comparisons by: quantities of all its scores, found before any shard is paired.

They come from a first pass over scores, and where length control asks for them lengths, at 8 or 16 bytes a candidate;
``keep`` needs a second pass, over the margins of the pairs that all other filters leave. Sums are exact
(:func:`~pipeline.pairing.lengths.exact_sum`), so a round has one yardstick however it lies in shards.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.config import PairingConfig
from pipeline.pairing.lengths import Floats, Line, compared_scores, controls_length, deviation, fit_line

SLACK = 1e-9
"""Relative rounding allowed for: 0.7 − 0.4 reaches a margin of 0.3."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    line: Line = field(default_factory=Line)
    sigma: float = 0.0
    """Population standard deviation of all the round's compared scores."""
    rounding: float = 0.0
    """Differences of compared scores up to this are length control's own rounding: no preference."""
    cutoff: float = -math.inf
    """Least margin that ``keep`` keeps."""

    def least(self, config: PairingConfig) -> float:
        """Smallest score difference that ``margin`` keeps."""
        return config.margin * (self.sigma if config.margin_unit == "sigma" else 1.0) * (1 - SLACK)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"cutoff": self.cutoff if math.isfinite(self.cutoff) else None}


def needs_scores(config: PairingConfig) -> bool:
    """Whether a yardstick of the round is needed at all."""
    return config.margin_unit == "sigma" or controls_length(config)


def needs_lengths(config: PairingConfig) -> bool:
    return controls_length(config) or config.max_length_ratio is not None


def yardstick_of(scores: Iterable[tuple[Floats, Floats]], config: PairingConfig) -> Yardstick:
    """``scores`` and lengths of all the round's candidates, flat, in blocks; what has no finite score is left out.
    Lengths are read only where the config controls them."""
    raw: list[Floats] = []
    lengths: list[Floats] = []
    for values, sizes in scores:
        finite = np.isfinite(values)
        raw.append(values[finite])
        if controls_length(config):
            lengths.append(sizes[finite])
    if not controls_length(config):
        return Yardstick(sigma=deviation(raw))
    line = fit_line(raw, lengths) if config.length_regression else Line()
    compared = [compared_scores(one, sizes, config, line) for one, sizes in zip(raw, lengths, strict=True)]
    return Yardstick(line, deviation(compared), rounding=SLACK * deviation(raw))


def with_cutoff(yardstick: Yardstick, margins: Floats, keep: float) -> Yardstick:
    """``margins`` of each prompt's first pair, in any order; those at least as wide as the last one kept are kept."""
    if not len(margins):
        return yardstick
    place = len(margins) - math.ceil(keep * len(margins) * (1 - SLACK))
    return replace(yardstick, cutoff=float(np.partition(margins, place)[place]) * (1 - SLACK))
