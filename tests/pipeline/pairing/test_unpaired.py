"""Completions labelled one by one."""

from pipeline.config import PairingConfig
from pipeline.pairing import Yardstick, pair
from pipeline.pairing.unpaired import UNPAIRED, unpaired_by_role, unpaired_by_threshold

from .rounds import ORIGIN, Scores, group, judged, shard_of

GROUPS = [group("p", "abc"), group("q", "abc")]


def roles(scores: list[Scores], count: int) -> tuple[set[tuple[str, str, bool]], dict[str, int]]:
    shard = shard_of(GROUPS, judged(GROUPS, scores))
    found = unpaired_by_role(pair(shard, PairingConfig(pairs_per_prompt=count), Yardstick(), ORIGIN).pairs)
    assert found.completions.schema == UNPAIRED
    rows = found.completions.to_pylist()
    assert len({(row["prompt_id"], row["index"]) for row in rows}) == len(rows)
    return {(row["prompt_id"], row["text"], row["desirable"]) for row in rows}, dict(found.dropped)


def test_what_was_chosen_is_desirable_and_what_was_rejected_is_not() -> None:
    assert roles([[2, 1, 0], [0, 0, 5]], 1)[0] >= {("p", "a", True), ("p", "c", False), ("q", "c", True)}
    found, dropped = roles([[2, 2, 0], [0, 0, 5]], 9)
    assert found == {("p", "a", True), ("p", "b", True), ("p", "c", False), ("q", "a", False), ("q", "b", False),
                     ("q", "c", True)}  # fmt: skip
    assert dropped == {"won_and_lost": 0}


def test_what_won_and_lost_is_neither_and_is_counted() -> None:
    found, dropped = roles([[2, 1, 0], [1, 1, 1]], 9)
    assert found == {("p", "a", True), ("p", "c", False)}
    assert dropped == {"won_and_lost": 1}


def test_no_pairs_give_no_completions() -> None:
    assert roles([[1, 1, 1], [0, 0, 0]], 1) == (set(), {"won_and_lost": 0})


def test_a_threshold_labels_groups_that_gave_no_pair_as_well() -> None:
    groups = [group("p", ["a", "b"]), group("q", ["a", " "]), group("r", ["a", "b"])]
    shard = shard_of(groups, judged(groups, [[1.0, 0.5], [0.2, 0.9], [None, 0.1]]))
    found = unpaired_by_threshold(shard, 0.5, 3, "c", "j")
    rows = found.completions.to_pylist()
    assert [(row["prompt_id"], row["index"], row["score"], row["desirable"]) for row in rows] == [
        ("p", 0, 1.0, True), ("p", 1, 0.5, True), ("q", 0, 0.2, False), ("r", 1, 0.1, False),
    ]  # fmt: skip
    assert found.dropped == {"abstained": 1, "empty": 1}
    assert len(rows) + sum(found.dropped.values()) == 6
    assert {row["round"] for row in rows} == {3} and found.completions.schema == UNPAIRED
