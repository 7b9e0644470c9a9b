"""The file of votes: nothing acknowledged is ever lost, whatever is killed when."""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judges.annotation.store import Records, Vote, VoteStore, read_votes
from judges.annotation.tasks import compare
from pipeline.errors import BusyError, DataError, StoreError

TASKS = [compare(f"prompt {i}", f"one {i}", f"other {i}\u2028\n{i}") for i in range(3)]
IDS = [task.id for task in TASKS]


def standing(records: Records) -> dict[tuple[str, str], str]:
    return {(vote.annotator, vote.task): vote.verdict for vote in records.votes}


def test_votes_and_tasks_are_there_again_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "votes.jsonl"
    with VoteStore(path) as store:
        store.add_tasks(TASKS)
        store.cast(Vote(IDS[0], "Ann", "first", "second", 2.5, "because ☃"))
        store.cast(Vote(IDS[1], "Ann", "skip"), Vote(IDS[0], "Bob", "tie"))
        store.take_back("Bob", IDS[0])
        kept = store.records
    with VoteStore(path) as again:
        assert again.records == kept
        assert list(again.records.tasks.values()) == TASKS
        (vote,) = [vote for vote in again.records.votes if vote.verdict == "first"]
        assert (vote.left, vote.seconds, vote.comment) == ("second", 2.5, "because ☃")
        assert vote.at.endswith("+00:00")
        assert again.records.voted == {IDS[0]: 1, IDS[1]: 0}
        assert again.records.withdrawn["Bob"] == [IDS[0]]


ACTIONS = st.lists(
    st.tuples(*map(st.sampled_from, (["Ann", "Bob"], IDS, ["first", "second", "tie", "skip", "undo"]))), max_size=12
)


@settings(max_examples=30)  # each syncs to the disk a dozen times
@given(actions=ACTIONS, cut=st.floats(0, 1))
def test_a_kill_at_any_byte_leaves_what_was_acknowledged_until_then(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, str, Any]], cut: float
) -> None:
    path = tmp_path_factory.mktemp("killed") / "votes.jsonl"
    expected: dict[tuple[str, str], str] = {}
    history = [(0, dict(expected))]  # size of the file, and what was acknowledged by then
    with VoteStore(path) as store:
        store.add_tasks(TASKS)
        history.append((path.stat().st_size, {}))
        for annotator, task, verdict in actions:
            if verdict != "undo":
                store.cast(Vote(task, annotator, verdict))
                expected[annotator, task] = verdict
            elif (annotator, task) in expected:
                store.take_back(annotator, task)
                del expected[annotator, task]
            assert standing(store.records) == expected
            history.append((path.stat().st_size, dict(expected)))
    size = int(cut * path.stat().st_size)
    os.truncate(path, size)
    acknowledged = next(votes for end, votes in reversed(history) if end <= size)
    assert standing(read_votes(path)) == acknowledged
    with VoteStore(path) as store:
        assert standing(store.records) == acknowledged
        store.add_tasks(TASKS)
        store.cast(Vote(IDS[0], "Cleo", "tie"))  # and it goes on after a torn line
    assert standing(read_votes(path)) == acknowledged | {("Cleo", IDS[0]): "tie"}


def test_two_servers_cannot_have_one_file(tmp_path: Path) -> None:
    with VoteStore(tmp_path / "votes.jsonl"), pytest.raises(BusyError, match="another annotation server"):
        VoteStore(tmp_path / "votes.jsonl")
    VoteStore(tmp_path / "votes.jsonl").close()


def test_files_of_two_places_can_be_joined(tmp_path: Path) -> None:
    for name in ("Ann", "Bob"):
        with VoteStore(tmp_path / name) as store:
            store.add_tasks(TASKS)
            store.cast(Vote(IDS[0], name, "tie"))
    joined = tmp_path / "both.jsonl"
    joined.write_bytes((tmp_path / "Ann").read_bytes() + (tmp_path / "Bob").read_bytes())
    assert standing(read_votes(joined)) == {("Ann", IDS[0]): "tie", ("Bob", IDS[0]): "tie"}


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", '{"type": "vote"}', '{"type": "ballot"}', '{"type": "undo", "task": "x", "annotator": "Ann"}',
     json.dumps({"type": "vote", "task": IDS[0], "annotator": "Ann", "verdict": "maybe"}),
     json.dumps({"type": "vote", "task": "unknown", "annotator": "Ann", "verdict": "tie"})],
)  # fmt: skip
def test_a_line_that_is_not_ours_is_named_and_never_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "votes.jsonl"
    with VoteStore(path) as store:
        store.add_tasks(TASKS)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(StoreError, match="line 4"):
        read_votes(path)
    with pytest.raises(StoreError, match="line 4"):
        VoteStore(path)


def test_a_vote_that_cannot_be_written_whole_is_not_written_at_all(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with VoteStore(path) as store:
        store.add_tasks(TASKS)
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))  # the disk is full after 20 bytes more
        try:
            with pytest.raises(StoreError, match="File too large"):
                store.cast(Vote(IDS[0], "Ann", "tie"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (store.records.votes, path.stat().st_size) == ([], size)
        store.cast(Vote(IDS[0], "Ann", "first"))
    assert standing(read_votes(path)) == {("Ann", IDS[0]): "first"}


def test_a_missing_file_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ratchet annotate"):
        read_votes(tmp_path / "none.jsonl")
