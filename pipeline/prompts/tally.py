"""What became of every row: the counts that must add up, and the first bad rows by name."""

from collections import Counter

from pipeline.errors import DataError

NAMED = 3
"""Bad rows named, of each source."""
ENOUGH = 1000
"""Rows, all of them bad, after which no further one is read: a column of that name is not there."""


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

    def check(self, source: str, key: str, allowed: float) -> None:
        """Raises DataError where the source has no rows, or over the ``allowed`` share of them is bad."""
        rows, bad = self.rows[source], self.dropped.get(source, Counter())["bad"]
        if rows == 0:
            raise DataError(f"{key}: it has no rows")
        if bad > allowed * rows:
            raise DataError(
                f"{key}: {bad} of {rows} rows are unusable; allowed: {allowed:.0%}; {'; '.join(self.bad[source])}"
            )

    def total(self) -> dict[str, int]:
        """Rows dropped, by reason."""
        return dict(sum(self.dropped.values(), Counter()))

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.total().items()) or "none"
