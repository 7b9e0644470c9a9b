"""How a group stands before anything is compared: its best and its worst candidate, and why it cannot give a pair."""

from dataclasses import dataclass

import numpy as np

from pipeline.config import PairingConfig
from pipeline.pairing.columns import LAST, Bools, Columns, Floats, Indices
from pipeline.pairing.identity import same
from pipeline.pairing.yardstick import Yardstick


@dataclass(frozen=True, slots=True)
class Standings:
    """Each [groups] where no shape is given; meaningless for groups without a score."""

    choosable: Bools
    """[groups, candidates]: scored, and neither empty nor, where that counts, truncated."""
    chosen: Indices
    """The best candidate of those that may be chosen; among equals the first by priority."""
    rejected: Indices
    """The worst candidate with a score, likewise."""
    best: Floats
    """Score of the best; −inf where none may be chosen."""
    worst: Floats


def standings_of(columns: Columns, scores: Floats, config: PairingConfig) -> Standings:
    """``scores``, [groups, candidates], are the compared ones."""
    scored = np.isfinite(scores)
    choosable = scored & ~columns.empty
    if config.drop_truncated:
        choosable &= ~columns.truncated
    best = np.where(choosable, scores, -np.inf).max(axis=1)
    worst = np.where(scored, scores, np.inf).min(axis=1)
    return Standings(
        choosable=choosable,
        chosen=_first(columns, choosable & (scores == best[:, None])),
        rejected=_first(columns, scored & (scores == worst[:, None])),
        best=best,
        worst=worst,
    )


def _first(columns: Columns, equals: Bools) -> Indices:
    """[groups]: of the ``equals`` of each group, [groups, candidates], the first by priority."""
    first: Indices = equals.argmax(axis=1)
    several = np.flatnonzero(equals.sum(axis=1) > 1)
    first[several] = np.where(equals[several], columns.priority(several), LAST).argmin(axis=1)
    return first


def refusals(columns: Columns, scores: Floats, standings: Standings, yardstick: Yardstick) -> np.ndarray:
    """A reason a group, [groups] of str; "" where it may give a pair: see ``pairing.REASONS``."""
    scored = np.isfinite(scores)
    few = scored.sum(axis=1) < 2
    level = (_spread(scores) <= yardstick.rounding) | (_spread(columns.raw) <= 0)
    above = scored & (scores > standings.worst[:, None] + yardstick.rounding)
    blocked = standings.best <= standings.worst + yardstick.rounding
    with_text = (above & ~columns.empty).any(axis=1)
    alike = np.zeros(len(few), bool)
    tied, differing = np.flatnonzero(level & ~few), np.flatnonzero(~level & ~few & ~blocked)
    alike[tied] = _all_same(columns, scored, tied)
    alike[differing] = same(
        columns,
        columns.rows(differing, standings.chosen[differing]),
        columns.rows(differing, standings.rejected[differing]),
    )
    return np.select(
        [few, level & alike, level, blocked & with_text, blocked, alike],
        ["abstained", "identical", "tie", "truncated", "empty", "identical"],
        "",
    )


def _spread(scores: Floats) -> Floats:
    """Highest less lowest; −inf without a score."""
    scored = np.isfinite(scores)
    spread: Floats = np.where(scored, scores, -np.inf).max(axis=1) - np.where(scored, scores, np.inf).min(axis=1)
    return spread


def _all_same(columns: Columns, scored: Bools, groups: Indices) -> Bools:
    """Whether all scored candidates of each of the groups are one completion."""
    group, candidate = scored[groups].nonzero()
    first = scored[groups].argmax(axis=1)[group]
    equal = same(columns, columns.rows(groups[group], candidate), columns.rows(groups[group], first))
    result = np.ones(len(groups), bool)
    np.logical_and.at(result, group, equal)
    return result
