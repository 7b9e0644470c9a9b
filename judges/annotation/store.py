"""People's votes on disk: one JSON object a line, only ever appended, each synced before anyone is told it was saved.

    {"type": "task", "id": …, "conversation": […], "first": …, "second": …}
    {"type": "vote", "task": …, "annotator": …, "verdict": "first", "left": "second", "seconds": 3.1, …}
    {"type": "undo", "task": …, "annotator": …}

Plain text rather than a database because it is people's work: it can be read, kept under version control, and joined
with another's by ``cat``. A vote counts from its line to the next ``undo`` of the same person and task. The last line
may be torn by a kill: nobody was told of it, so it is dropped. A torn line anywhere else is an error.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from judges.annotation.tasks import Side, Task
from pipeline.errors import BusyError, DataError, StoreError

Verdict = Literal["first", "second", "tie", "both_bad", "skip"]
"""An outcome, or ``skip``: the annotator would not say. Skips are kept, and count for nothing."""
VERDICTS: tuple[Verdict, ...] = ("first", "second", "tie", "both_bad", "skip")


@dataclass(frozen=True, slots=True)
class Vote:
    task: str
    annotator: str
    verdict: Verdict
    left: Side | None = None
    """Which candidate was shown on the left (or first); None where that is not known."""
    seconds: float | None = None
    """Time the task was in view."""
    comment: str = ""
    at: str = ""
    """When, ISO 8601 in UTC."""
    source: str = "page"


@dataclass
class Records:
    """What a file says, line by line; a person's votes in the order they were cast."""

    tasks: dict[str, Task] = field(default_factory=dict)
    standing: dict[str, dict[str, Vote]] = field(default_factory=dict)
    """Votes that count, by annotator and task; the newest last."""
    revisions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Votes and undos so far, by annotator and task: tells a page's stale request from a new one."""
    withdrawn: dict[str, list[str]] = field(default_factory=dict)
    """Tasks an annotator took back and has not voted on since; the newest last."""
    voted: Counter[str] = field(default_factory=Counter)
    """Standing votes a task, skips aside."""

    @property
    def votes(self) -> list[Vote]:
        """All that count."""
        return [vote for votes in self.standing.values() for vote in votes.values()]

    def apply(self, line: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for a line that is none of the three."""
        values = {name: value for name, value in line.items() if name != "type"}
        match line["type"]:
            case "task":
                values["conversation"] = tuple(values["conversation"])
                self.tasks[values["id"]] = Task(**values)
            case "vote":
                self._cast(Vote(**values))
            case "undo":
                self._take_back(values["annotator"], values["task"])
            case other:
                raise ValueError(f"unknown type {other!r}")

    def _cast(self, vote: Vote) -> None:
        if vote.verdict not in VERDICTS or vote.task not in self.tasks:
            raise ValueError(f"verdict {vote.verdict!r} on task {vote.task!r}")
        votes = self.standing.setdefault(vote.annotator, {})
        self.voted[vote.task] -= _counts(votes.pop(vote.task, None))
        votes[vote.task] = vote
        self.voted[vote.task] += _counts(vote)
        self.revisions[vote.annotator, vote.task] += 1
        self.withdrawn[vote.annotator] = [task for task in self.withdrawn.get(vote.annotator, []) if task != vote.task]

    def _take_back(self, annotator: str, task: str) -> None:
        self.voted[task] -= _counts(self.standing[annotator].pop(task))
        self.revisions[annotator, task] += 1
        self.withdrawn.setdefault(annotator, []).append(task)


BEGINS = b'{"type": "'
"""Every line of ours; a line may be torn by a kill."""


class VoteStore:
    """The one writer of a file of votes; use as a context manager.

    Raises:
        BusyError: another process has it open.
        StoreError: the file cannot be read or written, or holds a line that is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise StoreError(f"votes {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.records, self._size = _read(path, path.read_bytes())
            os.ftruncate(self._file, self._size)
            _sync_folder(path.parent)
        except BlockingIOError as error:
            os.close(self._file)
            raise BusyError(f"votes {path}: another annotation server has them open") from error
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._file)

    def add_tasks(self, tasks: Iterable[Task]) -> None:
        """Tasks that are new, or whose known answer is."""
        new = [task for task in tasks if self.records.tasks.get(task.id) in (None, _without_answer(task))]
        self._append([{"type": "task", **asdict(task)} for task in new if self.records.tasks.get(task.id) != task])

    def cast(self, *votes: Vote) -> None:
        """On disk when this returns; a vote of the same person on the same task is replaced."""
        self._append([{"type": "vote", **asdict(vote), "at": vote.at or _now()} for vote in votes])

    def take_back(self, annotator: str, task: str) -> None:
        self._append([{"type": "undo", "task": task, "annotator": annotator, "at": _now()}])

    def _append(self, lines: list[dict[str, Any]]) -> None:
        """All of ``lines`` or none of them: what could not be synced is cut off again."""
        if not lines:
            return
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        try:
            os.ftruncate(self._file, self._size)  # where an earlier failure could not be cut off
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise StoreError(f"votes {self.path}: {error.strerror}") from error
        self._size += len(data)
        for line in lines:
            self.records.apply(line)


def read_votes(path: Path) -> Records:
    """What a file says, while another process may be writing it.

    Raises:
        DataError: there is no such file.
        StoreError: a line is not one of ours.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"votes {str(path)!r}: {error.strerror}; `ratchet annotate` writes such a file") from error
    return _read(path, data)[0]


def _read(path: Path, data: bytes) -> tuple[Records, int]:
    """The records, and the bytes that are whole lines."""
    records, whole = Records(), data.rfind(b"\n") + 1
    if data[whole:] and not (whole or data.startswith(BEGINS[: len(data)])):
        raise StoreError(f"votes {path}: is no file that `ratchet annotate` writes; it was left as it is")
    for number, line in enumerate(_lines(data[:whole]), 1):
        try:
            records.apply(json.loads(line))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"votes {path}: line {number} is not one that `ratchet annotate` writes: {error}"
            ) from error
    return records, whole


def _lines(data: bytes) -> Iterator[bytes]:
    """Split at line feeds alone: a text may hold what other splitters take for the end of a line."""
    return (line for line in data.split(b"\n") if line.strip())


def _counts(vote: Vote | None) -> int:
    return int(vote is not None and vote.verdict != "skip")


def _without_answer(task: Task) -> Task:
    return Task(task.id, task.conversation, task.first, task.second, None, task.prompt_id)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
