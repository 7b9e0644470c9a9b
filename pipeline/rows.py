"""Rows of data files: JSON lines, JSON, comma-separated values (each also gzipped) and Parquet."""

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz", ".parquet")
"""How files of rows end."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A line of a table that is none."""

    reason: str


def read_rows(path: Path) -> Iterator[Any]:
    """The rows of a file, as they come: mappings; else whatever a line of JSON holds (bytes, where it is no JSON), the
    fields of a line that has not as many as its table has columns, or a line that is ``Broken``. All but ``.json`` is
    read piece by piece.

    Raises:
        DataError: the name ends in none of ``SUFFIXES``, or a file of comma-separated values is no table.
        OSError, EOFError, pyarrow.ArrowException: it cannot be read; some only when it is reached.
    """
    name = path.name.removesuffix(".gz")
    if path.name.endswith(".parquet"):
        return chain.from_iterable(table.to_pylist() for table in read_tables(path))
    if name.endswith(".csv"):
        return _csv(path)
    if name.endswith((".json", ".jsonl")):
        return _json(path, lines=name.endswith(".jsonl"))
    raise DataError(f"data set {str(path)!r} ends in none of {', '.join(SUFFIXES)}")


def read_tables(path: Path) -> Iterator[pa.Table]:
    """A Parquet file in pieces that fit in memory."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
        yield pa.Table.from_batches([batch])


def _csv(path: Path) -> Iterator[Any]:
    """Rows with all values as they are written: "NA" and "1" can be responses."""
    csv.field_size_limit(2**31 - 1)  # the default refuses a text of over 128 KiB
    title = f"data set {str(path)!r} is no table of comma-separated values"
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file, strict=True)
        names = next(_lines(lines, title), None)
        if names is None:
            raise DataError(f"{title}: No columns")
        if isinstance(names, Broken):
            raise DataError(f"{title}: line {lines.line_num}: {names.reason}")
        for line in _lines(lines, title):
            if isinstance(line, Broken) or len(line) != len(names):
                yield line
            else:
                yield dict(zip(names, line, strict=True))


def _lines(lines: Any, title: str) -> Iterator[list[str] | Broken]:
    """The fields of each line of a ``csv.reader`` that has some. A wrong quote, or a byte that is no UTF-8, breaks its
    own line; a quote that is not closed takes all the rest of the file."""
    while True:
        try:
            line = next(lines, None)
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise DataError(f"{title}: line {lines.line_num}: {error}") from error
            yield Broken(f"is no line of a table: {error}")
            continue
        if line is None:
            return
        if line:
            yield line if _is_unicode(line) else Broken("is no UTF-8")


def _is_unicode(line: list[str]) -> bool:
    try:
        "".join(line).encode()
    except UnicodeEncodeError:
        return False
    return True


def _json(path: Path, lines: bool) -> Iterator[Any]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        if not lines:
            text = file.read()
            try:
                whole = json.loads(text)
            except (ValueError, RecursionError):  # JSON lines under the other name
                yield from (_parsed(line) for line in text.splitlines() if line.strip())
            else:
                yield from whole if isinstance(whole, list) else [whole]
            return
        yield from (_parsed(line) for line in file if line.strip())


def _parsed(line: bytes) -> Any:
    """What the line says; the line itself where it is not JSON, to be counted as no record."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # the latter where it is nested too deep
        return line
