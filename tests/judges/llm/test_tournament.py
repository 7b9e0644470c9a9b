"""Schedules and strengths: pure, so their claims hold for thousands of tournaments."""

import math
import random
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judges.llm.tournament import (
    PRIOR,
    Pair,
    Schedule,
    Standings,
    all_pairs,
    bradley_terry,
    knockout,
    largest_component,
    most_comparisons,
)

Judge = Callable[[int, int], float | None]
QUALITIES = st.lists(st.integers(0, 5), min_size=1, max_size=17)


def play(schedule: Schedule, judge: Judge) -> tuple[Standings, list[Pair]]:
    """The standings, and all that was asked."""
    asked: list[Pair] = []
    try:
        pairs = next(schedule)
        while True:
            asked += pairs
            pairs = schedule.send([judge(*pair) for pair in pairs])
    except StopIteration as end:
        return end.value, asked


def by(qualities: Sequence[float]) -> Judge:
    """A judge without cycles, who is always sure."""
    return lambda i, j: 0.5 if qualities[i] == qualities[j] else float(qualities[i] > qualities[j])


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def every(n: int, judge: Judge) -> dict[Pair, float]:
    return {pair: result for pair in combinations(range(n), 2) if (result := judge(*pair)) is not None}


# ---------------------------------------------------------------------------------------------- Bradley-Terry
@given(st.integers(2, 8), st.randoms(use_true_random=False))
def test_strengths_expect_just_the_wins_there_were(n: int, draw: random.Random) -> None:
    games = {pair: draw.choice([0.0, 0.5, 1.0, draw.random()]) for pair in combinations(range(n), 2)}
    strengths = bradley_terry(range(n), games)
    assert math.fsum(strengths) == pytest.approx(0, abs=1e-9)
    # At the maximum each one's wins, prior included, are those expected of it; the prior's opponent sits off the mean
    # by as much for all.
    surplus = [
        sum(result - sigmoid(strengths[i] - strengths[j]) for (i, j), result in games.items() if i == player)
        + sum(1 - result - sigmoid(strengths[j] - strengths[i]) for (i, j), result in games.items() if j == player)
        for player in range(n)
    ]
    zero = [
        strength - math.log((expected := 0.5 + gap / PRIOR) / (1 - expected))
        for strength, gap in zip(strengths, surplus, strict=True)
    ]
    assert zero == pytest.approx([zero[0]] * n, abs=1e-6)


@given(st.integers(2, 7), st.randoms(use_true_random=False))
def test_strengths_do_not_depend_on_who_is_called_what(n: int, draw: random.Random) -> None:
    games = {pair: draw.choice([0.0, 0.5, 1.0, draw.random()]) for pair in combinations(range(n), 2)}
    names = draw.sample(range(n), n)
    renamed = {
        (min(names[i], names[j]), max(names[i], names[j])): result if names[i] < names[j] else 1 - result
        for (i, j), result in games.items()
    }
    strengths, again = bradley_terry(range(n), games), bradley_terry(range(n), renamed)
    assert [again[name] for name in names] == pytest.approx(strengths, abs=1e-8)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8))
def test_strengths_recover_those_the_probabilities_come_from(true: list[float]) -> None:
    games = every(len(true), lambda i, j: sigmoid(true[i] - true[j]))
    many = bradley_terry(range(len(true)), games)
    order = sorted(range(len(true)), key=lambda player: true[player])
    assert all(many[low] <= many[high] + 1e-9 for low, high in pairwise(order))


def test_simulated_verdicts_give_the_strengths_they_were_drawn_from() -> None:
    true, draw, games = [-1.5, -0.5, 0.0, 0.5, 1.5], random.Random(0), 4000
    share = {
        (i, j): sum(draw.random() < sigmoid(true[i] - true[j]) for _ in range(games)) / games
        for i, j in combinations(range(5), 2)
    }
    # One game a pair has the prior's weight against it; the shape, not the scale, is what is recovered.
    found = bradley_terry(range(5), share)
    scale = found[-1] / true[-1]
    assert 0.6 < scale < 1.0
    assert [each / scale for each in found] == pytest.approx(true, abs=0.1)


@pytest.mark.parametrize("n", [2, 16, 128])
def test_an_unbeaten_candidate_is_finite_and_first(n: int) -> None:
    strengths = bradley_terry(range(n), every(n, by(range(n))))
    assert strengths == sorted(strengths)
    assert all(math.isfinite(each) for each in strengths)
    assert bradley_terry(range(16), every(16, by(range(16))))[-1] < 8


def test_all_ties_are_all_equal() -> None:
    assert bradley_terry(range(4), every(4, lambda i, j: 0.5)) == pytest.approx([0.0] * 4)


# ---------------------------------------------------------------------------------------------- all pairs
@given(QUALITIES)
def test_all_pairs_asks_each_pair_once_and_orders_by_quality(qualities: list[int]) -> None:
    n = len(qualities)
    standings, asked = play(all_pairs(n), by(qualities))
    assert sorted(asked) == list(combinations(range(n), 2))
    assert len(asked) == most_comparisons("all_pairs", n)
    if n == 1:
        assert standings == Standings((None,), {0: "alone"})
        return
    for i, j in asked:
        one, other = standings.scores[i], standings.scores[j]
        assert one is not None
        assert other is not None
        assert (one > other + 1e-9) == (qualities[i] > qualities[j])


@given(QUALITIES.filter(lambda qualities: len(qualities) > 1))
def test_equal_candidates_have_equal_strengths_to_the_last_bit(qualities: list[int]) -> None:
    """A score that rounding alone raises above another would become a label."""
    standings, _ = play(all_pairs(len(qualities)), by(qualities))
    assert len(set(standings.scores)) == len(set(qualities))


def test_a_candidate_without_any_comparison_abstains_and_the_others_keep_their_scores() -> None:
    standings, _ = play(all_pairs(4), lambda i, j: None if 2 in (i, j) else by([0, 1, 9, 2])(i, j))
    assert standings.abstained == {2: "no_comparison"}
    first, second, none, third = standings.scores
    assert none is None
    assert not {first, second, third} & {None}
    assert first < second < third


def test_of_two_sets_that_never_met_the_smaller_one_abstains() -> None:
    sides = [0, 0, 1, 1, 1]
    standings, _ = play(all_pairs(5), lambda i, j: 1.0 if sides[i] == sides[j] else None)
    assert standings.abstained == {0: "not_connected", 1: "not_connected"}
    assert [score is None for score in standings.scores] == [True, True, False, False, False]


def test_where_every_comparison_abstains_so_does_everyone() -> None:
    for schedule in (all_pairs(5), knockout(5)):
        standings, _ = play(schedule, lambda i, j: None)
        assert standings.scores == (None,) * 5
        assert set(standings.abstained.values()) == {"no_comparison"}


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=9))
def test_a_component_is_all_who_can_reach_each_other(n: int, games: list[Pair]) -> None:
    inside = {(i, j): 0.5 for i, j in games if i != j and max(i, j) < n}
    component = largest_component(n, inside)
    assert component == sorted(set(component))
    assert bool(component) == bool(inside)
    for i, j in inside:
        assert (i in component) == (j in component)


# ---------------------------------------------------------------------------------------------- knockout
@given(QUALITIES)
def test_a_knockout_finds_best_and_worst_in_at_most_three_halves_n_comparisons(qualities: list[int]) -> None:
    n = len(qualities)
    standings, asked = play(knockout(n), by(qualities))
    assert len(asked) == len({frozenset(pair) for pair in asked}) == most_comparisons("knockout", n) <= 3 * n / 2
    if n == 1:
        assert standings == Standings((None,), {0: "alone"})
    elif len(set(qualities)) == 1:
        assert standings.scores == (0.0,) * n
    else:
        scores = list(standings.scores)
        assert sorted(score for score in scores if score) == [-1.0, 1.0]
        assert qualities[scores.index(1.0)] == max(qualities)
        assert qualities[scores.index(-1.0)] == min(qualities)


@settings(max_examples=500)
@given(st.integers(2, 12), st.randoms(use_true_random=False))
def test_a_knockout_with_abstentions_never_ranks_by_a_comparison_that_was_not_made(n: int, draw: random.Random) -> None:
    made: dict[Pair, float] = {}

    def judge(i: int, j: int) -> float | None:
        if draw.random() < 0.3:
            return None
        made[i, j] = made[j, i] = by(list(range(n)))(i, j) or 0.0
        return made[i, j]

    standings, asked = play(knockout(n), judge)
    assert len(asked) <= most_comparisons("knockout", n)
    assert standings.abstained.keys() == {place for place, score in enumerate(standings.scores) if score is None}
    compared = {player for pair in made for player in pair}
    scored = {place for place, score in enumerate(standings.scores) if score is not None}
    assert scored <= compared
    if 1.0 in standings.scores:
        assert standings.scores.index(1.0) > standings.scores.index(-1.0)  # quality is the index


def test_a_cycle_of_three_is_a_tie_of_all() -> None:
    beats = {(0, 1), (2, 0), (1, 2)}
    standings, _ = play(knockout(3), lambda i, j: float((i, j) in beats))
    assert standings.scores == (0.0, 0.0, 0.0)


def test_a_best_and_a_worst_that_nothing_sets_apart_are_not_named() -> None:
    """Quality is the index. Without the comparisons of 5 with 7 and of 0 with 2, 3 is left as the best and 4 as the
    worst."""
    standings, asked = play(knockout(8), lambda i, j: None if (i, j) in {(5, 7), (0, 2)} else by(range(8))(i, j))
    assert {(1, 3), (4, 6)} < set(asked)
    assert standings.scores == (None,) * 8
    assert standings.abstained[3] == standings.abstained[4] == "undecided"


def test_a_knockout_whose_final_abstains_names_nobody() -> None:
    standings, _ = play(knockout(4), lambda i, j: None if (i, j) == (1, 3) else by(range(4))(i, j))
    assert standings.scores == (None,) * 4
    assert standings.abstained == {0: "undecided", 1: "no_comparison", 2: "undecided", 3: "no_comparison"}
