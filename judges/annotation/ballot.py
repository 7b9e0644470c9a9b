"""What the page is told and what it may do: each answer is a plain JSON object, and nothing here knows of HTTP."""

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from judges.annotation.queue import Queue
from judges.annotation.store import Verdict, Vote, VoteStore
from judges.annotation.tasks import SWAPPED, Side, Task, is_outcome

LONGEST_NAME = 60
LONGEST_COMMENT = 5000


class RefusedError(ValueError):
    """The request is not one the page makes."""


class Ballot:
    """One place to vote: the tasks, the file of votes, and the rules.

    A request names the task and its revision (votes and undos so far) it was made for. If that has moved on, because of
    a double click or a second tab, nothing is changed and ``accepted`` is false; the answer always holds what to show
    now. So a request that is sent again, by whomever, does no harm.
    """

    def __init__(self, store: VoteStore, queue: Queue, annotator: str | None = None, feedback: bool = False) -> None:
        self.store, self.queue, self.feedback = store, queue, feedback
        self.annotator = _name(annotator) if annotator is not None else None
        store.add_tasks(queue.tasks)

    def who(self) -> dict[str, Any]:
        return {"annotator": self.annotator, "known": sorted(self.store.records.standing)}

    def state(self, annotator: object) -> dict[str, Any]:
        """What ``annotator`` sees now. ``task`` is None when there is nothing left."""
        name, records = _name(annotator), self.store.records
        task = self.queue.next(records, name)
        last = next(reversed(records.standing.get(name, {})), None)
        return {
            "annotator": name,
            "task": self._shown(task, name) if task else None,
            "undo": {"task": last, "revision": records.revisions[name, last]} if last else None,
            "progress": asdict(self.queue.progress(records, name)),
        }

    def vote(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``verdict`` is left, right, tie, both_bad or skip.

        Raises:
            RefusedError: no such task, or a value of the wrong kind.
            StoreError: it could not be saved.
        """
        name, task = _name(request.get("annotator")), self._task(request)
        left = self.queue.left(task, name)
        verdict = _verdict(request.get("verdict"), left)
        accepted = self._is_current(request, name, task) and task.id not in self.store.records.standing.get(name, {})
        if accepted:
            comment = _text(request.get("comment", ""))[:LONGEST_COMMENT].strip()
            self.store.cast(Vote(task.id, name, verdict, left, _seconds(request.get("seconds")), comment))
        answer = {"accepted": accepted, **self.state(name)}
        if accepted and self.feedback and task.known and verdict != "skip":
            answer["feedback"] = {"right": verdict == task.known, "known": _as_shown(task.known, left)}
        return answer

    def undo(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Takes the vote on a task back, which is then asked again at once."""
        name, task = _name(request.get("annotator")), self._task(request)
        accepted = self._is_current(request, name, task) and task.id in self.store.records.standing.get(name, {})
        taken_back = self.store.records.standing[name][task.id] if accepted else None
        if accepted:
            self.store.take_back(name, task.id)
        answer = {"accepted": accepted, **self.state(name)}
        if taken_back:
            verdict = taken_back.verdict
            answer["was"] = {
                "verdict": verdict if verdict == "skip" else _as_shown(verdict, self.queue.left(task, name)),
                "comment": taken_back.comment,
            }
        return answer

    def _shown(self, task: Task, annotator: str) -> dict[str, Any]:
        left = self.queue.left(task, annotator)
        return {
            "id": task.id,
            "revision": self.store.records.revisions[annotator, task.id],
            "conversation": list(task.conversation),
            "left": task.text(left),
            "right": task.text(_other(left)),
        }

    def _task(self, request: Mapping[str, Any]) -> Task:
        task = self.store.records.tasks.get(_text(request.get("task")))
        if task is None:
            raise RefusedError(f"there is no task {request.get('task')!r}")
        return task

    def _is_current(self, request: Mapping[str, Any], name: str, task: Task) -> bool:
        return bool(request.get("revision") == self.store.records.revisions[name, task.id])


def _other(side: Side) -> Side:
    return "second" if side == "first" else "first"


def _verdict(shown: object, left: Side) -> Verdict:
    match shown:
        case "left":
            return left
        case "right":
            return _other(left)
        case "tie" | "both_bad" | "skip":
            return shown
    raise RefusedError(f"verdict {shown!r}; allowed: left, right, tie, both_bad, skip")


def _as_shown(verdict: str, left: Side) -> str:
    assert is_outcome(verdict)
    turned = verdict if left == "first" else SWAPPED[verdict]
    return {"first": "left", "second": "right"}.get(turned, turned)


def _name(value: object) -> str:
    name = unicodedata.normalize("NFC", " ".join(_text(value).split()))
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise RefusedError(f"annotator {value!r}; allowed: 1 to {LONGEST_NAME} printable characters")
    return name


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise RefusedError(f"{value!r} is not text")
    return value.encode(errors="replace").decode()


def _seconds(value: object) -> float | None:
    """A page's clock is only believed where it can be right."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        return None
    return round(float(value), 2)
