"""What evaluation measures. Pure functions of numbers; nothing here knows where they came from.

Scores come grouped: one sequence a prompt, of that prompt's samples, in the same prompt order for every policy. A score
of None or NaN is an abstention: it is left out and counted. Every prompt left weighs the same, however many samples it
has. Intervals are 95% percentile bootstraps that resample whole prompts, since samples of one prompt are not
independent (Efron and Tibshirani 1993, chapter 13; Miller 2024, arXiv 2411.00640, section 2.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Scores = Sequence[Sequence[float | None] | Floats] | Floats
"""[prompts][samples], as ragged as need be."""

LEVELS = (0.025, 0.975)
BLOCK = 1 << 22
"""Draws held in memory at once by the bootstrap."""


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    """NaN where no prompt is left."""
    low: float
    """95% interval; NaN with fewer than two prompts, which say nothing about other prompts."""
    high: float
    prompts: int
    """Prompts the value rests on."""
    left_out: int
    """Prompts that one of the sides has no score for."""
    abstained: int
    """Samples without a score, on both sides."""


@dataclass(frozen=True, slots=True)
class KlEstimate:
    value: float
    """Nats a completion. Unbiased, so it can come out slightly negative where the truth is near 0."""
    standard_error: float
    """NaN with fewer than two samples."""
    samples: int


def win_rate(new: Scores, old: Scores, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Probability, 0 … 1, that a sample of the new policy scores above one of the old on the same prompt.

    Within a prompt all (new, old) pairs of samples are compared and ties count half, which is the Mann-Whitney
    statistic; the value is its mean over prompts. 0.5 means no difference.
    """
    return _compare(new, old, _wins, resamples, seed)


def mean_delta(new: Scores, old: Scores, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean score of the new policy minus the old one's on the same prompts, in the judge's units."""
    return _compare(new, old, _difference, resamples, seed)


def kl_estimate(policy: Sequence[float] | Floats, reference: Sequence[float] | Floats) -> KlEstimate:
    """KL(policy ‖ reference) from completions that the policy sampled at temperature 1.

    The mean of log p(y) − log q(y): the estimator k1 of Schulman, "Approximating KL Divergence" (2020,
    joschu.net/blog/kl-approx.html), over whole completions. k3 varies less only while the ratios stay near 1, and a
    completion's ratio is a product over its tokens.

    Args:
        policy: [samples], log-probability of each completion under the policy, summed over its tokens, in nats.
        reference: [samples], the same completions under the reference.
    """
    ratios = np.asarray(policy, np.float64) - np.asarray(reference, np.float64)
    assert np.ndim(policy) == np.ndim(reference) == 1 and len(policy) == len(reference), "one a completion"
    count = len(ratios)
    if count == 0:
        return KlEstimate(np.nan, np.nan, 0)
    error = ratios.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    return KlEstimate(float(ratios.mean()), float(error), count)


def _compare(
    new: Scores, old: Scores, statistic: Callable[[Floats, Floats], float], resamples: int, seed: int
) -> Estimate:
    sides = [(_known(a), _known(b)) for a, b in zip(new, old, strict=True)]
    values = np.array([statistic(a, b) for a, b in sides if len(a) and len(b)])
    low, high = _interval(values, resamples, seed)
    return Estimate(
        value=float(values.mean()) if len(values) else np.nan,
        low=low,
        high=high,
        prompts=len(values),
        left_out=len(sides) - len(values),
        abstained=sum(map(len, new)) + sum(map(len, old)) - sum(len(a) + len(b) for a, b in sides),
    )


def _known(scores: Sequence[float | None] | Floats) -> Floats:
    values = np.asarray(scores, np.float64)  # None becomes NaN
    known: Floats = values[~np.isnan(values)]
    return known


def _wins(new: Floats, old: Floats) -> float:
    gaps = np.sign(new[:, None] - old[None, :])
    return float((gaps.mean() + 1) / 2)


def _difference(new: Floats, old: Floats) -> float:
    return float(new.mean() - old.mean())


def _interval(values: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of ``values`` [prompts]."""
    if len(values) < 2:
        return np.nan, np.nan
    draws = np.random.default_rng(seed)
    means: list[Floats] = []
    while (left := resamples - sum(map(len, means))) > 0:
        picks = draws.integers(len(values), size=(min(left, max(1, BLOCK // len(values))), len(values)))
        means.append(values[picks].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), LEVELS)
    return float(low), float(high)
