"""A folder that is there whole or not at all: written aside, then given its name.

    DIR.part/     while it is written; shards that are finished in it are found again
    DIR/          README.md  lineage.json  …

``lineage.json`` says whose export a folder is, and has the digest of every small file. A folder without one, or with
files or an edited card that it does not know, belongs to somebody else and is never written over.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, StoreError
from pipeline.export.columns import exported_as
from pipeline.store import file_digest, locked, sync, write_json

LINEAGE = "lineage.json"
CARD = "README.md"
LOCK = ".lock"
"""In the folder while it is written."""
ROW_GROUP = 4096
"""Rows a row group has at least, where there are so many: of the smallest shards each alone would be slow to read."""
LEFT_OUT = "left_out"
"""In a table's metadata, and in the file's: how many rows it would have had more."""


class FolderDraft:
    """A folder being written."""

    def __init__(self, path: Path, earlier: Sequence[Path]) -> None:
        self.path, self.earlier = path, earlier
        self._mine: set[str] = set()

    def shard(self, name: str, schema: pa.Schema, tables: Callable[[], Iterator[pa.Table]]) -> int:
        """A Parquet file of ``tables``, found, taken from an earlier export or written; its rows. None without rows.

        ``name`` must say what the rows are made from: a file that has it already is not made again.
        """
        target = self.path / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            earlier = next((folder / name for folder in self.earlier if (folder / name).exists()), None)
            if earlier is None or not _linked(earlier, target):
                _write(target, schema, tables())
        rows = int(pq.read_metadata(target).num_rows)
        if rows:
            self._mine.add(name)
        return rows

    def left_out(self, name: str) -> int:
        """Rows that a shard's tables said they had left out: see :func:`left_out`."""
        return _left_out(pq.read_metadata(self.path / name).metadata)

    def text(self, name: str, content: str) -> None:
        self._mine.add(name)
        target = self.path / name
        target.write_text(content, encoding="utf-8", errors="backslashreplace")
        sync(target)

    def file(self, name: str, source: Path, earlier: Sequence[Path] = ()) -> None:
        """A copy of ``source``, through whatever link it is; or a second name of what one of ``earlier`` has under that
        name, exports whose file is such a copy already."""
        self._mine.add(name)
        part = self.path / f"{name}.part"
        part.unlink(missing_ok=True)
        if not any(_linked(folder / name, part) for folder in earlier):
            shutil.copyfile(source, part)
            sync(part)
        part.rename(self.path / name)

    def finish(self, kind: str, run: str, lineage: Mapping[str, Any]) -> None:
        """Write ``lineage.json``, which ends the folder. What an interrupted export left over goes."""
        for name in set(_files(self.path)) - self._mine:
            (self.path / name).unlink()
        for folder in sorted((each for each in self.path.rglob("*") if each.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
        known = {name: _content(self.path, name) for name in sorted(self._mine)}
        write_json(self.path / LINEAGE, {"kind": kind, "run": run, **lineage, "files": known})


@contextmanager
def drafted(destination: Path, kind: str, run: str, earlier: Sequence[Path] = ()) -> Iterator[FolderDraft]:
    """A folder to write that becomes ``destination`` at the end, in the place of an earlier export of the same run.

    Args:
        kind: ``dataset`` or ``model``.
        earlier: other exports of the run, whose shards may be used again; those of ``destination`` are.

    Raises:
        ConfigError: ``destination`` holds something else.
        BusyError: another process is writing it.
        StoreError: it cannot be written, because the disk is full, say. What is finished of it is found again.
    """
    check_destination(destination, kind, run)
    part = destination.with_name(destination.name + ".part")
    with _told(destination):
        part.mkdir(parents=True, exist_ok=True)
        with locked(part / LOCK, busy=f"{str(destination)!r} is being written"):
            yield FolderDraft(part, [destination, *earlier])
            _put(part, destination)


@contextmanager
def _told(destination: Path) -> Iterator[None]:
    """What the system refuses is a StoreError; without its number an error is no system's, but a bug's."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise StoreError(f"--to {str(destination)!r} cannot be written: {error}") from None


def check_destination(destination: Path, kind: str, run: str) -> None:
    """Raises ConfigError unless ``destination`` is new, empty, or an earlier export of ``run`` as it was written;
    StoreError where that cannot be seen."""
    with _told(destination):
        _check(destination, kind, run)


def _check(destination: Path, kind: str, run: str) -> None:
    part = destination.with_name(destination.name + ".part")
    if part.exists() and any(part.iterdir()) and not (part / LOCK).exists():
        raise ConfigError(f"--to {str(destination)!r}: {part.name!r} beside it, where it would be written, is in use")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise ConfigError(f"--to {str(destination)!r} is a file; allowed: a folder that is new or empty")
    there = sorted(_files(destination))
    if not there:
        return
    allowed = f"allowed: a new or an empty folder, or an earlier export of run {run!r} that was left as it was"
    lineage = read_lineage(destination)
    if lineage is None:
        raise ConfigError(f"--to {str(destination)!r} holds something else ({', '.join(there[:3])}); {allowed}")
    if (lineage.get("kind"), lineage.get("run")) != (kind, run):
        found = f"the {lineage.get('kind')} of run {lineage.get('run')!r}"
        raise ConfigError(f"--to {str(destination)!r} holds {found}; {allowed}")
    known: dict[str, Any] = {**lineage["files"], LINEAGE: None}
    changed = [name for name in there if name not in known or known[name] not in (None, _content(destination, name))]
    if changed:
        raise ConfigError(f"--to {str(destination)!r}: {changed[0]!r} was added or changed since; {allowed}")


def read_lineage(folder: Path) -> dict[str, Any] | None:
    """What ``lineage.json`` says; None where there is none of ours."""
    try:
        lineage = json.loads((folder / LINEAGE).read_text())
    except (OSError, ValueError):
        return None
    return lineage if isinstance(lineage, dict) and isinstance(lineage.get("files"), dict) else None


def kept(folder: Path, made_of: str) -> dict[str, Any]:
    """The summary of an export that is there already, made of the same; empty where there is none."""
    lineage = read_lineage(folder) or {}
    same = lineage.get("made_of") == made_of
    return {"folder": str(folder), **lineage["summary"]} if same else {}


def _linked(file: Path, target: Path) -> bool:
    """Whether ``target`` is a second name of ``file`` now; not every file system has such."""
    try:
        os.link(file, target)
    except OSError:
        return False
    return True


def left_out(table: pa.Table, count: int) -> pa.Table:
    """The table, with a note of rows that its config might have and has not. It is kept in the file, for exports that
    take it as it is."""
    return table.replace_schema_metadata({LEFT_OUT: str(count)})


def _left_out(metadata: Mapping[bytes, bytes] | None) -> int:
    return int((metadata or {}).get(LEFT_OUT.encode(), 0))


def _write(target: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    part = target.with_name(target.name + ".part")
    waiting: list[pa.Table] = []
    missing = 0
    with pq.ParquetWriter(part, schema, **exported_as(schema)) as writer:
        for table in tables:
            missing += _left_out(table.schema.metadata)
            waiting.append(table)
            if sum(each.num_rows for each in waiting) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
        if missing:
            writer.add_key_value_metadata({LEFT_OUT: str(missing)})
    sync(part)
    part.rename(target)


def _files(folder: Path) -> Iterator[str]:
    """All files but the one that only tells who is writing."""
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if not file.is_dir() and name != LOCK:
            yield name


def _content(folder: Path, name: str) -> Any:
    """Of a card its digest; of data and weights the size, which is enough to see a change that nobody meant."""
    file = folder / name
    return file.stat().st_size if file.suffix in (".parquet", ".safetensors") else file_digest(file)


def _put(part: Path, destination: Path) -> None:
    """``part`` under its name. Killed between the two renames, the next export finds no folder and makes it again; what
    was there lies in a folder with a name that nobody has, so that nothing of anybody else's is ever removed."""
    (part / LOCK).unlink()
    if not destination.exists():
        part.rename(destination)
        sync(destination.parent)
        return
    aside = Path(mkdtemp(prefix=".replaced-", dir=destination.parent))
    destination.rename(aside / destination.name)
    part.rename(destination)
    sync(destination.parent)
    shutil.rmtree(aside, ignore_errors=True)
