"""The rules: which candidates are compared, and in which order a prompt's comparisons are taken.

A comparison is a candidate that may be chosen against one with a lower score. A rule allows some of a group's
comparisons and puts them in order; filters then take some out, and the first ``pairs_per_prompt`` of the rest are the
group's pairs. So the pairs of a smaller ``pairs_per_prompt`` are the first ones of a larger.

best_worst            all, widest margin first: the best against the worst, and so on
best_mu_minus_2sigma  the best against the nearest to μ − 2σ of its group, then the next nearest. Against the worst of
                      many, policies get worse as n grows (arXiv 2502.16825, section 4)
best_random           the best against the others in random order
all_pairs             all, in random order
threshold             one at or above the threshold against one below it, in random order

Random orders are drawn by prompt and seeds, never by position.
"""

from dataclasses import dataclass
from typing import assert_never

import numpy as np

from pipeline.config import PairingConfig
from pipeline.pairing.columns import Bools, Floats, Indices, Words, mixed
from pipeline.pairing.yardstick import SLACK


@dataclass(frozen=True, slots=True)
class Block:
    """Some groups of a shard; each [groups, candidates] where no shape is given."""

    scores: Floats
    """The compared ones."""
    choosable: Bools
    chosen: Indices
    """[groups]: place of the best."""
    priority: Words


def allowed(block: Block, config: PairingConfig) -> Bools:
    """[groups, chosen, rejected]: the rule's comparisons."""
    higher: Bools = (block.scores[:, :, None] > block.scores[:, None, :]) & block.choosable[:, :, None]
    match config.rule:
        case "best_worst" | "all_pairs":
            return higher
        case "best_mu_minus_2sigma" | "best_random":
            best: Bools = np.arange(higher.shape[1]) == block.chosen[:, None]
            return higher & best[:, :, None]
        case "threshold":
            above = block.scores >= config.threshold
            return higher & above[:, :, None] & ~above[:, None, :]
        case _:
            assert_never(config.rule)


def ordered(block: Block, comparisons: tuple[Indices, Indices, Indices], config: PairingConfig) -> Indices:
    """How to order comparisons, given as (group, chosen, rejected): by group, then as the rule says.

    ``best_worst`` takes of equal margins the higher chosen score, then the lower rejected one, since margins may be
    equal by rounding alone; of equal scores the first by priority, chosen before rejected.
    """
    group, chosen, rejected = comparisons
    high, low = block.scores[group, chosen], block.scores[group, rejected]
    first, second = block.priority[group, chosen], block.priority[group, rejected]
    match config.rule:
        case "best_worst":
            keys: tuple[np.ndarray, ...] = (second, first, low, -high, -(high - low))
        case "best_mu_minus_2sigma":
            keys = (second, low, _distance(block.scores)[group, rejected])
        case "best_random":
            keys = (second,)  # a draw: it settled who is best of equals, and these are others
        case "all_pairs" | "threshold":
            keys = (second, first, mixed(mixed(first) + second))
        case _:
            assert_never(config.rule)
    order: Indices = np.lexsort((*keys, group))
    return order


def _distance(scores: Floats) -> Floats:
    """From μ − 2σ of the group's own scores, in its σ, to as many digits as rounding leaves."""
    scored = np.isfinite(scores)
    # Sorted and added up one by one: the sum knows neither the order of candidates nor how wide the padding is.
    ascending = np.nan_to_num(np.sort(scores, axis=1), nan=0.0)
    count = np.maximum(scored.sum(axis=1), 1)[:, None]
    mean = np.cumsum(ascending, axis=1)[:, -1:] / count
    apart = np.where(np.sort(scored, axis=1)[:, ::-1], ascending - mean, 0.0)
    sigma = np.sqrt(np.cumsum(apart * apart, axis=1)[:, -1:] / count)
    with np.errstate(invalid="ignore", divide="ignore"):
        distance: Floats = np.abs((scores - mean) / sigma + 2.0)
    return np.round(distance / SLACK)
