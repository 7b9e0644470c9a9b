"""People's preferences, read from files in which rows are often broken: every row is a pair, or counted by name.

Labels are "a", "b" or "tie". A pair's label is the one that more than half of its annotators gave; without such a
majority it is a tie. "Both bad" is a tie too: it prefers neither.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import pyarrow as pa

from judges.annotation.store import read_votes
from judges.labels.faults import (
    DROPS,
    FLAGS,
    MIRROR,
    Key,
    Parsed,
    flipped,
    majority,
    own_faults,
    parse,
    repeat_faults,
)
from judges.labels.formats import Format, Label, format_of
from pipeline.errors import DataError
from pipeline.rows import read_rows
from pipeline.types import Message

__all__ = [
    "DROPS",
    "FLAGS",
    "MIRROR",
    "Label",
    "LabelledPair",
    "Reading",
    "majority",
    "read_annotations",
    "read_labels",
    "read_verdicts",
]  # fmt: skip

NAMED = 3
"""Rows of each fault that are named as examples."""


@dataclass(frozen=True, slots=True)
class LabelledPair:
    id: str
    """The row's own, or its number from 1 on; with ``-2``, ``-3`` … where that was taken."""
    prompt: str
    """The plain prompt, or the last words of the user in a conversation."""
    a: str
    b: str
    label: Label | None
    """None where nobody labelled it."""
    annotators: Mapping[str, Label] = field(default_factory=dict)
    """Labels by annotator; empty where the file names none."""
    messages: tuple[Message, ...] = ()
    """The conversation; empty for a plain prompt."""
    category: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    pairs: tuple[LabelledPair, ...]
    rows: int
    """``rows == len(pairs) + merged + sum(dropped.values())``."""
    merged: int
    """Rows that are another annotator's label of a pair before them."""
    dropped: Mapping[str, int]
    """Rows that gave no pair, each counted once, by the keys of ``DROPS``."""
    found: Mapping[str, int]
    """Rows that have each fault, by the keys of ``DROPS`` and ``FLAGS``, whether it dropped them or not. A row can have
    several; both rows of a flipped twin have that fault, and of duplicates all but the first."""
    examples: Mapping[str, tuple[str, ...]]
    """The first rows with each fault: number from 1 on, and how the row begins."""


def read_labels(path: Path, repeats: bool = False) -> Reading:
    """The pairs of a preference file: of any format of :mod:`judges.labels.formats`, or one of ``ratchet annotate``.

    Args:
        repeats: keep duplicates and flipped duplicates, and only count them. They make intervals too narrow, but
            published figures often include them.

    Raises:
        DataError: the file cannot be read, is of no known format, or no row of it is a pair.
    """
    rows, form = _rows(path)
    parsed = [parse(number, row, form) if isinstance(row, Mapping) else None for number, row in enumerate(rows, 1)]
    sorting = _Sorting(repeats, {each.key for each in parsed if each is not None})
    for number, (row, each) in enumerate(zip(rows, parsed, strict=True), start=1):
        sorting.take(number, row, each)
    if not sorting.kept:
        said = ", ".join(f"{times} {name}" for name, times in sorting.dropped.most_common())
        raise DataError(f"labels {str(path)!r}: none of {len(rows)} rows is a pair ({said})")
    return sorting.reading(len(rows))


def read_annotations(path: Path) -> dict[str, tuple[Label | None, ...]]:
    """Labels of all rows [rows] by annotator, whatever the responses are; None where one is missing or unknown.

    For figures about the annotators alone. The name is "" where the file names none.

    Raises:
        DataError: the file cannot be read, or is of no known format.
    """
    rows, form = _rows(path)
    votes: dict[str, list[Label | None]] = {}
    for index, row in enumerate(rows):
        labels = parse(index + 1, row, form).labels if isinstance(row, Mapping) else {}
        for name, label in labels.items():
            votes.setdefault(name, [None] * len(rows))[index] = label
    return {name: tuple(labels) for name, labels in votes.items()}


def read_verdicts(path: Path) -> dict[str, Label | None]:
    """A judge's published verdicts by row id: rows of ``id`` and ``verdict``, or PandaLM's ``idx`` and ``gpt_result``.

    1 or a, 2 or b, tie; anything else is an abstention (None), never a tie.

    Raises:
        DataError: the file cannot be read, or a row has neither pair of keys.
    """
    words: dict[str, Label] = {"1": "a", "2": "b", "a": "a", "b": "b", "tie": "tie"}
    verdicts: dict[str, Label | None] = {}
    for number, row in enumerate(_read(path), start=1):
        keys = row.keys() if isinstance(row, Mapping) else ()
        named = next((pair for pair in (("id", "verdict"), ("idx", "gpt_result")) if set(pair) <= set(keys)), None)
        if named is None:
            raise DataError(f"verdicts {str(path)!r}: row {number} lacks id and verdict, or idx and gpt_result")
        verdicts[str(row[named[0]])] = words.get(str(row[named[1]]).strip().lower())
    return verdicts


class _Sorting:
    """Puts each row with the pairs, with another's vote, or with the drops."""

    def __init__(self, repeats: bool, keys: set[Key]) -> None:
        self._repeats, self._keys = repeats, keys
        self._seen: dict[Key, Parsed] = {}
        self._kept_at: dict[Key, int] = {}
        self.kept: list[Parsed] = []
        self.dropped: Counter[str] = Counter()
        self._found: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._merged = 0

    def take(self, number: int, row: Any, each: Parsed | None) -> None:
        if each is None:
            self._note(number, row, {"not_a_record"})
            self.dropped["not_a_record"] += 1
            return
        own = own_faults(each)
        if not own & DROPS.keys() and self._is_another_vote(each):
            self._merged += 1
            self._note(number, row, own)
            return
        twin = {"flipped"} if each.raw.a != each.raw.b and flipped(each.key) in self._keys else set()
        self._note(number, row, own | twin | repeat_faults(each, self._seen))
        self._seen.setdefault(each.key, each)
        # A row only repeats one that was kept: the first may have been dropped for its label.
        repeated = repeat_faults(each, {key: self.kept[at] for key in (each.key, flipped(each.key))
                                        if (at := self._kept_at.get(key)) is not None})  # fmt: skip
        costly = own | (set() if self._repeats else repeated)
        if reason := next((name for name in DROPS if name in costly), None):
            self.dropped[reason] += 1
            return
        self._kept_at.setdefault(each.key, len(self.kept))
        self.kept.append(each)

    def _is_another_vote(self, each: Parsed) -> bool:
        """Whether the row was another annotator's label of a kept pair, which now has it too."""
        for key, turned in ((each.key, False), (flipped(each.key), True)):
            at = self._kept_at.get(key)
            if at is None or not each.labels or "" in {**each.labels, **self.kept[at].labels}:
                continue
            if not each.labels.keys() & self.kept[at].labels.keys():
                labels = {name: MIRROR[label] if turned else label for name, label in each.labels.items()}
                self.kept[at] = replace(self.kept[at], labels={**self.kept[at].labels, **labels})
                return True
        return False

    def _note(self, number: int, row: Any, faults: Iterable[str]) -> None:
        for name in faults:
            self._found[name] += 1
            named = self._examples.setdefault(name, [])
            if len(named) < NAMED:
                named.append(f"row {number}: {str(row)[:80]}")

    def reading(self, rows: int) -> Reading:
        for each in self.kept:
            values = list(each.labels.values())
            if values and 2 * max(map(values.count, values)) <= len(values):
                self._note(each.number, dict(each.labels), {"no_majority"})
        examples = {name: tuple(named) for name, named in self._examples.items()}
        return Reading(_pairs(self.kept), rows, self._merged, dict(self.dropped), dict(self._found), examples)


def _pairs(kept: Iterable[Parsed]) -> tuple[LabelledPair, ...]:
    taken: set[str] = set()
    pairs = []
    for each in kept:
        own = str(each.number if each.raw.id is None else each.raw.id)
        name = next(name for name in chain([own], (f"{own}-{n}" for n in count(2))) if name not in taken)
        taken.add(name)
        annotators = {name: label for name, label in each.labels.items() if name}
        category = "" if each.raw.category is None else str(each.raw.category)
        label = majority(each.labels.values())
        pairs.append(
            LabelledPair(name, each.prompt, each.raw.a, each.raw.b, label, annotators, each.messages, category)
        )
    return tuple(pairs)


# ---------------------------------------------------------------------------------------------- rows
def _read(path: Path) -> list[Any]:
    try:
        return list(read_rows(path))
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{str(path)!r} cannot be read: {(str(error).splitlines() or [repr(error)])[0]}") from error


def _rows(path: Path) -> tuple[list[Any], Format]:
    rows = _read(path)
    first = next((row for row in rows if isinstance(row, Mapping)), None)
    if first is None:
        raise DataError(f"labels {str(path)!r}: none of {len(rows)} rows is an object with keys")
    if first.get("type") == "task":
        rows = _collected(path)
        first = rows[0]
    return rows, format_of(first, str(path))


def _collected(path: Path) -> list[dict[str, Any]]:
    """The tasks of a file that ``ratchet annotate`` writes, as simple rows; skips are no labels."""
    records = read_votes(path)
    names = {"first": "a", "second": "b"}
    labels: dict[str, dict[str, str]] = {name: {} for name in records.tasks}
    for vote in records.votes:
        if vote.verdict != "skip":
            labels[vote.task][vote.annotator] = names.get(vote.verdict, vote.verdict)
    return [
        {"id": task.id, "prompt": list(task.conversation), "a": task.first, "b": task.second, "labels": labels[task.id]}
        for task in records.tasks.values()
    ]
