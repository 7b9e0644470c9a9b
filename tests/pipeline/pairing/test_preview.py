"""What would each margin keep?"""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given

from pipeline.config import PairingConfig
from pipeline.pairing.artifact import survey
from pipeline.pairing.preview import QUANTILES, preview

from .rounds import RULES, Drawn, Held, Scores, build, configs, group, judged, pair_round, rounds, shard_of


def shown(scores: Sequence[Scores], quantiles: Sequence[float] = QUANTILES, **settings: Any) -> list[dict[str, Any]]:
    """Of groups whose texts are each longer than the one before."""
    config = PairingConfig(margin_unit="sigma", **settings)
    groups = [group(f"p{number}", ["abcdefg"[: at + 1] for at in range(len(row))]) for number, row in enumerate(scores)]
    held = Held([shard_of(groups[at : at + 2], judged(groups, scores)[at : at + 2]) for at in range(0, len(groups), 2)])
    return preview(held, config, survey(held, config), quantiles=quantiles)


@given(rounds, configs(keep=1.0))
def test_a_row_is_what_pairing_gives_with_that_margin(drawn: Drawn, config: PairingConfig) -> None:
    groups, judgments = build(drawn)
    held = Held([shard_of(groups[at : at + 2], judgments[at : at + 2]) for at in range(0, len(groups), 2)])
    free = config.model_copy(update={"margin": 0.0, "margin_unit": "sigma"})
    rows = preview(held, free, survey(held, free), quantiles=(0.0, 0.5, 1.0))
    without = pair_round(groups, judgments, free).pairs
    assert [row["margin"] for row in rows] == sorted({row["margin"] for row in rows})
    assert bool(rows) == bool(without) and (not rows or rows[0]["pairs"] == len(without))
    for row in rows:
        update = {"margin": float(f"{row['margin']:g}"), "margin_unit": "score"}
        found = pair_round(groups, judgments, free.model_copy(update=update))
        assert (row["pairs"], row["prompts"]) == (len(found.pairs), len(found.by_prompt))
        assert row["share"] == len(found.pairs) / len(without)
        assert row["mean_margin"] == pytest.approx(sum(pair.margin for pair in found.pairs) / len(found.pairs))
        longer = [len(pair.chosen.token_ids) > len(pair.rejected.token_ids) for pair in found.pairs]
        assert row["chosen_longer"] == sum(longer) / len(longer)


@pytest.mark.parametrize("rule", RULES)
def test_a_group_whose_first_pair_is_too_narrow_may_give_a_wider_one(rule: str) -> None:
    settings = {"threshold": 2.0} if rule == "threshold" else {}
    rows = shown([[0.0, 1.0, 3.0, 6.5]] * 40, rule=rule, **settings)
    assert {row["prompts"] for row in rows} == {40}  # each has 6.5 against 0 in the end, whatever came first
    assert rows[-1]["margin"] == max(row["margin"] for row in rows)


def test_prompts_and_their_pairs_are_counted_apart() -> None:
    rows = shown([[0.0, 1.0, 3.0], [0.0, 2.0, 2.0]], pairs_per_prompt=3)
    assert [(row["margin"], row["prompts"], row["pairs"]) for row in rows] == [(1.0, 2, 5), (2.0, 2, 4), (3.0, 1, 1)]


def test_a_row_says_how_much_a_margin_keeps_and_how_much_of_that_is_longer() -> None:
    rows = shown([[0.0, 4.0], [1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], quantiles=(0.0, 0.5, 1.0))
    assert [(row["margin"], row["pairs"], row["share"]) for row in rows] == [
        (1.0, 4, 1.0),
        (3.0, 2, 0.5),
        (4.0, 1, 0.25),
    ]
    assert [(row["mean_margin"], row["chosen_longer"]) for row in rows] == [(2.5, 0.5), (3.5, 1.0), (4.0, 1.0)]
    assert rows[0]["margin"] / rows[0]["sigma"] == pytest.approx(rows[2]["margin"] / rows[2]["sigma"])


def test_margins_that_are_few_are_all_shown_and_each_once() -> None:
    margins = [0.5] * 97 + [1.0] * 2 + [0.1 + 0.2 + 1.2, 1.5]  # the last two are one, but for rounding
    rows = shown([[margin, 0.0] for margin in margins])
    assert [(row["margin"], row["pairs"]) for row in rows] == [(0.5, 101), (1.0, 4), (1.5, 2)]


def test_a_margin_is_shown_to_the_digits_that_pairing_takes() -> None:
    rows = shown([[1 / 3, 0.0], [2 / 3, 0.0]])
    assert [(row["margin"], row["pairs"]) for row in rows] == [(0.3333, 2), (0.6666, 1)]


def test_many_pairs_at_the_narrowest_margin_are_one_row() -> None:
    kept = [row["pairs"] for row in shown([[margin, 0.0] for margin in [*[1.0] * 60, *map(float, range(2, 42))]])]
    assert kept == sorted(set(kept), reverse=True) and kept[0] == 100 and 1 < len(kept) <= 7


def test_without_pairs_there_is_nothing_to_show() -> None:
    assert shown([[1.0, 1.0], [0.0, 0.0]]) == []
