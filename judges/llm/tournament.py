"""Who meets whom, and what the results make of it. Pure: a schedule is a generator that asks for results.

    schedule = knockout(n)
    pairs = next(schedule)                      # may all be compared at once
    pairs = schedule.send(results)              # the next round; StopIteration.value holds the Standings

A result is the probability that the pair's first is the better one, in [0, 1]; ½ is a tie; None abstains.
"""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt

VERSION = 2
"""Part of a pairwise judge's identity: the same results give the same scores under one version."""
Pair = tuple[int, int]
Results = Sequence[float | None]
PRIOR = 0.5
"""Games drawn against an average opponent that each strength starts with: an unbeaten candidate stays finite."""
TOLERANCE = 1e-10
"""In logits: strengths have converged when none moves further."""
STEPS = 100
LEVEL = 1e-8
"""Strengths nearer than this, in logits, are equal: what rounding tells apart is a tie, and a tie is no label."""


@dataclass(frozen=True, slots=True)
class Standings:
    scores: tuple[float | None, ...]
    abstained: Mapping[int, str] = field(default_factory=dict)
    """Why, for each candidate without a score:

    alone          there is nothing to compare it with
    no_comparison  all its comparisons abstained, or, in a knockout, the one it depended on
    not_connected  it was compared, but not with those who have a score, not even through others
    undecided      a knockout found no best, or no worst, or nothing that sets the two apart: comparisons abstained
    """


Schedule = Generator[list[Pair], Results, Standings]


def all_pairs(n: int) -> Schedule:
    """Every pair once, n (n − 1) / 2 comparisons; scores are Bradley-Terry strengths in logits with mean 0."""
    if n == 1:
        return Standings((None,), {0: "alone"})
    pairs = list(combinations(range(n), 2))
    results = yield pairs
    games = {pair: result for pair, result in zip(pairs, results, strict=True) if result is not None}
    met = {player for pair in games for player in pair}
    connected = largest_component(n, games)
    strengths = dict(zip(connected, bradley_terry(connected, games), strict=True))
    reasons = {i: "not_connected" if i in met else "no_comparison" for i in range(n) if i not in strengths}
    return Standings(tuple(strengths.get(player) for player in range(n)), reasons)


def bradley_terry(players: Sequence[int], games: Mapping[Pair, float]) -> list[float]:
    """Strengths s with P(i better than j) = 1 / (1 + exp(s_j − s_i)), of highest posterior probability; mean 0.

    The model of Bradley and Terry (1952), with wins that may be fractions, and with ``PRIOR`` games drawn against an
    opponent of strength 0: without it a candidate that always won would be infinitely strong. The log-posterior is
    strictly concave, so its maximum is one. Newton's steps find it in about ten, where the usual MM updates (Hunter
    2004, doi:10.1214/aos/1079120141) take hundreds for a clear order.

    Args:
        players: those to be rated, connected by ``games``; others' games do not count.
        games: by pair, the share of the game that its first won.
    """
    place = {player: index for index, player in enumerate(players)}
    wins: npt.NDArray[np.float64] = np.zeros((len(players), len(players)))
    for (first, second), result in games.items():
        if first in place and second in place:
            wins[place[first], place[second]] += result
            wins[place[second], place[first]] += 1.0 - result
    played, won = wins + wins.T, wins.sum(axis=1)
    strength = np.zeros(len(players))
    for _ in range(STEPS):
        chance = _sigmoid(strength[:, None] - strength[None, :])
        drawn = _sigmoid(strength)
        slope = won - (played * chance).sum(axis=1) + PRIOR * (0.5 - drawn)
        bend = -played * chance * (1.0 - chance)
        bend[np.diag_indices_from(bend)] = PRIOR * drawn * (1.0 - drawn) - bend.sum(axis=1)
        step = np.linalg.solve(bend, slope)
        strength = strength + step
        if np.abs(step).max(initial=0.0) < TOLERANCE:
            break
    return _levelled(strength - strength.mean()) if players else []


def _levelled(strengths: npt.NDArray[np.float64]) -> list[float]:
    """Each strength, or, where others lie within ``LEVEL`` of it one after another, the lowest of them."""
    order = np.argsort(strengths)
    ranked = strengths[order]
    begins = np.diff(ranked, prepend=-np.inf) > LEVEL
    levelled = np.empty_like(strengths)
    levelled[order] = ranked[begins][begins.cumsum() - 1]
    return [float(each) for each in levelled]


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 0.5 * (1.0 + np.tanh(logits / 2.0))


def largest_component(n: int, games: Mapping[Pair, float]) -> list[int]:
    """Players who can be compared with each other, if only through others, in order; of equally many, the first.

    Strengths of two components have no common zero: only the prior would rank them, so one of them abstains. Empty
    where nobody was compared.
    """
    component = list(range(n))
    for first, second in games:
        joined, left = component[first], component[second]
        component = [joined if each == left else each for each in component]
    sizes = Counter(component)
    largest = max(component, key=lambda each: sizes[each], default=0)
    return [player for player in range(n) if component[player] == largest] if games else []


def knockout(n: int) -> Schedule:
    """Best and worst in at most 3 n / 2 comparisons: they score 1 and −1, all others 0.

    Winners of the first round go on to find the best, losers the worst; who has no opponent goes on in both. Of a
    tie, either may go on: under a judge without cycles they are equal. Where wins and ties lead from the worst back to
    the best, because all are ties or the judge goes round in a cycle, all score 0.

    After an abstention both leave without a score; the best is then the best of those that could be judged. Where
    nobody is left to be the best, or the worst, or no chain of comparisons says that the one is above the other, all
    abstain.
    """
    if n == 1:
        return Standings((None,), {0: "alone"})
    games: dict[Pair, float] = {}
    lost_sight: set[int] = set()

    def settle(players: list[int], results: Results, best: bool) -> list[int]:
        """Who of ``players`` goes on towards the best, or the worst."""
        onward = players[len(players) - len(players) % 2 :]
        for pair, result in zip(neighbours(players), results, strict=True):
            if result is None:
                lost_sight.update(pair)
            else:
                games[pair] = result
                winner, loser = pair if result >= 0.5 else pair[::-1]
                onward.append(winner if best else loser)
        return onward

    everyone = list(range(n))
    results = yield neighbours(everyone)
    best, worst = settle(everyone, results, best=True), settle(everyone, results, best=False)
    while len(best) > 1 or len(worst) > 1:
        first_half = neighbours(best)
        results = yield first_half + neighbours(worst)
        best = settle(best, results[: len(first_half)], best=True)
        worst = settle(worst, results[len(first_half) :], best=False)
    return _standings(n, best, worst, games, lost_sight)


def neighbours(players: Sequence[int]) -> list[Pair]:
    """Each with the next; who is left over meets nobody."""
    return list(zip(players[::2], players[1::2], strict=False))


def _standings(
    n: int, best: list[int], worst: list[int], games: Mapping[Pair, float], lost_sight: set[int]
) -> Standings:
    known = {player for pair in games for player in pair} - (lost_sight - {*best, *worst})
    missing = {player: "no_comparison" for player in range(n) if player not in known}
    if not best or not worst or not at_least(best[0], worst[0], games):
        return Standings((None,) * n, dict.fromkeys(known, "undecided") | missing)
    (top,), (bottom,) = best, worst
    ends = {} if at_least(bottom, top, games) else {top: 1.0, bottom: -1.0}
    scores = dict.fromkeys(known, 0.0) | ends
    return Standings(tuple(scores.get(player) for player in range(n)), missing)


def at_least(one: int, other: int, games: Mapping[Pair, float]) -> bool:
    """Whether a chain of wins and ties leads from ``one`` down to ``other``."""
    below = [one] if any(one in pair for pair in games) else []
    for player in below:
        for (first, second), result in games.items():
            if first == player and result >= 0.5 and second not in below:
                below.append(second)
            elif second == player and result <= 0.5 and first not in below:
                below.append(first)
    return other in below


def most_comparisons(schedule: str, n: int) -> int:
    """What ``schedule`` asks for, exactly for ``all_pairs``; for ``knockout`` where nothing abstains, else fewer."""
    if schedule == "all_pairs":
        return n * (n - 1) // 2
    return max(0, 3 * (n // 2) - (2 if n % 2 == 0 else 0))
