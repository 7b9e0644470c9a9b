"""Files of tasks and votes for other tools, and back: what the command line calls."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from judges.annotation.argilla import from_argilla, to_argilla
from judges.annotation.exchange import Imported, add_to
from judges.annotation.label_studio import from_label_studio, to_label_studio
from judges.annotation.store import VoteStore, read_votes
from pipeline.errors import DataError
from pipeline.rows import read_rows

Tool = Literal["argilla", "label-studio"]


def export_file(votes: Path, to: Path, tool: Tool) -> int:
    """Writes the tasks and votes of ``votes`` for ``tool``, as JSON or, under that name, JSON lines; the rows written.

    Raises:
        DataError: there is no such file of votes, or ``to`` is neither .json nor .jsonl.
        StoreError: a line of ``votes`` is not one of ours.
    """
    if to.suffix not in (".json", ".jsonl"):
        raise DataError(f"export {str(to)!r}: the name must end in .json or .jsonl")
    records = read_votes(votes)
    tasks = list(records.tasks.values())
    rows = to_argilla(tasks, records.votes) if tool == "argilla" else to_label_studio(tasks, records.votes)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) if to.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    write_whole(to, text + "\n", votes)
    return len(rows)


def write_whole(file: Path, text: str, source: Path) -> None:
    """``text`` in ``file``, whole or not at all, and never in place of ``source``. Raises DataError."""
    if file.exists() and file.samefile(source):
        raise DataError(f"{str(file)!r} is what is read; allowed: another file to write")
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be written: {error.strerror}") from error


def import_file(file: Path, votes: Path, tool: Tool, people: Mapping[str, str] | None = None) -> tuple[Imported, int]:
    """Puts what people said in ``tool`` into ``votes``: all that was read and its faults, and the votes that were new.

    Raises:
        DataError: the file cannot be read, or no row of it is a task.
        BusyError, StoreError: as :class:`VoteStore`.
    """
    try:
        rows = list(read_rows(file))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"import {str(file)!r}: {error}") from error
    imported = from_argilla(rows, people) if tool == "argilla" else from_label_studio(rows, people)
    if not imported.tasks:
        found = "; ".join(imported.examples) or "it is empty"
        raise DataError(f"import {str(file)!r}: no row is a task of {tool}: {found}")
    with VoteStore(votes) as store:
        return imported, add_to(store, imported)
