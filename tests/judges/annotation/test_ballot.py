"""Who is asked what, and what a vote does: everything the page relies on, without the page."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from judges.annotation.ballot import Ballot, RefusedError
from judges.annotation.queue import Plan, Queue
from judges.annotation.sources import tasks_from_groups, tasks_from_pairs
from judges.annotation.store import VoteStore
from judges.annotation.summary import summarise
from judges.annotation.tasks import Task, compare
from judges.labels.reading import LabelledPair
from pipeline.types import Candidate, Group, Judgment, Prompt

TASKS = [compare(f"prompt {i}", f"good {i}", f"bad {i}") for i in range(40)]
KNOWN = [compare(f"calibration {i}", f"good {i}", f"bad {i}", known="first") for i in range(8)]
Open = Callable[..., Ballot]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    stores = []

    def open_ballot(tasks: list[Task] = TASKS, feedback: bool = False, **plan: Any) -> Ballot:
        for store in stores:
            store.close()
        stores[:] = [VoteStore(tmp_path / "votes.jsonl")]
        return Ballot(stores[0], Queue(tasks, Plan(**plan)), feedback=feedback)

    yield open_ballot
    stores[-1].close()


def vote(ballot: Ballot, name: str, choose: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """What ``name`` is asked now, after voting on it."""
    task = ballot.state(name)["task"]
    ballot.vote(
        {"annotator": name, "task": task["id"], "revision": task["revision"], "verdict": choose(task), "seconds": 2}
    )
    return dict(task)


def vote_on_all(ballot: Ballot, name: str, choose: Callable[[dict[str, Any]], str]) -> list[dict[str, Any]]:
    asked = []
    while ballot.state(name)["task"]:
        asked.append(vote(ballot, name, choose))
    return asked


def good(task: dict[str, Any]) -> str:
    return "left" if task["left"].startswith("good") else "right"


def bad(task: dict[str, Any]) -> str:
    return "right" if good(task) == "left" else "left"


def test_every_annotator_has_an_order_and_sides_of_their_own_and_always_the_same(opened: Open) -> None:
    ballot = opened(overlap=2)
    first = ballot.state("Ann")["task"]
    assert ballot.state("Ann")["task"] == first
    ann, bob = vote_on_all(ballot, "Ann", good), vote_on_all(ballot, "Bob", good)
    assert ann[0] == first
    assert {task["id"] for task in ann} == {task["id"] for task in bob} == {task.id for task in TASKS}
    assert [task["id"] for task in ann] != [task["id"] for task in bob]
    sides = {task["id"]: good(task) for task in ann}
    assert 5 < sum(side == "left" for side in sides.values()) < 35  # 40 fair draws: outside once in 10⁷
    assert sides != {task["id"]: good(task) for task in bob}


def test_a_vote_is_kept_for_the_candidate_that_was_seen_whatever_its_side(opened: Open) -> None:
    ballot = opened()
    vote_on_all(ballot, "Ann", good)
    records = ballot.store.records
    assert {records.tasks[each.task].text(each.verdict)[:4] for each in records.votes} == {"good"}  # type: ignore[arg-type]
    assert {each.left for each in records.votes} == {"first", "second"}


def test_a_task_wants_as_many_votes_as_the_overlap_and_skips_are_none(opened: Open) -> None:
    ballot = opened(overlap=2)
    assert len(vote_on_all(ballot, "Ann", lambda _: "skip")) == 40
    for name in ("Bob", "Cleo"):
        assert len(vote_on_all(ballot, name, good)) == 40
    assert ballot.state("Dan")["task"] is None
    assert set(ballot.store.records.voted.values()) == {2}


def test_a_double_click_and_a_second_tab_give_one_vote(opened: Open) -> None:
    ballot = opened()
    task = ballot.state("Ann")["task"]
    request = {"annotator": "Ann", "task": task["id"], "revision": task["revision"], "verdict": "left"}
    assert ballot.vote(request)["accepted"]
    size = ballot.store.path.stat().st_size
    for again in (request, {**request, "verdict": "tie"}):
        answer = ballot.vote(again)
        assert not answer["accepted"]
        assert answer["task"]["id"] != task["id"]  # it shows what is to be done now
    assert ballot.store.path.stat().st_size == size


def test_undo_walks_back_through_the_votes_and_asks_again(opened: Open) -> None:
    ballot = opened()
    asked = [vote(ballot, "Ann", choose)["id"] for choose in (good, lambda _: "tie", lambda _: "skip")]
    for expected, was in zip(reversed(asked), ("skip", "tie", None), strict=True):
        undo = ballot.state("Ann")["undo"]
        answer = ballot.undo({"annotator": "Ann", **undo})
        assert answer["accepted"]
        assert answer["task"]["id"] == expected
        assert was is None or answer["was"]["verdict"] == was
        assert not ballot.undo({"annotator": "Ann", **undo})["accepted"]  # the same key pressed twice
    assert ballot.state("Ann")["undo"] is None
    assert ballot.store.records.votes == []
    assert [vote(ballot, "Ann", good)["id"] for _ in asked] == asked


def test_a_stale_tab_cannot_vote_on_a_task_that_was_taken_back(opened: Open) -> None:
    ballot = opened()
    task = ballot.state("Ann")["task"]
    stale = {"annotator": "Ann", "task": task["id"], "revision": task["revision"], "verdict": "left"}
    ballot.vote(stale)
    ballot.undo({"annotator": "Ann", **ballot.state("Ann")["undo"]})
    assert not ballot.vote(stale)["accepted"]


def test_after_a_restart_everyone_goes_on_where_they_were(opened: Open) -> None:
    ballot = opened(overlap=2)
    for _ in range(5):
        vote(ballot, "Ann", good)
    ballot.undo({"annotator": "Ann", **ballot.state("Ann")["undo"]})
    before = ballot.state("Ann")
    assert opened(overlap=2).state("Ann") == before


def test_calibration_items_come_at_their_share_and_wrong_ones_are_found_out(opened: Open) -> None:
    ballot = opened([*TASKS, *KNOWN], overlap=2, calibration=0.1)
    for name, choose in (("Ann", good), ("Bob", bad)):
        asked = vote_on_all(ballot, name, choose)
        mixed_in = [place for place, task in enumerate(asked) if task["id"] in {known.id for known in KNOWN}]
        assert [place // 10 for place in mixed_in] == list(range(len(mixed_in)))  # one in every ten places
        assert len(mixed_in) >= 4
    ann, bob = summarise(ballot.store.records.votes, ballot.queue.tasks, 2)["annotators"]
    assert (ann["calibration"]["accuracy"], bob["calibration"]["accuracy"]) == (1.0, 0.0)
    assert all("known" not in task and "feedback" not in task for task in asked)


def test_feedback_is_given_only_where_it_is_wanted(opened: Open) -> None:
    ballot = opened(KNOWN, feedback=True)
    task = ballot.state("Ann")["task"]
    request = {"annotator": "Ann", "task": task["id"], "revision": 0, "verdict": bad(task)}
    assert ballot.vote(request)["feedback"] == {"right": False, "known": good(task)}


@pytest.mark.parametrize(
    "wrong",
    [{"annotator": ""}, {"annotator": None}, {"annotator": "a" * 61}, {"annotator": "a\x1b[2J"}, {"annotator": {}},
     {"task": "none"}, {"task": ["x"]}, {"verdict": "first"}, {"verdict": None}, {"verdict": ["left"]}, {"comment": 3}],
)  # fmt: skip
def test_what_the_page_would_never_send_is_refused_and_changes_nothing(opened: Open, wrong: dict[str, Any]) -> None:
    ballot = opened()
    task = ballot.state("Ann")["task"]
    request = {"annotator": "Ann", "task": task["id"], "revision": task["revision"], "verdict": "left"}
    with pytest.raises(RefusedError):
        ballot.vote(request | wrong)
    assert ballot.store.records.votes == []


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "3", None, True, [1]])
def test_a_clock_that_cannot_be_right_is_not_believed_but_the_vote_is(opened: Open, seconds: Any) -> None:
    ballot = opened()
    task = ballot.state("Ann")["task"]
    ballot.vote({"annotator": "Ann", "task": task["id"], "revision": 0, "verdict": "tie", "seconds": seconds})
    (kept,) = ballot.store.records.votes
    assert kept.seconds is None


def test_the_summary_tells_agreement_and_side_bias(opened: Open) -> None:
    ballot = opened(overlap=3)
    vote_on_all(ballot, "Ann", good)
    vote_on_all(ballot, "Bob", good)
    vote_on_all(ballot, "Cleo", lambda _: "left")
    summary = summarise(ballot.store.records.votes, ballot.queue.tasks, 3)
    assert (summary["votes"], summary["remaining"], summary["finished"]) == (120, 0, 40)
    kappas = {tuple(pair["annotators"]): pair["kappa"] for pair in summary["pairs"]}
    assert kappas["Ann", "Bob"]["value"] == 1
    assert abs(kappas["Ann", "Cleo"]["value"]) < 0.6  # a coin, seen 40 times
    assert kappas["Ann", "Cleo"]["low"] <= kappas["Ann", "Cleo"]["value"] <= kappas["Ann", "Cleo"]["high"]
    assert 0 < summary["alpha"]["value"] < 0.8
    assert {each["name"]: each["left"] for each in summary["annotators"]}["Cleo"] == 1.0
    assert {each["seconds"] for each in summary["annotators"]} == {2.0}


def test_figures_nobody_can_tell_yet_are_null(opened: Open) -> None:
    ballot = opened()
    assert summarise([], ballot.queue.tasks)["alpha"] == {"items": 0, "value": None, "low": None, "high": None}
    vote(ballot, "Ann", lambda _: "tie")
    (ann,) = summarise(ballot.store.records.votes, ballot.queue.tasks)["annotators"]
    assert (ann["left"], ann["calibration"]["accuracy"]) == (None, None)


# ---------------------------------------------------------------------------------------------- where tasks come from
def group(prompt: str, *texts: str) -> Group:
    candidates = tuple(Candidate(i, (5,), text, "stop", seed=i) for i, text in enumerate(texts))
    return Group(Prompt(f"id-{prompt}", prompt, (1, 2)), candidates)


def texts(task: Task) -> set[str]:
    return {task.first, task.second}


def test_a_task_is_the_same_whichever_candidate_comes_first() -> None:
    one, other = compare("p", "a", "b", known="first"), compare("p", "b", "a", known="second")
    assert one == other
    assert one.text("first" if one.known == "first" else "second") == "a"
    assert compare("p", "a", "b").id != compare("q", "a", "b").id
    assert compare("p", "a", "b").id == compare([{"role": "user", "content": "p"}], "a", "b").id


def test_the_best_is_compared_with_the_worst_where_scores_tell_them_apart() -> None:
    groups = [group("p", "a", "b", "c", "a"), group("q", "d", "e"), group("r", "f", "f"), group("s", "g", "h")]
    scores = [(1.0, None, 3.0, 2.0), (2.0, 2.0), (1.0, 2.0), (None, None)]
    judgments = [Judgment(each.prompt.id, "rm", score) for each, score in zip(groups, scores, strict=True)]
    tasks = tasks_from_groups(groups, judgments=judgments)
    assert [texts(task) for task in tasks] == [{"a", "c"}, {"d", "e"}, {"g", "h"}]
    assert [task.prompt_id for task in tasks] == ["id-p", "id-q", "id-s"]


def test_drawn_pairs_differ_and_do_not_depend_on_other_groups() -> None:
    groups = [group(str(i), *"abcdef") for i in range(20)]
    tasks = tasks_from_groups(groups, per_group=3, seed=1)
    assert len({task.id for task in tasks}) == 60
    assert tasks_from_groups(groups[7:8], per_group=3, seed=1) == tasks[21:24]
    assert tasks_from_groups(groups, per_group=3, seed=2) != tasks
    assert len(tasks_from_groups(groups[:1], per_group=99)) == 15


def test_labelled_pairs_become_tasks_or_calibration_items() -> None:
    rows = [("p", "x", "y", "b"), ("q", "x", "x", "a"), ("r", "x", "y", None)]
    pairs = [LabelledPair(str(i), prompt, a, b, label) for i, (prompt, a, b, label) in enumerate(rows)]  # type: ignore[arg-type]
    assert [(task.conversation[0]["content"], task.known) for task in tasks_from_pairs(pairs)] == [
        ("p", None),
        ("r", None),
    ]
    (known,) = tasks_from_pairs(pairs, known=True)
    assert known.known is not None
    assert known.known != "tie"
    assert known.text(known.known) == "y"  # type: ignore[arg-type]
