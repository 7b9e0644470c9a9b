"""How well a reward model tells chosen from rejected: pure functions over its rewards."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

QUARTILES = 4


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair as a reward model sees it."""

    apart: float
    """Reward of chosen minus that of rejected."""
    preference: float
    """Probability that chosen is the better one, as labelled."""
    longer: int
    """Tokens that chosen has more than rejected."""

    @property
    def right(self) -> float:
        """1 where chosen has the higher reward, ½ where they are equal."""
        return 0.5 if self.apart == 0 else float(self.apart > 0)


def figures(judged: Sequence[Judged]) -> dict[str, float]:
    """Loss (nats a pair, without margin and centring), accuracy and mean margin; ``judged`` is not empty."""
    return {
        "loss": statistics.fmean(_loss(each) for each in judged),
        "accuracy": statistics.fmean(each.right for each in judged),
        "margin": statistics.fmean(each.apart for each in judged),
    }


def report(judged: Sequence[Judged]) -> dict[str, Any]:
    """The same and where it is right, JSON-serialisable.

    ``by_margin``: quartiles of how far apart the rewards are, the nearest first. ``expected`` is the accuracy that the
    rewards claim, the mean of σ(|apart|): a calibrated model's accuracies are near it. ``by_length``: whether chosen
    is the longer one; a model that is right there alone has learnt to like length.
    """
    order = sorted(judged, key=lambda each: abs(each.apart))
    cuts = [round(len(order) * number / QUARTILES) for number in range(QUARTILES + 1)]
    quartiles = [order[start:end] for start, end in pairwise(cuts) if end > start]
    lengths = {
        "longer": [each for each in judged if each.longer > 0],
        "equal": [each for each in judged if each.longer == 0],
        "shorter": [each for each in judged if each.longer < 0],
    }
    return {
        "pairs": len(judged),
        **figures(judged),
        "by_margin": [
            {
                "up_to": abs(each[-1].apart),
                **_share(each),
                "expected": statistics.fmean(_sigmoid(abs(one.apart)) for one in each),
            }
            for each in quartiles
        ],
        "by_length": {name: _share(each) for name, each in lengths.items() if each},
    }


def _share(judged: Sequence[Judged]) -> dict[str, float]:
    return {"pairs": len(judged), "accuracy": statistics.fmean(each.right for each in judged)}


def _loss(pair: Judged) -> float:
    return pair.preference * _softplus(-pair.apart) + (1 - pair.preference) * _softplus(pair.apart)


def _softplus(value: float) -> float:
    """log(1 + eˣ)."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _sigmoid(value: float) -> float:
    return math.exp(-_softplus(-value))
