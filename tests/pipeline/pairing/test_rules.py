"""Which candidates each rule compares, and in which order."""

from collections import Counter

import numpy as np
import pytest

from .rounds import all_pairs, group, only_pair, paired


def test_best_is_chosen_and_worst_rejected_with_their_scores_and_keys() -> None:
    (pair,) = paired([group("p", "abcd")], [[0.5, 2.0, None, -1.0]]).pairs
    assert (pair.chosen.text, pair.rejected.text) == ("b", "d")
    assert (pair.score_chosen, pair.score_rejected, pair.margin) == (2.0, -1.0, 3.0)
    assert (pair.prompt.id, pair.round, pair.candidates_key, pair.judgments_key) == ("p", 3, "candidates", "judgments")


def test_nothing_in_gives_nothing_out() -> None:
    found = paired([], [])
    assert (found.pairs, found.dropped) == ([], [])


# ---------------------------------------------------------------------------------------------- best against worst
def test_pairs_of_a_prompt_come_widest_margin_first_and_of_equal_margins_the_better_ones_first() -> None:
    assert all_pairs("abcd", [9, 4, 1, 0], 6) == ["ad", "ac", "ab", "bd", "bc", "cd"]
    assert all_pairs("abcd", [3, 2, 1, 0], 6) == ["ad", "ac", "bd", "ab", "bc", "cd"]
    assert all_pairs("abcd", [3, 2, 1, 0], 2) == ["ad", "ac"]
    assert all_pairs("abcd", [3, 2, 1, 0], 99, margin=2) == ["ad", "ac", "bd"]
    assert all_pairs("abcd", [3, 2, 1, 0], 99, min_score_chosen=3) == ["ad", "ac", "ab"]


def test_scores_that_differ_by_less_than_their_difference_can_hold_are_still_in_order() -> None:
    assert 1e17 - 1 == 1e17
    for place in range(6):
        low = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        low = low[place:] + low[:place]
        texts = "x" + "".join("abcdef"[int(value)] for value in low)
        assert all_pairs(texts, [1e17, *low], 3) == ["xa", "xb", "xc"]


# ---------------------------------------------------------------------------------------------- best against μ − 2σ
def test_the_best_is_compared_with_the_nearest_to_two_deviations_below_the_mean_and_then_the_next() -> None:
    scores = [1.0, 0.2, 0.1, 0.0, -0.1, -0.2, 0.05, -0.05, -2.8, -0.15, -4.2]
    target = np.mean(scores) - 2 * np.std(scores)
    lower = sorted(scores[1:], key=lambda value: abs(value - target))
    names = "abcdefghijk"
    expected = [f"a{names[scores.index(value)]}" for value in lower]
    assert all_pairs(names, scores, 99, rule="best_mu_minus_2sigma") == expected
    unscored = [f"u{number}" for number in range(40)]
    higher = [100 + value for value in scores]
    assert all_pairs([*names, *unscored], [*higher, *[None] * 40], 99, rule="best_mu_minus_2sigma") == expected
    assert only_pair(names, scores, rule="best_mu_minus_2sigma") == ("a", expected[0][1])
    assert only_pair(names, scores) == ("a", "k")  # an outlier is the worst, but not the nearest
    assert expected[0] != "ak"


def test_the_nearest_that_passes_the_filters_is_taken() -> None:
    texts, scores = ["best", "bad1", "bad2", "good"], [10.0, 0.0, -1.0, 9.0]
    assert only_pair(texts, scores, rule="best_mu_minus_2sigma", margin=10.5) == ("best", "bad2")


# ---------------------------------------------------------------------------------------------- at random
def opponents(rule: str, prompts: int, count: int = 1) -> Counter[str]:
    groups = [group(f"p{number}", "abcd") for number in range(prompts)]
    found = paired(groups, [[4, 3, 2, 1]] * prompts, rule=rule, pairs_per_prompt=count)
    return Counter(pair.chosen.text + pair.rejected.text for pair in found.pairs)


def test_a_random_lower_one_is_any_of_them_alike() -> None:
    found = opponents("best_random", 1200)
    assert set(found) == {"ab", "ac", "ad"}
    assert all(abs(count / 1200 - 1 / 3) < 0.07 for count in found.values())  # five standard errors


def test_random_combinations_are_any_of_all_with_different_scores_alike() -> None:
    found = opponents("all_pairs", 1200)
    assert set(found) == {"ab", "ac", "ad", "bc", "bd", "cd"}
    assert all(abs(count / 1200 - 1 / 6) < 0.06 for count in found.values())
    assert set(opponents("all_pairs", 1, count=99).values()) == {1}
    assert opponents("all_pairs", 5, count=2).total() == 10


def test_a_random_draw_is_of_those_that_pass_the_filters() -> None:
    for number in range(20):
        groups = [group(f"p{number}", "abcd")]
        found = paired(groups, [[4, 3, 2, 1]], rule="all_pairs", margin=3)
        assert [pair.chosen.text + pair.rejected.text for pair in found.pairs] == ["ad"]


# ---------------------------------------------------------------------------------------------- threshold
def test_one_that_reaches_the_threshold_is_compared_with_one_that_does_not() -> None:
    found = all_pairs("abcd", [1.0, 0.5, 0.4, 0.0], 99, rule="threshold")
    assert sorted(found) == ["ac", "ad", "bc", "bd"]
    assert sorted(all_pairs("abcd", [1.0, 0.5, 0.4, 0.0], 99, rule="threshold", threshold=0.3)) == ["ad", "bd", "cd"]


# ---------------------------------------------------------------------------------------------- equals
def test_equal_scores_and_candidates_without_one_are_never_paired_with_each_other() -> None:
    for rule in ("best_worst", "all_pairs"):
        assert sorted(all_pairs("abcde", [1, 1, 0, 0, None], 99, rule=rule)) == ["ac", "ad", "bc", "bd"]


@pytest.mark.parametrize("rule", ["best_worst", "all_pairs"])
def test_two_completions_are_paired_once_and_never_both_ways(rule: str) -> None:
    assert all_pairs("aabb", [1, 1, 0, 0], 99, rule=rule) == ["ab"]
    # The judge scored "b" twice, above "c" and below it.
    found = all_pairs("abcb", [9, 4, 3, 0], 99, rule=rule)
    assert sorted("".join(sorted(one)) for one in found) == ["ab", "ac", "bc"]
    if rule == "best_worst":
        assert found == ["ab", "ac", "cb"]  # the wider of the two margins


def test_a_judge_that_scores_one_text_best_and_worst_is_not_believed_about_the_rest() -> None:
    for count in (1, 3):
        assert paired([group("p", "aba")], [[2, 1, 0]], pairs_per_prompt=count).counts == {"identical": 1}


def test_ties_for_best_are_broken_as_often_as_each_text_was_sampled() -> None:
    groups = [group(f"p{number}", ["a", "a", "a", "b", "worst"]) for number in range(2000)]
    found = paired(groups, [[1, 1, 1, 1, 0]] * 2000)
    share = Counter(pair.chosen.text for pair in found.pairs)["a"] / 2000
    assert abs(share - 0.75) < 0.05  # five standard errors; a hash of the text would give 0 or 1


def test_ties_for_best_do_not_favour_a_place() -> None:
    groups = [group(f"p{number}", ["a", "b", "c", "d", "worst"]) for number in range(2000)]
    places = Counter(pair.chosen.index for pair in paired(groups, [[1, 1, 1, 1, 0]] * 2000).pairs)
    assert all(abs(places[index] / 2000 - 0.25) < 0.05 for index in range(4))
