"""Votes find their candidates by content, count as documented, and silence is never a low score."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from judges import make_judge
from judges.annotation.store import Vote, VoteStore
from judges.annotation.tasks import SWAPPED, Outcome, compare
from pipeline.config import JudgeConfig
from pipeline.errors import JudgeError
from pipeline.types import Candidate, Group, Judgment, Message, Prompt

Said = tuple[str, str, str, Outcome]
"""Who said what of which two texts; "first" is the one named first."""


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    return tmp_path / "votes.jsonl"


def cast(path: Path, *said: Said, prompt: Any = "p", prompt_id: str | None = None) -> None:
    with VoteStore(path) as store:
        for name, one, other, verdict in said:
            task = compare(prompt, one, other, prompt_id=prompt_id)
            store.add_tasks([task])
            store.cast(Vote(task.id, name, verdict if task.first == one else SWAPPED[verdict]))


def group(*texts: str, prompt: str = "p", id: str = "id", messages: tuple[Message, ...] = ()) -> Group:
    candidates = tuple(Candidate(i, (5,), text, "stop", seed=i) for i, text in enumerate(texts))
    return Group(Prompt(id, prompt, (1, 2), messages), candidates)


def judged(path: Path, *groups: Group, **settings: Any) -> list[Judgment]:
    config = TypeAdapter(JudgeConfig).validate_python({"type": "human", "votes": str(path), **settings})
    return make_judge(config, "people").judge(list(groups))


def test_a_score_is_the_mean_result_of_all_votes_on_a_candidate(votes: Path) -> None:
    cast(votes, ("Ann", "a", "b", "first"), ("Bob", "a", "b", "tie"), ("Ann", "b", "c", "both_bad"))
    (judgment,) = judged(votes, group("a", "b", "c", "d"))
    assert judgment.scores == (0.75, pytest.approx((0 + 0.5 + 0) / 3), 0.0, None)
    assert (judgment.prompt_id, judgment.judge) == ("id", "people")
    assert {vote["annotator"] for vote in judgment.votes[:-1]} == {"Ann", "Bob"}
    assert judgment.votes[-1] == {"abstained": {"3": "no votes"}}


def test_votes_follow_the_texts_wherever_they_stand(votes: Path) -> None:
    cast(votes, ("Ann", "a", "b", "first"))
    scores = [each.scores for each in judged(votes, group("b", "a"), group("x", "b", "a", "a"), group("a", "x"))]
    assert scores == [(0.0, 1.0), (None, 0.0, 1.0, 1.0), (None, None)]


def test_the_same_texts_under_another_prompt_have_no_votes(votes: Path) -> None:
    cast(votes, ("Ann", "a", "b", "first"))
    (other,) = judged(votes, group("a", "b", prompt="q"))
    assert other.scores == (None, None)
    assert other.votes == ({"abstained": {"0": "no votes", "1": "no votes"}},)


def test_a_conversation_is_matched_as_a_whole_and_not_by_its_last_words(votes: Path) -> None:
    turns = (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello"),
        Message(role="user", content="p"),
    )
    cast(votes, ("Ann", "a", "b", "first"), prompt=turns)
    with_turns, without = judged(votes, group("a", "b", messages=turns), group("a", "b"))
    assert (with_turns.scores, without.scores) == ((1.0, 0.0), (None, None))


def test_a_prompt_id_is_enough_where_the_prompt_was_written_differently(votes: Path) -> None:
    cast(votes, ("Ann", "a", "b", "second"), prompt="User: p", prompt_id="id")
    (judgment,) = judged(votes, group("a", "b"))
    assert judgment.scores == (0.0, 1.0)


def test_too_few_votes_are_an_abstention_that_says_so(votes: Path) -> None:
    cast(votes, ("Ann", "a", "b", "first"), ("Bob", "a", "b", "first"), ("Ann", "b", "c", "first"))
    (judgment,) = judged(votes, group("a", "b", "c"), least=2)
    assert judgment.scores == (1.0, 0.0, None)
    assert judgment.votes[-1] == {"abstained": {"2": "1 of 2 votes"}}
    assert [vote["counted"] for vote in judgment.votes[:-1]].count(False) == 1


def test_skips_and_votes_taken_back_do_not_count(votes: Path) -> None:
    cast(votes, ("Ann", "a", "b", "first"), ("Bob", "a", "c", "first"))
    with VoteStore(votes) as store:
        store.cast(Vote(compare("p", "a", "c").id, "Ann", "skip"))
        store.take_back("Ann", compare("p", "a", "b").id)
    (judgment,) = judged(votes, group("a", "b", "c"))
    assert judgment.scores == (1.0, None, 0.0)


def test_annotators_can_be_left_out_by_name_or_by_their_calibration(votes: Path) -> None:
    cast(votes, ("Ann", "a", "b", "first"), ("Bob", "a", "b", "second"), ("Cleo", "a", "b", "second"))
    known = compare("easy", "good", "bad", known="first")
    right = known.known
    assert right is not None
    with VoteStore(votes) as store:
        store.add_tasks([known])
        store.cast(Vote(known.id, "Ann", right), Vote(known.id, "Bob", SWAPPED[right]))
    (everyone,) = judged(votes, group("a", "b"))
    assert everyone.scores == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    (without,) = judged(votes, group("a", "b"), exclude=["Bob", "Cleo"])
    (calibrated,) = judged(votes, group("a", "b"), accuracy=0.8)  # Cleo answered no calibration item
    assert without.scores == calibrated.scores == (1.0, 0.0)


@pytest.mark.parametrize(
    ("prepare", "settings", "message"),
    [
        (lambda path: None, {}, "No such file.*ratchet annotate"),
        (lambda path: VoteStore(path).close(), {}, "no vote"),
        (lambda path: cast(path, ("Ann", "a", "b", "tie")), {"exclude": ["Anne"]}, "'Anne'.*Ann"),
        (lambda path: cast(path, ("Ann", "a", "b", "tie")), {"exclude": ["Ann"]}, "no vote"),
        (lambda path: path.write_text("{}\n"), {}, "line 1"),
    ],
)
def test_without_votes_the_judge_cannot_work_and_says_why(
    votes: Path, prepare: Callable[[Path], Any], settings: dict[str, Any], message: str
) -> None:
    prepare(votes)
    with pytest.raises(JudgeError, match=message):
        judged(votes, group("a", "b"), **settings)
