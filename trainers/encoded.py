"""What became of a data set's rows: every row is an example, or is counted under the reason why it is not."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.errors import DataError
from pipeline.types import PreferencePair
from trainers.examples import Example, Pair, Row
from trainers.records import REASONS, Record, Unusable

ALTERED = {
    "truncated_prompt": "the prompt is cut to its end by max_prompt_tokens",
    "truncated_completion": "a completion is cut to its start by max_completion_tokens, and has lost its EOS",
    "encoded_apart": "a completion is encoded apart, because a token would reach across the prompt's end",
    "other_ids": "the ids it has beside its text are another tokenizer's, so the text is encoded",
    "without_eos": "completions end without EOS, because the tokenizer has none",
    "swapped": "chosen and rejected are swapped, because the preference is below one half, or the label false",
    "contradicted": "the scores contradict the choice; the margin counts as 0, but for modpo, whose is another's",
}
"""What was done to rows that were kept. A row can be counted under several."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples, and what became of the rows they were made from."""

    examples: list[Example]
    """In the rows' order."""
    rows: int
    """Rows read; ``len(examples) + sum(dropped.values()) == rows``."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows that gave no example, by reason: see :data:`trainers.records.REASONS`."""
    altered: Mapping[str, int] = field(default_factory=dict)
    """Rows kept, but not as they were, by what was done: see :data:`ALTERED`."""
    first: Mapping[str, str] = field(default_factory=dict)
    """The first row dropped or altered in each way: its number, counted from 1, and the value that was the cause."""

    @property
    def lines(self) -> list[str]:
        """A line for people for each way in which rows were dropped or altered."""
        total = f"of {self.rows:,} rows"
        dropped = [f"{n:,} {total} dropped, {kind}: {REASONS[kind]}" for kind, n in self.dropped.items()]
        altered = [f"{n:,} {total} kept, {kind}: {ALTERED[kind]}" for kind, n in self.altered.items()]
        kinds = [*self.dropped, *self.altered]
        return [f"{line}; first {self.first[kind]}" for line, kind in zip([*dropped, *altered], kinds, strict=True)]


class RowEncoder(Protocol):
    """Makes examples of what a data set holds. ``name`` is what errors call it, ``source`` the examples' where a row
    names none."""

    def encode(self, rows: Iterable[Any], name: str, source: str = "") -> Encoded:
        """Of rows in the formats of :mod:`trainers.records`."""

    def own_pairs(self, pairs: Iterable[PreferencePair], name: str, source: str = "") -> Encoded:
        """Of a run's own pairs."""


def pair_of(record: Record, rows: Sequence[Row], source: str) -> tuple[Pair, dict[str, object]]:
    """The record's pair as token ids, and what was done to it: keys of :data:`ALTERED`. ``source`` is for a record that
    names none."""
    changes: dict[str, object] = {"contradicted": record.margin} if record.margin < 0 else {}
    if record.swapped:
        changes["swapped"] = record.preference
    chosen, rejected = rows
    return Pair(chosen, rejected, record.margin, record.preference, record.source or source, record.prompt_id), changes


class Tally:
    """Counts rows dropped and altered by kind, and keeps the first of each."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self.altered: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def drop(self, number: int, why: Unusable) -> None:
        self.dropped[why.reason] += 1
        self._note(why.reason, number, why.value)

    def alter(self, number: int, changes: Mapping[str, object]) -> None:
        for kind, value in changes.items():
            self.altered[kind] += 1
            self._note(kind, number, value)

    def _note(self, kind: str, number: int, value: object) -> None:
        if kind not in self.first:
            quoted = repr(value)
            self.first[kind] = f"row {number}: {quoted if len(quoted) <= 100 else quoted[:100] + '…'}"

    def result(self, examples: list[Example], rows: int, name: str) -> Encoded:
        """Raises DataError where no example is left."""
        encoded = Encoded(examples, rows, dict(self.dropped), dict(self.altered), self.first)
        assert len(examples) + sum(encoded.dropped.values()) == rows, "a row went missing"
        if not examples:
            raise DataError(
                f"{name}: {'; '.join(['nothing is left to train on', *encoded.lines]) if rows else 'no rows'}"
            )
        return encoded
