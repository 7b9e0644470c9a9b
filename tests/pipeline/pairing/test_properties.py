"""What holds for every round and every config."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import PairingConfig
from pipeline.pairing import REASONS
from pipeline.types import Judgment

from .rounds import Drawn, Found, build, configs, only_drop, only_pair, pair_round, rounds


def essence(found: Found) -> tuple[set[Any], set[Any]]:
    return set(found.pairs), {(name, reason) for name, reason, _ in found.dropped}


@given(rounds, configs())
def test_every_group_gives_its_pairs_together_or_one_drop(drawn: Drawn, config: PairingConfig) -> None:
    groups, judgments = build(drawn)
    found = pair_round(groups, judgments, config)
    names = [*found.by_prompt, *(name for name, _, _ in found.dropped)]
    assert sorted(names) == sorted(one.prompt.id for one in groups)
    assert found.pairs == [pair for pairs in found.by_prompt.values() for pair in pairs]
    assert all(len(pairs) <= config.pairs_per_prompt for pairs in found.by_prompt.values())
    assert len({pair.id for pair in found.pairs}) == len(found.pairs)
    assert {reason for _, reason, _ in found.dropped} <= set(REASONS)


@given(rounds, configs())
def test_a_pair_always_states_a_preference_the_judge_expressed(drawn: Drawn, config: PairingConfig) -> None:
    groups, judgments = build(drawn)
    given_scores = {one.prompt.id: judgment.scores for one, judgment in zip(groups, judgments, strict=True)}
    controlled = config.length_regression or config.length_penalty > 0
    for pair in pair_round(groups, judgments, config).pairs:
        scores = given_scores[pair.prompt.id]
        chosen, rejected = scores[pair.chosen.index], scores[pair.rejected.index]
        assert chosen is not None and rejected is not None and chosen != rejected  # a tie is no label
        assert controlled or (chosen, rejected) == (pair.score_chosen, pair.score_rejected)
        assert pair.score_chosen > pair.score_rejected
        assert pair.margin >= (config.margin if config.margin_unit == "score" else 0) * (1 - 1e-9)
        assert pair.chosen.text != pair.rejected.text and pair.chosen.token_ids != pair.rejected.token_ids
        assert not (config.drop_same_words and pair.chosen.text.split() == pair.rejected.text.split())
        assert pair.chosen.text
        assert not (config.drop_truncated and pair.chosen.finish_reason == "length")
        assert config.min_score_chosen is None or pair.score_chosen >= config.min_score_chosen
        sizes = sorted(len(one.token_ids) for one in (pair.chosen, pair.rejected))
        assert config.max_length_ratio is None or sizes[1] <= config.max_length_ratio * sizes[0]
        if config.rule == "threshold":
            assert pair.score_chosen >= config.threshold > pair.score_rejected


PLAIN: dict[str, Any] = {
    "keep": 1.0, "drop_same_words": False, "max_similarity": None, "max_length_ratio": None, "length_penalty": 0.0,
    "length_regression": False,
}  # fmt: skip
"""For what can be said in two plain loops."""


@given(rounds, configs(["best_worst", "all_pairs"], **PLAIN))
def test_the_pairs_are_of_all_combinations_that_may_be_paired(drawn: Drawn, config: PairingConfig) -> None:
    """Against every combination in two plain loops: for any two texts one, and of best_worst the widest."""
    groups, judgments = build(drawn)
    scored = [value for row in drawn for value, _, _ in row if value is not None]
    mean = sum(scored) / max(len(scored), 1)
    sigma = math.sqrt(sum((value - mean) ** 2 for value in scored) / max(len(scored), 1))
    least = config.margin * (sigma if config.margin_unit == "sigma" else 1) * (1 - 1e-9)
    kept = pair_round(groups, judgments, config).by_prompt
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
            assert len(pairs) == min(config.pairs_per_prompt, len(widest))
            if config.rule == "best_worst":
                margins = sorted(widest.values(), reverse=True)[: config.pairs_per_prompt]
                assert [pair.margin for pair in pairs] == margins
                assert pairs[0].score_rejected == min(value for value, _, _ in row if value is not None)


@given(rounds, configs())
def test_more_pairs_a_prompt_adds_pairs_and_changes_neither_the_first_ones_nor_the_drops(
    drawn: Drawn, config: PairingConfig
) -> None:
    groups, judgments = build(drawn)
    every = pair_round(groups, judgments, config.model_copy(update={"pairs_per_prompt": 99}))
    some = pair_round(groups, judgments, config)
    assert some.dropped == every.dropped
    for name, pairs in every.by_prompt.items():
        cut = pairs[: config.pairs_per_prompt]
        assert some.by_prompt[name] == (cut if config.keep == 1 else cut[: len(some.by_prompt[name])])


@given(rounds, configs(), st.randoms(use_true_random=False))
def test_order_of_candidates_and_groups_means_nothing(drawn: Drawn, config: PairingConfig, random: Any) -> None:
    groups, judgments = build(drawn)
    shuffled = []
    for one, judgment in zip(groups, judgments, strict=True):
        order = random.sample(range(len(one.candidates)), len(one.candidates))
        shuffled.append(
            (replace(one, candidates=tuple(one.candidates[index] for index in order)),
             replace(judgment, scores=tuple(judgment.scores[index] for index in order)))
        )  # fmt: skip
    random.shuffle(shuffled)
    before = pair_round(groups, judgments, config)
    after = pair_round([one for one, _ in shuffled], [judgment for _, judgment in shuffled], config)
    assert essence(before) == essence(after)


@given(rounds, configs(), st.integers(1, 3), st.integers(1, 3))
def test_how_a_round_lies_in_shards_and_how_many_are_paired_at_once_means_nothing(
    drawn: Drawn, config: PairingConfig, per_shard: int, together: int
) -> None:
    groups, judgments = build(drawn)
    found = pair_round(groups, judgments, config, per_shard=per_shard, together=together)
    assert found == pair_round(groups, judgments, config)


# ---------------------------------------------------------------------------------------------- shift and scale
def rescaled(judgments: Sequence[Judgment], scale: float, shift: float) -> list[Judgment]:
    return [
        replace(one, scores=tuple(None if value is None else scale * value + shift for value in one.scores))
        for one in judgments
    ]


def names(found: Found) -> tuple[list[Any], list[Any]]:
    pairs = [(pair.prompt.id, pair.chosen.index, pair.rejected.index) for pair in found.pairs]
    return pairs, [(name, reason) for name, reason, _ in found.dropped]


@given(rounds, configs(), st.integers(-9, 9), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_shift_changes_nothing_and_scale_only_what_is_given_in_score_units(
    drawn: Drawn, config: PairingConfig, shift: int, scale: float
) -> None:
    """A margin in σ holds as it is; one in score units, floors, thresholds and penalties are scaled with the scores."""
    groups, judgments = build(drawn)
    if config.length_regression:  # its slope is rounded otherwise: equal margins may then come in another order
        config = config.model_copy(update={"length_regression": False})
    same = config.model_copy(
        update={
            "min_score_chosen": None if config.min_score_chosen is None else scale * config.min_score_chosen + shift,
            "margin": config.margin * (scale if config.margin_unit == "score" else 1.0),
            "threshold": scale * config.threshold + shift,
            "length_penalty": scale * config.length_penalty,
        }
    )
    before = pair_round(groups, judgments, config)
    assert names(before) == names(pair_round(groups, rescaled(judgments, scale, shift), same))


def test_scores_scaled_under_a_fixed_score_margin_do_change_the_pairs() -> None:
    assert only_pair("ab", [2, 0], margin=1.0) == ("a", "b")
    assert only_drop("ab", [0.5, 0], margin=1.0)[0] == "margin"


def test_scores_scaled_under_a_margin_in_sigma_do_not() -> None:
    for scale in (1.0, 1e-6, 1e6):
        assert only_pair("abc", [2 * scale, scale, 0.0], margin=2.4, margin_unit="sigma") == ("a", "c")
        assert only_drop("abc", [2 * scale, scale, 0.0], margin=2.5, margin_unit="sigma")[0] == "margin"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_takes_part_in_nothing(value: float) -> None:
    for rule in ("best_worst", "best_mu_minus_2sigma", "best_random"):
        assert only_pair("abc", [1.0, value, 0.0], rule=rule) == ("a", "c")
