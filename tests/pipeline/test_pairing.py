"""Best against worst, then the next widest: what is paired, what is dropped and why, whatever order things come in."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import PairingConfig
from pipeline.pairing import REASONS, Pairing, pair_groups
from pipeline.types import Candidate, Group, Judgment, PreferencePair, Prompt

Scores = Sequence[float | None]


def group(name: str, texts: Sequence[str], truncated: Sequence[int] = ()) -> Group:
    candidates = tuple(
        Candidate(
            index=index,
            token_ids=tuple(ord(letter) for letter in text) + (() if index in truncated else (2,)),
            text=text,
            finish_reason="length" if index in truncated else "stop",
            seed=1000 + index,
        )
        for index, text in enumerate(texts)
    )
    return Group(Prompt(name, name, (1,)), candidates)


def paired(groups: Sequence[Group], scores: Sequence[Scores], **settings: Any) -> Pairing:
    judgments = [Judgment(one.prompt.id, "judge", tuple(values)) for one, values in zip(groups, scores, strict=True)]
    return pair_groups(groups, judgments, PairingConfig(**settings), 3, "candidates", "judgments")


def only_drop(texts: Sequence[str], scores: Scores, truncated: Sequence[int] = (), **settings: Any) -> tuple[str, str]:
    found = paired([group("p", texts, truncated)], [scores], **settings)
    assert found.pairs == []
    ((name, reason, detail),) = found.dropped
    assert name == "p"
    assert found.counts == {reason: 1}
    return reason, detail


def only_pair(texts: Sequence[str], scores: Scores, truncated: Sequence[int] = (), **settings: Any) -> tuple[str, str]:
    (pair,) = paired([group("p", texts, truncated)], [scores], **settings).pairs
    return pair.chosen.text, pair.rejected.text


# ---------------------------------------------------------------------------------------------- the rule
def test_best_is_chosen_and_worst_rejected_with_their_scores_and_keys() -> None:
    (pair,) = paired([group("p", "abcd")], [[0.5, 2.0, None, -1.0]]).pairs
    assert (pair.chosen.text, pair.rejected.text) == ("b", "d")
    assert (pair.score_chosen, pair.score_rejected, pair.margin) == (2.0, -1.0, 3.0)
    assert (pair.prompt.id, pair.round, pair.candidates_key, pair.judgments_key) == ("p", 3, "candidates", "judgments")


def test_judgments_are_matched_by_prompt_and_not_by_position() -> None:
    groups = [group("p", "ab"), group("q", "cde")]
    judgments = [Judgment("q", "judge", (0.0, 0.0, 1.0)), Judgment("p", "judge", (1.0, 0.0))]
    found = pair_groups(groups, judgments, PairingConfig(), 0, "c", "j")
    assert [(pair.chosen.text, pair.rejected.text in "bcd") for pair in found.pairs] == [("a", True), ("e", True)]


def test_group_without_a_judgment_is_a_mistake_of_ours() -> None:
    with pytest.raises((AssertionError, KeyError)):
        pair_groups([group("p", "ab")], [Judgment("q", "judge", (1.0, 0.0))], PairingConfig(), 0, "c", "j")
    with pytest.raises(AssertionError, match="every candidate has one score"):
        pair_groups([group("p", "abc")], [Judgment("p", "judge", (1.0, 0.0))], PairingConfig(), 0, "c", "j")


def test_nothing_in_gives_nothing_out() -> None:
    found = paired([], [])
    assert (found.pairs, found.dropped, found.counts) == ([], [], {})


def test_empty_or_truncated_candidate_can_be_rejected() -> None:
    assert only_pair(["a", "", "b"], [1, 0, 0.5]) == ("a", "")
    assert only_pair(["a", "long", "b"], [1, 0, 0.5], truncated=[1], drop_truncated=True) == ("a", "long")


def test_empty_candidate_is_never_chosen() -> None:
    assert only_pair([" \n", "a", "b"], [9, 1, 0]) == ("a", "b")


def test_truncated_candidate_is_chosen_unless_told_otherwise() -> None:
    assert only_pair(["long", "a", "b"], [9, 1, 0], truncated=[0]) == ("long", "b")
    assert only_pair(["long", "a", "b"], [9, 1, 0], truncated=[0], drop_truncated=True) == ("a", "b")


# ---------------------------------------------------------------------------------------------- the drops
@pytest.mark.parametrize("scores", [[], [1.0], [None, 2.0], [None, None], [math.nan, 1.0], [math.inf, 1.0]])
def test_fewer_than_two_scores_is_an_abstention_and_no_low_score(scores: Scores) -> None:
    reason, detail = only_drop("ab"[: len(scores)], scores)
    assert reason == "abstained"
    assert detail.endswith(f"of {len(scores)} candidates have a score")


@pytest.mark.parametrize(
    ("texts", "scores", "truncated", "settings", "expected"),
    [
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
    ],
)
def test_group_without_a_pair_says_why(
    texts: Sequence[str], scores: Scores, truncated: list[int], settings: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert only_drop(texts, scores, truncated, **settings) == expected


def test_same_text_from_other_ids_is_identical() -> None:
    one = group("p", "ab")
    twin = replace(one.candidates[1], text="a")
    assert paired([replace(one, candidates=(one.candidates[0], twin))], [[1, 0]]).counts == {"identical": 1}


def test_margin_reached_but_for_rounding_is_kept() -> None:
    assert 0.7 - 0.4 < 0.3
    assert only_pair("ab", [0.7, 0.4], margin=0.3) == ("a", "b")


def test_sigma_is_of_all_the_scores_of_the_call() -> None:
    # Scores 0, 0, 0, 4: the population standard deviation is √3, so 2.3σ < 4 < 2.4σ.
    groups, scores = [group("p", "abc"), group("q", "d")], [[4, 0, 0], [0]]
    assert len(paired(groups, scores, margin=2.3, margin_unit="sigma").pairs) == 1
    assert paired(groups, scores, margin=2.4, margin_unit="sigma").counts == {"margin": 1, "abstained": 1}


# ---------------------------------------------------------------------------------------------- ties at the top
def test_ties_for_best_are_broken_as_often_as_each_text_was_sampled() -> None:
    groups = [group(f"p{number}", ["a", "a", "a", "b", "worst"]) for number in range(2000)]
    found = paired(groups, [[1, 1, 1, 1, 0]] * 2000)
    share = Counter(pair.chosen.text for pair in found.pairs)["a"] / 2000
    assert abs(share - 0.75) < 0.05  # five standard errors; a hash of the text would give 0 or 1


def test_ties_for_best_do_not_favour_a_place() -> None:
    groups = [group(f"p{number}", ["a", "b", "c", "d", "worst"]) for number in range(2000)]
    places = Counter(pair.chosen.index for pair in paired(groups, [[1, 1, 1, 1, 0]] * 2000).pairs)
    assert all(abs(places[index] / 2000 - 0.25) < 0.05 for index in range(4))


# ---------------------------------------------------------------------------------------------- several pairs a prompt
def all_pairs(texts: Sequence[str], scores: Scores, count: int, **settings: Any) -> list[str]:
    """``chosen rejected`` of each pair, in order."""
    found = paired([group("p", texts)], [scores], pairs_per_prompt=count, **settings)
    return [f"{pair.chosen.text}{pair.rejected.text}" for pair in found.pairs]


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


def test_equal_scores_and_candidates_without_one_are_never_paired_with_each_other() -> None:
    assert sorted(all_pairs("abcde", [1, 1, 0, 0, None], 99)) == ["ac", "ad", "bc", "bd"]


def test_two_completions_are_paired_once_and_never_both_ways() -> None:
    assert all_pairs("aabb", [1, 1, 0, 0], 99) == ["ab"]
    # The judge scored "b" twice, above "c" and below it: the wider of the two margins is kept.
    assert all_pairs("abcb", [9, 4, 3, 0], 99) == ["ab", "ac", "cb"]


def test_a_judge_that_scores_one_text_best_and_worst_is_not_believed_about_the_rest() -> None:
    for count in (1, 3):
        assert paired([group("p", "aba")], [[2, 1, 0]], pairs_per_prompt=count).counts == {"identical": 1}


def test_groups_with_pairs_and_dropped_groups_are_all_the_groups() -> None:
    found = paired([group("p", "abc"), group("q", "ab"), group("r", "ab")], [[2, 1, 0], [1, 1], [1, 0]],
                   pairs_per_prompt=3)  # fmt: skip
    assert [pair.prompt.id for pair in found.pairs] == ["p", "p", "p", "r"]
    assert (found.paired, found.counts) == (2, {"tie": 1})


# ---------------------------------------------------------------------------------------------- properties
score = st.none() | st.integers(-4, 4).map(float)
candidate = st.tuples(score, st.sampled_from(["", "a", "b", "c", "d"]), st.booleans())
rounds = st.lists(st.lists(candidate, max_size=6), max_size=5)
configs = st.builds(
    PairingConfig,
    margin=st.sampled_from([0.0, 0.5, 2.0]),
    margin_unit=st.sampled_from(["score", "sigma"]),
    min_score_chosen=st.none() | st.just(1.0),
    drop_truncated=st.booleans(),
    pairs_per_prompt=st.sampled_from([1, 2, 3, 99]),
)
Drawn = list[list[tuple[float | None, str, bool]]]


def build(drawn: Drawn) -> tuple[list[Group], list[Judgment]]:
    groups = [
        group(f"p{number}", [text for _, text, _ in row], [i for i, (_, _, cut) in enumerate(row) if cut])
        for number, row in enumerate(drawn)
    ]
    return groups, [
        Judgment(one.prompt.id, "j", tuple(s for s, _, _ in row)) for one, row in zip(groups, drawn, strict=True)
    ]


def essence(found: Pairing) -> tuple[set[Any], set[Any]]:
    return set(found.pairs), {(name, reason) for name, reason, _ in found.dropped}


def by_prompt(found: Pairing) -> dict[str, list[PreferencePair]]:
    pairs = defaultdict(list)
    for pair in found.pairs:
        pairs[pair.prompt.id].append(pair)
    return pairs


@given(rounds, configs)
def test_every_group_gives_its_pairs_together_or_one_drop(drawn: Drawn, config: PairingConfig) -> None:
    groups, judgments = build(drawn)
    found = pair_groups(groups, judgments, config, 0, "c", "j")
    pairs = by_prompt(found)
    names = [*pairs, *(name for name, _, _ in found.dropped)]
    assert sorted(names) == sorted(one.prompt.id for one in groups)
    assert found.pairs == [pair for group in pairs.values() for pair in group]
    assert all(len(group) <= config.pairs_per_prompt for group in pairs.values())
    assert found.paired == len(pairs) == len(groups) - len(found.dropped)
    assert len({pair.id for pair in found.pairs}) == len(found.pairs)
    assert sum(found.counts.values()) == len(found.dropped)
    assert {reason for _, reason, _ in found.dropped} <= set(REASONS)


@given(rounds, configs)
def test_a_pair_always_states_a_preference_the_judge_expressed(drawn: Drawn, config: PairingConfig) -> None:
    groups, judgments = build(drawn)
    given_scores = {one.prompt.id: judgment.scores for one, judgment in zip(groups, judgments, strict=True)}
    found = pair_groups(groups, judgments, config, 0, "c", "j")
    for pair in found.pairs:
        scores = given_scores[pair.prompt.id]
        assert scores[pair.chosen.index] == pair.score_chosen
        assert scores[pair.rejected.index] == pair.score_rejected
        assert pair.score_chosen > pair.score_rejected
        assert pair.chosen.text != pair.rejected.text
        assert pair.chosen.text
        assert not (config.drop_truncated and pair.chosen.finish_reason == "length")
        assert config.min_score_chosen is None or pair.score_chosen >= config.min_score_chosen
    for name, pairs in by_prompt(found).items():
        assert pairs[0].score_rejected == min(value for value in given_scores[name] if value is not None)


@given(rounds, configs)
def test_the_pairs_are_the_widest_of_all_combinations_that_may_be_paired(drawn: Drawn, config: PairingConfig) -> None:
    """Against every combination in two plain loops: its widest margin for any two texts."""
    groups, judgments = build(drawn)
    scored = [value for row in drawn for value, _, _ in row if value is not None]
    mean = sum(scored) / max(len(scored), 1)
    sigma = math.sqrt(sum((value - mean) ** 2 for value in scored) / max(len(scored), 1))
    least = config.margin * (sigma if config.margin_unit == "sigma" else 1) * (1 - 1e-9)
    kept = by_prompt(pair_groups(groups, judgments, config, 0, "c", "j"))
    for one, row in zip(groups, drawn, strict=True):
        widest: dict[frozenset[str], float] = {}
        for value, text, cut in row:
            for other, rejected, _ in row:
                if value is None or other is None or value <= other or value - other < least or text == rejected:
                    continue
                if text and not (cut and config.drop_truncated) and value >= (config.min_score_chosen or -math.inf):
                    compared = frozenset((text, rejected))
                    widest[compared] = max(widest.get(compared, 0.0), value - other)
        if pairs := kept.get(one.prompt.id):
            margins = sorted(widest.values(), reverse=True)[: config.pairs_per_prompt]
            assert [pair.margin for pair in pairs] == margins


@given(rounds, configs)
def test_more_pairs_a_prompt_adds_pairs_and_changes_neither_the_first_ones_nor_the_drops(
    drawn: Drawn, config: PairingConfig
) -> None:
    groups, judgments = build(drawn)
    every = pair_groups(groups, judgments, config.model_copy(update={"pairs_per_prompt": 99}), 0, "c", "j")
    some = pair_groups(groups, judgments, config, 0, "c", "j")
    cut = {name: pairs[: config.pairs_per_prompt] for name, pairs in by_prompt(every).items()}
    assert (by_prompt(some), some.dropped) == (cut, every.dropped)


@given(rounds, configs, st.randoms(use_true_random=False))
def test_order_of_candidates_groups_and_judgments_means_nothing(
    drawn: Drawn, config: PairingConfig, random: Any
) -> None:
    groups, judgments = build(drawn)
    shuffled_groups, shuffled_judgments = [], []
    for one, judgment in zip(groups, judgments, strict=True):
        order = random.sample(range(len(one.candidates)), len(one.candidates))
        shuffled_groups.append(replace(one, candidates=tuple(one.candidates[index] for index in order)))
        shuffled_judgments.append(replace(judgment, scores=tuple(judgment.scores[index] for index in order)))
    random.shuffle(shuffled_groups)
    random.shuffle(shuffled_judgments)
    before = pair_groups(groups, judgments, config, 0, "c", "j")
    after = pair_groups(shuffled_groups, shuffled_judgments, config, 0, "c", "j")
    assert essence(before) == essence(after)


def rescaled(judgments: Sequence[Judgment], scale: float, shift: float) -> list[Judgment]:
    return [
        replace(one, scores=tuple(None if value is None else scale * value + shift for value in one.scores))
        for one in judgments
    ]


def names(found: Pairing) -> tuple[list[Any], list[Any]]:
    pairs = [(pair.prompt.id, pair.chosen.index, pair.rejected.index) for pair in found.pairs]
    return pairs, [(name, reason) for name, reason, _ in found.dropped]


@given(rounds, configs, st.integers(-9, 9), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_shift_changes_nothing_and_scale_only_a_margin_in_score_units(
    drawn: Drawn, config: PairingConfig, shift: int, scale: float
) -> None:
    groups, judgments = build(drawn)
    moved = rescaled(judgments, scale, shift)
    floor = None if config.min_score_chosen is None else scale * config.min_score_chosen + shift
    margin = config.margin * (scale if config.margin_unit == "score" else 1.0)
    same = config.model_copy(update={"min_score_chosen": floor, "margin": margin})
    before = pair_groups(groups, judgments, config, 0, "c", "j")
    assert names(before) == names(pair_groups(groups, moved, same, 0, "c", "j"))


def test_scores_scaled_under_a_fixed_score_margin_do_change_the_pairs() -> None:
    assert only_pair("ab", [2, 0], margin=1.0) == ("a", "b")
    assert only_drop("ab", [0.5, 0], margin=1.0)[0] == "margin"


# ---------------------------------------------------------------------------------------------- identity
def test_pair_id_names_prompt_tokens_and_upstream_keys_and_nothing_else() -> None:
    one, judgment = group("p", "ab"), Judgment("p", "judge", (1.0, 0.0))

    def pair_id(
        who: Group = one, scores: Judgment = judgment, round: int = 0, candidates: str = "c", judgments: str = "j"
    ) -> str:
        return pair_groups([who], [scores], PairingConfig(), round, candidates, judgments).pairs[0].id

    first, second = one.candidates
    longer = replace(one, candidates=(replace(first, token_ids=(*first.token_ids, *second.token_ids[:1])),
                                      replace(second, token_ids=second.token_ids[1:])))  # fmt: skip
    others = [
        pair_id(candidates="d"),
        pair_id(judgments="k"),
        pair_id(scores=replace(judgment, scores=(0.0, 1.0))),
        pair_id(who=replace(one, prompt=replace(one.prompt, id="q")), scores=replace(judgment, prompt_id="q")),
        pair_id(who=longer),
    ]
    assert len({pair_id(), *others}) == 6
    assert pair_id(round=1, scores=replace(judgment, scores=(9.0, 3.0))) == pair_id()
