"""Completions labelled one by one."""

from hypothesis import given

from pipeline.config import PairingConfig
from pipeline.pairing import Yardstick, pair
from pipeline.pairing.unpaired import UNPAIRED, unpaired_by_role

from .rounds import ORIGIN, Drawn, Scores, build, configs, group, judged, rounds, shard_of

GROUPS = [group("p", "abc"), group("q", "abc")]


def roles(scores: list[Scores], count: int) -> tuple[set[tuple[str, str, bool]], int]:
    shard = shard_of(GROUPS, judged(GROUPS, scores))
    found = unpaired_by_role(pair(shard, PairingConfig(pairs_per_prompt=count), Yardstick(), ORIGIN).pairs)
    assert found.completions.schema == UNPAIRED
    rows = found.completions.to_pylist()
    assert len({(row["prompt_id"], row["index"]) for row in rows}) == len(rows)
    return {(row["prompt_id"], row["text"], row["desirable"]) for row in rows}, found.won_and_lost


def test_what_was_chosen_is_desirable_and_what_was_rejected_is_not() -> None:
    assert roles([[2, 1, 0], [0, 0, 5]], 1)[0] >= {("p", "a", True), ("p", "c", False), ("q", "c", True)}
    found, both = roles([[2, 2, 0], [0, 0, 5]], 9)
    assert found == {("p", "a", True), ("p", "b", True), ("p", "c", False), ("q", "a", False), ("q", "b", False),
                     ("q", "c", True)}  # fmt: skip
    assert both == 0


def test_what_won_and_lost_is_neither_and_is_counted() -> None:
    found, both = roles([[2, 1, 0], [1, 1, 1]], 9)
    assert found == {("p", "a", True), ("p", "c", False)}
    assert both == 1


def test_no_pairs_give_no_completions() -> None:
    assert roles([[1, 1, 1], [0, 0, 0]], 1) == (set(), 0)


def test_a_text_sampled_twice_has_one_label_or_none() -> None:
    groups = [group("p", ["a", "b", "b", "c"]), group("q", ["b", "c"])]
    shard = shard_of(groups, judged(groups, [[2, 1, 1, 0], [3, 1]]))
    pairs = pair(shard, PairingConfig(rule="all_pairs", pairs_per_prompt=9), Yardstick(), ORIGIN).pairs
    found = unpaired_by_role(pairs)
    rows = [(row["prompt_id"], row["text"], row["desirable"]) for row in found.completions.to_pylist()]
    assert sorted(rows) == [("p", "a", True), ("p", "c", False), ("q", "b", True), ("q", "c", False)]
    assert found.won_and_lost == 1


@given(rounds, configs(["all_pairs", "threshold", "best_random"]))
def test_no_text_of_a_prompt_is_labelled_both_ways_and_all_are_counted(drawn: Drawn, config: PairingConfig) -> None:
    groups, judgments = build(drawn)
    pairs = pair(shard_of(groups, judgments), config, Yardstick(sigma=1.0), ORIGIN).pairs
    found = unpaired_by_role(pairs)
    named = [(row["prompt_id"], row["text"]) for row in found.completions.to_pylist()]
    texts = {(row["prompt_id"], row[f"{side}_text"]) for row in pairs.to_pylist() for side in ("chosen", "rejected")}
    assert len(named) == len(set(named)) and set(named) <= texts
    assert len(named) + found.won_and_lost == len(texts)
