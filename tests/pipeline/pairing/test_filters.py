"""What may not be chosen, what may not be compared, and the reason each group is dropped for."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Indel

from pipeline.pairing import REASONS
from pipeline.pairing.identity import in_words

from .rounds import Scores, all_pairs, group, judged, only_drop, only_pair, paired, shard_of


def test_empty_or_truncated_candidate_can_be_rejected() -> None:
    assert only_pair(["a", "", "b"], [1, 0, 0.5]) == ("a", "")
    assert only_pair(["a", "long", "b"], [1, 0, 0.5], truncated=[1], drop_truncated=True) == ("a", "long")


def test_empty_candidate_is_never_chosen() -> None:
    assert only_pair([" \n", "a", "b"], [9, 1, 0]) == ("a", "b")


def test_truncated_candidate_is_chosen_unless_told_otherwise() -> None:
    assert only_pair(["long", "a", "b"], [9, 1, 0], truncated=[0]) == ("long", "b")
    assert only_pair(["long", "a", "b"], [9, 1, 0], truncated=[0], drop_truncated=True) == ("a", "b")


@pytest.mark.parametrize("scores", [[], [1.0], [None, 2.0], [None, None], [math.nan, 1.0], [math.inf, 1.0]])
def test_fewer_than_two_scores_is_an_abstention_and_no_low_score(scores: Scores) -> None:
    reason, detail = only_drop("ab"[: len(scores)], scores)
    assert reason == "abstained"
    assert detail.endswith(f"of {len(scores)} candidates have a score")


DROPS: list[tuple[Sequence[str], Scores, list[int], dict[str, Any], tuple[str, str]]] = [
    ("ab", [1, 1], [], {}, ("tie", "all scores are 1")),
    ("aab", [1, 1, None], [], {}, ("identical", "'a'")),
    ("aa", [1, 0], [], {}, ("identical", "'a'")),
    (["", ""], [0, 0], [], {}, ("identical", "''")),
    (["", "b"], [1, 0], [], {}, ("empty", "1 of 2 candidates are empty")),
    (["", " "], [1, 0], [], {}, ("empty", "2 of 2 candidates are empty")),
    ("ab", [1, 0], [0], {"drop_truncated": True}, ("truncated", "1 of 2 candidates are truncated")),
    ("ab", [1, 0], [0, 1], {"drop_truncated": True}, ("truncated", "2 of 2 candidates are truncated")),
    ("ab", [1, 0.75], [], {"margin": 0.5}, ("margin", "0.25 < 0.5")),
    ("ab", [1, 0], [], {"margin": 2.5, "margin_unit": "sigma"}, ("margin", "1 < 1.25")),
    ("ab", [1, 0], [], {"min_score_chosen": 2}, ("floor", "the best score is 1")),
    ("ab", [1, 0], [], {"min_score_chosen": 2, "margin": 3}, ("margin", "1 < 3")),
    ("ab", [0.4, 0.3], [], {"rule": "threshold"}, ("threshold", "0 of 2 candidates reach 0.5")),
    ("ab", [0.7, 0.6], [], {"rule": "threshold"}, ("threshold", "2 of 2 candidates reach 0.5")),
    (["a", "bbbbb"], [1, 0], [], {"max_length_ratio": 2.5}, ("length_ratio", "lengths are 2 to 6")),
    (["a b", "a\nb "], [1, 0], [], {"drop_same_words": True}, ("same_words", "no two differ in more than white space")),
    (["abcd", "abce"], [1, 0], [], {"max_similarity": 0.7}, ("near_identical", "no two are less alike than 0.7")),
]  # fmt: skip


@pytest.mark.parametrize(("texts", "scores", "truncated", "settings", "expected"), DROPS)
def test_group_without_a_pair_says_why(
    texts: Sequence[str], scores: Scores, truncated: list[int], settings: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert only_drop(texts, scores, truncated, **settings) == expected
    assert only_drop(texts, scores, truncated, **settings, pairs_per_prompt=5) == expected


def test_every_reason_has_an_example() -> None:
    assert {"abstained", "keep", *(expected[0] for *_, expected in DROPS)} == set(REASONS)


def test_same_text_from_other_ids_is_identical_and_so_are_the_same_ids_of_another_text() -> None:
    one = group("p", "ab")
    for changed in ({"text": "a"}, {"token_ids": one.candidates[0].token_ids}):
        twin = replace(one.candidates[1], **changed)
        groups = [replace(one, candidates=(one.candidates[0], twin))]
        for count in (1, 3):
            assert paired(groups, [[1, 0]], pairs_per_prompt=count).counts == {"identical": 1}


def test_margin_reached_but_for_rounding_is_kept() -> None:
    assert 0.7 - 0.4 < 0.3
    assert only_pair("ab", [0.7, 0.4], margin=0.3) == ("a", "b")


def test_sigma_is_of_all_the_scores_of_the_round() -> None:
    # Scores 0, 0, 0, 4: the population standard deviation is √3, so 2.3σ < 4 < 2.4σ.
    groups, scores = [group("p", "abc"), group("q", "d")], [[4, 0, 0], [0]]
    assert len(paired(groups, scores, margin=2.3, margin_unit="sigma").pairs) == 1
    assert paired(groups, scores, margin=2.4, margin_unit="sigma").counts == {"margin": 1, "abstained": 1}


def test_keep_takes_the_widest_margins_of_the_prompts_that_every_other_filter_leaves() -> None:
    groups = [group(f"p{number}", "ab") for number in range(8)]
    scores = [[float(number), 0.0] for number in range(8)]  # p0 is a tie
    found = paired(groups, scores, keep=0.5)
    assert [pair.prompt.id for pair in found.pairs] == ["p4", "p5", "p6", "p7"]  # half of seven, rounded up
    assert found.counts == {"tie": 1, "keep": 3}
    assert [detail for _, reason, detail in found.dropped if reason == "keep"] == ["below the cut-off of 4"] * 3
    floored = paired(groups, scores, keep=0.5, min_score_chosen=5)
    assert [pair.prompt.id for pair in floored.pairs] == ["p6", "p7"]


def test_keep_holds_for_further_pairs_but_decides_by_the_first() -> None:
    groups = [group("p", "abc"), group("q", "abc")]
    found = paired(groups, [[9, 8, 0], [3, 2, 0]], keep=0.5, pairs_per_prompt=9)
    assert [(pair.prompt.id, pair.margin) for pair in found.pairs] == [("p", 9.0)]
    assert [(pair.prompt.id, pair.margin) for pair in paired(groups, [[9, 0, 0], [3, 2, 0]], keep=0.5,
            pairs_per_prompt=9).pairs] == [("p", 9.0), ("p", 9.0)]  # fmt: skip


def test_keep_decides_alike_however_many_pairs_a_prompt_may_give() -> None:
    groups = [group(f"p{number}", "abc") for number in range(40)]
    kept = []
    for count in (1, 2):
        found = paired(groups, [[9, 8, 0]] * 40, rule="best_random", keep=0.1, pairs_per_prompt=count)
        assert {pair.margin for pair in found.pairs} == {9.0}
        kept.append([pair.prompt.id for pair in found.pairs])
    assert kept[0] == kept[1] and 0 < len(kept[0]) < 40  # those whose first opponent was the worse one


def test_next_best_comparison_is_taken_where_the_first_is_too_similar_or_too_unlike_in_length() -> None:
    texts = ["the cat sat", "the cat sat.", "a dog ran"]
    assert only_pair(texts, [3, 1, 2], max_similarity=0.9) == ("the cat sat", "a dog ran")
    assert only_pair(["aaa", "b", "cc"], [3, 1, 2], max_length_ratio=1.5) == ("aaa", "cc")


def test_texts_that_differ_in_white_space_alone_are_paired_unless_they_are_not_wanted() -> None:
    texts = ["a b", "a  b", "ab"]
    assert only_pair(texts, [2, 0, 1]) == ("a b", "a  b")
    assert only_pair(texts, [2, 0, 1], drop_same_words=True) == ("a b", "ab")
    wanted = all_pairs(texts, [2, 0, 1], 9, drop_same_words=True)
    assert wanted == ["a bab", "aba  b"]


@given(st.lists(st.text(st.sampled_from("ab \n\t\u00a0\u2003\u200b\x1f") | st.characters(codec="utf-8")), max_size=8))
def test_words_are_what_python_takes_them_for(texts: list[str]) -> None:
    column = pa.chunked_array([pa.array(texts, pa.string())])
    assert in_words(column).to_pylist() == [" ".join(text.split()) for text in texts]


def test_similarity_is_of_insertions_and_deletions_to_both_lengths_and_may_be_reached() -> None:
    one, other = "abcdef", "abcxef"
    alike = Indel.normalized_similarity(one, other)
    assert alike == 1 - 2 / 12
    assert only_pair([one, other], [1, 0], max_similarity=alike) == (one, other)
    assert only_drop([one, other], [1, 0], max_similarity=alike - 0.01)[0] == "near_identical"


def test_several_pairs_are_found_past_those_that_are_too_similar() -> None:
    texts = ["aaaa", "aaab", "zzzz", "yyyy"]
    settings: dict[str, Any] = {"max_similarity": 0.6}
    assert all_pairs(texts, [3, 0, 1, 2], 1, **settings) == ["aaaazzzz"]
    assert all_pairs(texts, [3, 0, 1, 2], 3, **settings) == ["aaaazzzz", "yyyyaaab", "aaaayyyy"]
    assert len(all_pairs(texts, [3, 0, 1, 2], 99, **settings)) == 5


def test_a_judgment_that_is_not_of_the_group_in_its_place_is_a_mistake_of_ours() -> None:
    from pipeline.pairing import columns_of

    groups = [group("p", "ab"), group("q", "cde")]
    with pytest.raises(AssertionError, match="every group has one judgment"):
        columns_of(shard_of(groups, judged(groups[::-1], [[0.0, 0.0, 1.0], [1.0, 0.0]])), False)
    with pytest.raises(AssertionError, match="every candidate has one score"):
        columns_of(shard_of(groups, judged(groups, [[0.0, 0.0, 1.0], [1.0, 0.0]])), False)
    with pytest.raises(AssertionError, match="every candidate has one score"):
        columns_of(shard_of(groups, judged(groups, [[0.0, 0.0], [1.0, 0.0]])), False)
