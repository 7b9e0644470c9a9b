"""Argilla and Label Studio: what people said there arrives here, and the other way round."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.annotation.argilla import from_argilla, to_argilla, user_id
from judges.annotation.exchange import FAULTS, Imported, add_to
from judges.annotation.files import Tool, export_file, import_file
from judges.annotation.label_studio import CONFIG, from_label_studio, to_label_studio
from judges.annotation.store import Vote, VoteStore, read_votes
from judges.annotation.tasks import Outcome, Task, compare
from pipeline.errors import DataError
from pipeline.rows import read_rows

FILES = Path(__file__).parent / "exchange_files"
Export = Callable[[Sequence[Task], Iterable[Vote]], list[dict[str, Any]]]
Import = Callable[..., Imported]
USERS = {f"4f0c1d2e-0000-4000-8000-00000000000{i}": name for i, name in ((1, "Ann"), (2, "Bob"))}

PLAIN = [compare(f"prompt {i}", f"good {i}", f"bad {i}", prompt_id=f"p-{i}" if i % 2 else None) for i in range(8)]
CHAT = [
    compare([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}], "Because.", ""),
    compare([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "c", "d\n\ne"),
]


def winners(imported: Imported) -> dict[tuple[str, str], str]:
    """The text each annotator preferred, or the verdict, by the beginning of the prompt."""
    tasks = {task.id: task for task in imported.tasks}
    told = {}
    for vote in imported.votes:
        task = tasks[vote.task]
        said = task.text(vote.verdict) if vote.verdict in ("first", "second") else vote.verdict  # type: ignore[arg-type]
        told[vote.annotator, task.conversation[0]["content"]] = said
    return told


def test_argillas_records_are_read_with_every_response_and_every_fault_named() -> None:
    imported = from_argilla(read_rows(FILES / "argilla.json"), USERS)
    third = "4f0c1d2e-0000-4000-8000-000000000003"
    assert winners(imported) == {
        ("Ann", "Name a fruit."): "An apple.", ("Bob", "Name a fruit."): "tie",
        ("Ann", "Capital of Australia?"): "Too far from Melbourne.", ("Bob", "Capital of Australia?"): "No idea.",
        (third, "Capital of Australia?"): "tie",
        ("Ann", "Count to three."): "both_bad", ("Bob", "Count to three."): "skip",
    }  # fmt: skip
    assert imported.faults == {
        "draft": 1, "identical": 1, "missing_text": 2, "not_a_record": 1,
        "unknown_answer": 1, "no_answer": 1, "no_annotator": 1, "bad_response": 1,
    }  # fmt: skip
    assert imported.rows == 8
    assert len(imported.tasks) == 4
    assert "row 3: draft" in imported.examples[0]
    assert [vote.comment for vote in imported.votes if vote.comment] == ["A carrot is a root."]
    assert imported.tasks[0].prompt_id == "p-1"
    assert len(imported.tasks[1].conversation) == 3


def test_label_studios_export_is_read_with_every_annotation_and_every_fault_named() -> None:
    imported = from_label_studio(read_rows(FILES / "label_studio.json"), {"10": "Ann"})
    assert winners(imported) == {
        ("Ann", "Name a fruit."): "An apple.", ("bob@example.org", "Name a fruit."): "tie",
        ("12", "Name a fruit."): "skip", ("Ann", "Hi"): "Yes?", ("14", "Hi"): "both_bad",
    }  # fmt: skip
    assert imported.faults == {
        "no_answer": 1, "contradictory": 1, "no_annotator": 1, "unknown_answer": 1, "bad_response": 1,
        "identical": 1, "missing_text": 1, "not_a_record": 2,
    }  # fmt: skip
    first = imported.votes[0]
    assert (first.seconds, first.comment, first.at) == (4.288, "A carrot is a root.", "2024-03-09T22:16:08.728378Z")
    assert set(imported.faults) <= set(FAULTS)


def test_the_same_tasks_come_from_both_whichever_response_was_first() -> None:
    fruit = [from_argilla(read_rows(FILES / "argilla.json")), from_label_studio(read_rows(FILES / "label_studio.json"))]
    assert fruit[0].tasks[0] == fruit[1].tasks[0]
    assert {imported.votes[0].verdict for imported in fruit} == {fruit[0].votes[0].verdict}
    assert {imported.votes[0].left for imported in fruit} == {"first", "second"}


VOTES = [
    Vote(task.id, name, verdict, comment=f"said {verdict}")
    for name, verdicts in (("Ann", ("first", "second", "tie", "both_bad")), ("ann@example.org", ("second", "first")))
    for task, verdict in zip([*PLAIN, *CHAT], verdicts * 3, strict=False)
]
BOTH = pytest.mark.parametrize(
    ("export", "import_"), [(to_argilla, from_argilla), (to_label_studio, from_label_studio)], ids=["argilla", "studio"]
)


@BOTH
@pytest.mark.parametrize("tasks", [PLAIN, [*PLAIN, *CHAT]], ids=["plain", "chat"])
def test_a_round_trip_keeps_every_task_and_every_annotators_vote(
    tmp_path: Path, export: Export, import_: Import, tasks: list[Task]
) -> None:
    votes = [vote for vote in VOTES if vote.task in {task.id for task in tasks}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in export(tasks, votes)))
    back = import_(read_rows(path), {user_id(name): name for name in ("Ann", "ann@example.org")})
    assert back.tasks == tasks
    assert not back.faults
    said = {(vote.annotator, vote.task, vote.verdict, vote.comment) for vote in votes}
    assert {(vote.annotator, vote.task, vote.verdict, vote.comment) for vote in back.votes} == said


@BOTH
def test_known_answers_stay_here_and_neither_candidate_is_always_in_front(export: Export, import_: Import) -> None:
    known: list[Outcome] = ["first", "second"]
    tasks = [compare(f"prompt {i}", f"good {i}", f"bad {i}", known=known[i % 2]) for i in range(40)]
    rows = export(tasks, ())
    assert "known" not in json.dumps(rows)
    shown = [row.get("fields", row.get("data")) for row in rows]
    in_front = [str(next(text for text in each.values() if " " in text and "prompt" not in text)) for each in shown]
    assert 5 < sum(text.startswith("good") for text in in_front) < 35
    assert import_(rows).votes == []


def test_skips_are_cancelled_annotations_in_label_studio() -> None:
    (row,) = to_label_studio(PLAIN[:1], [Vote(PLAIN[0].id, "Ann", "skip", seconds=2.0)])
    assert row["annotations"][0]["was_cancelled"] is True
    (vote,) = from_label_studio([row]).votes
    assert (vote.verdict, vote.seconds) == ("skip", 2.0)


def test_label_studios_interface_names_what_the_tasks_hold_and_the_answers_use() -> None:
    (row,) = to_label_studio(PLAIN[:1])
    assert all(f"${name}" in CONFIG for name in ("prompt", "answer1", "answer2"))
    assert set(row["data"]) <= {"prompt", "answer1", "answer2", "prompt_id"}
    assert all(f'name="{name}"' in CONFIG for name in ("comparison", "neither", "comment"))


def test_importing_again_adds_nothing_and_a_vote_from_the_page_stays(tmp_path: Path) -> None:
    imported = from_argilla(read_rows(FILES / "argilla.json"), USERS)
    with VoteStore(tmp_path / "votes.jsonl") as store:
        store.add_tasks(imported.tasks)
        store.cast(Vote(imported.tasks[0].id, "Ann", "both_bad"))
        assert add_to(store, imported) == len(imported.votes) - 1
        assert imported.faults["voted_elsewhere"] == 1
        size = store.path.stat().st_size
        assert add_to(store, from_argilla(read_rows(FILES / "argilla.json"), USERS)) == 0
        assert store.path.stat().st_size == size
    assert read_votes(tmp_path / "votes.jsonl").standing["Ann"][imported.tasks[0].id].verdict == "both_bad"


def test_a_known_answer_survives_an_import_of_its_task(tmp_path: Path) -> None:
    known = compare("prompt", "good", "bad", known="first")
    with VoteStore(tmp_path / "votes.jsonl") as store:
        store.add_tasks([known])
        add_to(store, from_argilla(to_argilla([known])))
        assert store.records.tasks[known.id] == known


NAMES = (
    "fields", "data", "responses", "annotations", "preference", "value", "values", "user_id", "status", "rank",
    "result", "completed_by", "type", "selected", "choices", "text", "role", "content", "prompt", "conversation",
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)


def broken(row: Any, path: Sequence[int], value: Any) -> Any:
    """``row`` with one of its inner values, wherever ``path`` leads, replaced."""
    if not path or not isinstance(row, (dict, list)) or not row:
        return value
    keys = list(row) if isinstance(row, dict) else range(len(row))
    key = keys[path[0] % len(keys)]
    return {**row, key: broken(row[key], path[1:], value)} if isinstance(row, dict) else [
        broken(each, path[1:], value) if i == key else each for i, each in enumerate(row)
    ]  # fmt: skip


@BOTH
@given(path=st.lists(st.integers(0, 9), min_size=1, max_size=7), value=JSON)
def test_whatever_a_file_holds_no_row_is_fatal_and_no_vote_is_invented(
    export: Export, import_: Import, path: list[int], value: Any
) -> None:
    file = FILES / ("argilla.json" if import_ is from_argilla else "label_studio.json")
    rows: list[Any] = list(read_rows(file))
    imported = import_(broken(rows, path, value))
    assert set(imported.faults) <= set(FAULTS)
    assert len(imported.votes) <= len(import_(rows).votes) + 1  # of two answers that contradict, one may be left
    json.dumps([asdict(each) for each in [*imported.tasks, *imported.votes]], ensure_ascii=False).encode()
    assert {vote.task for vote in imported.votes} <= {task.id for task in imported.tasks}


@pytest.mark.parametrize("tool", ["argilla", "label-studio"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_file_for_another_tool_comes_back_into_a_new_file_of_votes(tmp_path: Path, tool: Tool, suffix: str) -> None:
    with VoteStore(tmp_path / "votes.jsonl") as store:
        store.add_tasks([*PLAIN, *CHAT])
        store.cast(*VOTES)
    assert export_file(tmp_path / "votes.jsonl", tmp_path / f"out{suffix}", tool) == 10
    people = {user_id(vote.annotator): vote.annotator for vote in VOTES}
    imported, new = import_file(tmp_path / f"out{suffix}", tmp_path / "back.jsonl", tool, people)
    assert (imported.rows, new) == (10, len(VOTES))
    assert import_file(tmp_path / f"out{suffix}", tmp_path / "back.jsonl", tool, people)[1] == 0
    back = read_votes(tmp_path / "back.jsonl")
    assert {(vote.annotator, vote.task, vote.verdict) for vote in back.votes} == {
        (vote.annotator, vote.task, vote.verdict) for vote in VOTES
    }


def test_a_file_that_is_of_no_such_tool_is_refused_with_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('[{"text": "x"}]')
    with pytest.raises(DataError, match="row 1: not_a_record"):
        import_file(tmp_path / "other.json", tmp_path / "votes.jsonl", "argilla")
    assert not (tmp_path / "votes.jsonl").exists()
    with pytest.raises(DataError, match="No such file"):
        import_file(tmp_path / "none.json", tmp_path / "votes.jsonl", "argilla")
    with pytest.raises(DataError, match=".json or .jsonl"):
        export_file(tmp_path / "votes.jsonl", tmp_path / "out.csv", "argilla")
