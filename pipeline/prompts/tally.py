"""What became of every row: the counts that must add up, and the first bad rows by name."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import DataError

NAMED = 3
"""Bad rows named, of each source."""
ENOUGH = 1000
"""Rows, all of them bad, after which no further one is read: a column of that name is not there."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading a source came to."""

    key: str
    """In the recipe."""
    rows: int
    bad: int
    first: Sequence[str]
    """The first few bad rows: the source's name where there are several, row number, counted from 1, and reason."""

    def check(self, allowed: float) -> None:
        """Raises DataError where there are no rows, or over the ``allowed`` share of them is bad."""
        if self.rows == 0:
            raise DataError(f"{self.key}: it has no rows")
        if self.bad > allowed * self.rows:
            raise DataError(
                f"{self.key}: {self.bad} of {self.rows} rows are unusable; allowed: {100 * allowed:g}%;"
                f" {'; '.join(self.first)}"
            )


class Tally:
    """Rows read and rows dropped, by source."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.dropped: dict[str, Counter[str]] = {}
        self.bad: dict[str, list[str]] = {}

    def read(self, source: str) -> int:
        """One more row; its number, counted from 1."""
        self.rows[source] += 1
        return self.rows[source]

    def drop(self, source: str, reason: str, count: int = 1) -> None:
        self.dropped.setdefault(source, Counter())[reason] += count

    def unusable(self, source: str, number: int, reason: str) -> None:
        self.drop(source, "bad")
        named = self.bad.setdefault(source, [])
        if len(named) < NAMED:
            named.append(f"{source} row {number}: {reason}".lstrip())

    def check_beginning(self, source: str, key: str, allowed: float) -> None:
        """As :meth:`check`, of a source that begins with nothing but bad rows, so that the rest need not be read."""
        if self.rows[source] == self.dropped.get(source, Counter())["bad"] == ENOUGH:
            self.check(source, key, allowed)

    def of(self, source: str, key: str) -> Reading:
        bad = self.dropped.get(source, Counter())["bad"]
        return Reading(key, self.rows[source], bad, list(self.bad.get(source, ())))

    def check(self, source: str, key: str, allowed: float) -> Reading:
        """Raises DataError as :meth:`Reading.check`."""
        reading = self.of(source, key)
        reading.check(allowed)
        return reading

    def total(self) -> dict[str, int]:
        """Rows dropped, by reason."""
        return dict(sum(self.dropped.values(), Counter()))

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.total().items()) or "none"
