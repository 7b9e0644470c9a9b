"""Prompts that say the same as another one, to the letter or nearly."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.prompts.row import Row
from pipeline.prompts.tally import Tally
from pipeline.prompts.words import runs, words

SHINGLE = 3
"""Words in a row that are compared."""
PERMUTATIONS = 128
MISSED, NEEDLESS = 0.9, 0.1
"""What it weighs that the index misses a pair, or finds one for nothing: what is found is counted before it is dropped.
At a threshold of 0.8 it finds 87% of the pairs at 0.8, 97% of those at 0.85 and 3% of those at 0.5."""


class _Repeat(NamedTuple):
    source: str
    content: str
    held_out: bool


class Gathered:
    """The rows that are kept, in the order they came; of repeats nothing but a count.

    Of rows with the same content the first is kept, or, where one is marked held out, the first of those.
    """

    def __init__(self, unique: bool) -> None:
        self._unique = unique
        self._rows: dict[str, Row] = {}
        self._repeats: Counter[_Repeat] = Counter()

    def add(self, row: Row) -> None:
        key = row.content if self._unique else f"{row.source} {row.number}"
        known = self._rows.get(key)
        if known is None:
            self._rows[key] = row
        elif row.held_out and not known.held_out:
            del self._rows[key]  # so that the other one stands in its own place
            self._rows[key] = row
            self._repeats[_Repeat(known.source, key, False)] += 1
        else:
            self._repeats[_Repeat(row.source, key, row.held_out)] += 1

    def rows(self, tally: Tally) -> list[Row]:
        for repeat, count in self._repeats.items():
            trained_on = self._rows[repeat.content].held_out and not repeat.held_out
            tally.drop(repeat.source, "in_held_out" if trained_on else "duplicate", count)
        return list(self._rows.values())


def without_near(rows: Sequence[Row], threshold: float, tally: Tally) -> list[Row]:
    """Rows none of which is nearly the same as an earlier one; those marked held out come before all others.

    Two are nearly the same where the sets of their word 3-grams have a Jaccard index of ``threshold`` or more and
    their system messages do not differ. Pairs are found by MinHash and locality-sensitive hashing (arXiv 2107.06499,
    A), which misses some; every pair found is counted exactly, so nothing else is dropped. The index takes about 5 KiB
    of memory a prompt.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold, PERMUTATIONS, weights=(NEEDLESS, MISSED))
    empty = MinHash(PERMUTATIONS)
    kept: set[int] = set()
    for place in sorted(range(len(rows)), key=lambda place: not rows[place].held_out):
        row, shingles = rows[place], _shingles(rows[place])
        sketch = empty.copy()
        sketch.update_batch([shingle.encode() for shingle in shingles])
        alike = [
            other
            for other in (rows[found] for found in index.query(sketch))
            if _jaccard(shingles, _shingles(other)) >= threshold and _system(row) == _system(other)
        ]
        if not alike:
            kept.add(place)
            index.insert(place, sketch, check_duplication=False)
            continue
        trained_on = not row.held_out and any(other.held_out for other in alike)
        tally.drop(row.source, "in_held_out" if trained_on else "near_duplicate")
    return [row for place, row in enumerate(rows) if place in kept]


def _shingles(row: Row) -> frozenset[str]:
    said = words("\n".join(row.said()), signs=True)
    return frozenset(runs(said, min(SHINGLE, len(said))))


def _jaccard(some: frozenset[str], others: frozenset[str]) -> float:
    shared = len(some & others)
    return shared / (len(some) + len(others) - shared)


def _system(row: Row) -> list[str]:
    return [turn["content"] for turn in row.messages if turn["role"] == "system"]
