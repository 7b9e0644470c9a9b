"""Tasks and votes to and from Argilla and Label Studio, so that people may vote there.

Both directions keep every annotator's own answer. What comes back is matched by content, so texts must not be edited
there; which of the two was shown first is drawn for each task and read back from the row. A row that cannot be read is
counted under a name and passed over.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from judges.annotation.store import Verdict, Vote, VoteStore
from judges.annotation.tasks import SWAPPED, Outcome, Side, Task, compare, is_outcome
from pipeline.types import Message

Row = Mapping[str, Any]
Shown = Literal["left", "right", "tie", "both_bad", "skip"]
"""A verdict in the order of the row: left is its first response."""
NAMED = 5
"""Faulty rows that are named as examples."""

FAULTS = {
    "not_a_record": "no object with the fields of a task",
    "missing_text": "the prompt or a response is missing or no text",
    "identical": "both responses are the same",
    "bad_response": "a response whose place or form is not the documented one",
    "no_answer": "a submitted response without an answer to the question",
    "unknown_answer": "an answer that is none of those the question has",
    "contradictory": "one person's response says two things at once",
    "no_annotator": "a response that does not say whose it is",
    "draft": "a response that was not submitted",
    "voted_elsewhere": "the same person's vote on the same task came from elsewhere and is kept",
}


class Fault(Exception):
    """Why a row or a response cannot be read: a key of ``FAULTS``, and the value."""


@dataclass
class Imported:
    tasks: list[Task] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """Rows and single responses that were passed over, by the keys of ``FAULTS``."""
    examples: list[str] = field(default_factory=list)
    """The first few of them."""

    def fault(self, number: int, fault: Fault) -> None:
        self.faults[fault.args[0]] += 1
        if len(self.examples) < NAMED:
            self.examples.append(f"row {number}: {fault.args[0]}: {fault.args[1]}")


def add_to(store: VoteStore, imported: Imported) -> int:
    """Puts tasks and votes into a file of votes; the number of votes that were new or had changed.

    Doing it again changes nothing. A vote that somebody of the same name cast elsewhere (on the page, say) stays.
    """
    store.add_tasks(imported.tasks)
    new: list[Vote] = []
    for vote in imported.votes:
        old = store.records.standing.get(vote.annotator, {}).get(vote.task)
        if old and old.source != vote.source:
            imported.faults["voted_elsewhere"] += 1
        elif old is None or old.verdict != vote.verdict:
            new.append(vote)
    store.cast(*new)
    return len(new)


def first_shown(task: Task) -> Side:
    """Drawn for each task, so that neither candidate is always in front."""
    return "first" if sha256(task.id.encode()).digest()[0] % 2 else "second"


def ordered(task: Task) -> tuple[str, str]:
    side = first_shown(task)
    return task.text(side), task.text("second" if side == "first" else "first")


def as_shown(verdict: Verdict, left: Side) -> Shown:
    if not is_outcome(verdict):
        return "skip"
    turned: Outcome = verdict if left == "first" else SWAPPED[verdict]
    names: Mapping[Outcome, Shown] = {"first": "left", "second": "right", "tie": "tie", "both_bad": "both_bad"}
    return names[turned]


def as_kept(shown: Shown, left: Side) -> Verdict:
    other: Side = "second" if left == "first" else "first"
    match shown:
        case "left":
            return left
        case "right":
            return other
        case _:
            return shown


def by_task(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    found: dict[str, list[Vote]] = {}
    for vote in votes:
        found.setdefault(vote.task, []).append(vote)
    return found


def task_of(prompt: str | tuple[Message, ...], one: str, two: str, prompt_id: Any) -> tuple[Task, Side]:
    """The task of a row's two responses, and which of its candidates is ``one``."""
    if one == two:
        raise Fault("identical", f"{one!r:.60}")
    task = compare(prompt, one, two, prompt_id=clean(prompt_id) if isinstance(prompt_id, str) else None)
    return task, "first" if task.first == one else "second"


def text_of(values: Any, name: str) -> str:
    """Raises Fault where there is no such text, or it cannot be written as UTF-8."""
    value = values.get(name) if isinstance(values, Mapping) else None
    if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
        raise Fault("missing_text", f"{name} is {value!r:.60}")
    return value


def clean(text: str) -> str:
    """What can be written as UTF-8: JSON may hold halves of characters."""
    return text.encode(errors="replace").decode()


def messages_of(value: Any) -> tuple[Message, ...]:
    """Turns of ``role`` and ``content``, with nothing else in them."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise Fault("missing_text", f"prompt is {value!r:.60}")
    return tuple(Message(role=text_of(turn, "role"), content=text_of(turn, "content")) for turn in value)
