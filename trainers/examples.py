"""What a trainer trains on: token ids, compared in pairs or labelled one by one."""

import hashlib
import json
from array import array
from collections.abc import Container, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and one completion of it, as token ids."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, one preferred."""

    chosen: Row
    rejected: Row
    margin: float = 0.0
    """Judge's score of chosen minus that of rejected, in the judge's units; 0 where it gave none. Below 0 only where a
    data set's scores contradict its choices, as another objective's may."""
    preference: float = 1.0
    """Probability that chosen is the better one, in [0.5, 1]: below 1 it is a soft label."""
    source: str = ""
    """Data set or judge's axis the pair is from; selects its β."""
    prompt_id: str = ""
    """Tells asking one prompt twice from two pairs of one group; empty where the data set names no prompts."""

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.chosen, self.rejected


@dataclass(frozen=True, slots=True)
class Single:
    """One completion, labelled good or bad by itself (KTO's unpaired data)."""

    row: Row
    desirable: bool
    source: str = ""
    prompt_id: str = ""

    @property
    def rows(self) -> tuple[Row, ...]:
        return (self.row,)


Example = Pair | Single


def digest_rows(rows: Iterable[Row]) -> str:
    """SHA-256 over the token ids of ``rows`` in their order, as 64 hexadecimal digits."""
    total = hashlib.sha256()
    for row in rows:
        total.update(array("q", (len(row.prompt), *row.prompt, len(row.completion), *row.completion)).tobytes())
    return total.hexdigest()


def digest_examples(examples: Iterable[Example], sources: Container[str] = ()) -> str:
    """SHA-256 over all that a training sees of ``examples``: ids, labels, margins, which belong together.

    Their sources count where they are among ``sources``, those with a β of their own: what a file is called does not.
    """
    total = hashlib.sha256()
    for example in examples:
        source = example.source if example.source in sources else ""
        label = [example.margin, example.preference] if isinstance(example, Pair) else example.desirable
        total.update(json.dumps([digest_rows(example.rows), label, source, example.prompt_id]).encode())
    return total.hexdigest()
