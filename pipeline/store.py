"""The artifact store: what a stage made, under a key that says what it was made from.

    artifacts/<stage>/<key>/00000-<checksum>.parquet …  manifest.json

``key`` = SHA-256 over the stage's name and version, the part of the config it reads, and the keys of its inputs;
never a path, a time or an output folder. So running again is resuming, and runs share what they have in common.

Invariants, which hold whatever is killed when:
  * a shard is written aside, synced and renamed: a shard that exists is whole, and its name carries its checksum;
  * ``manifest.json`` is written last: an artifact that has one is complete;
  * ``flock`` guards a key while it is made, and the kernel frees it with its process;
  * rows in = rows kept + dropped + failed, checked before the manifest is written; a row kept gives one row out, or,
    where the stage says so, several.
"""

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BusyError, StoreError
from pipeline.protocols import Progress
from pipeline.tables import intact, stored_as

log = logging.getLogger("ratchet.store")

MANIFEST = "manifest.json"


def digest(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value in canonical form, as 64 hexadecimal digits."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Spec:
    """What an artifact is made from; decides its key."""

    stage: str
    version: int
    """Raised when the stage's code changes what it makes."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Just the settings the stage reads, JSON-serialisable."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Keys of upstream artifacts and digests of policies, by role."""

    @property
    def key(self) -> str:
        identity = {
            "stage": self.stage, "version": self.version, "config": self.config, "inputs": self.inputs,
        }  # fmt: skip
        return digest(identity)[:32]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete artifact."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def info(self) -> Mapping[str, Any]:
        """What the stage chose to say of its result."""
        info: Mapping[str, Any] = self.manifest["info"]
        return info

    @property
    def seconds(self) -> float:
        """Wall-clock seconds it took to make, over all the sessions that worked on it."""
        return float(self.manifest["seconds"])

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Its shards in order, one in memory at a time; all columns, or those named.

        Raises:
            StoreError: a shard has been removed or damaged since.
        """
        for shard in self.manifest["shards"]:
            file = self.path / shard["file"]
            with intact(file):
                table = pq.read_table(file, columns=columns)
            yield table

    def table(self) -> pa.Table:
        """All its shards as one table. Raises StoreError where it has none."""
        tables = list(self.tables())
        if not tables:
            raise StoreError(f"artifact {self.path} holds no rows to read")
        return pa.concat_tables(tables)


class Draft:
    """An artifact being made, by one process at a time."""

    def __init__(self, path: Path, spec: Spec) -> None:
        self.path = path
        self.spec = spec
        self.reused = 0
        """Shards found whole from an earlier session."""
        self._started = time.monotonic()
        self._shards: dict[int, dict[str, Any]] = {}
        self._earlier_seconds = _read_seconds(path)
        self._recover()

    def _recover(self) -> None:
        for leftover in self.path.glob("*.part"):  # shards and manifests; a policy.part is its writer's to clear
            if leftover.is_file():
                leftover.unlink()
        for file in sorted(self.path.glob("[0-9]*-*.parquet")):
            number, _, checksum = file.stem.partition("-")
            if _checksum(file) != checksum:
                file.unlink()  # torn by the disk, not by us: make it again
                continue
            rows = pq.ParquetFile(file).metadata.num_rows
            self._shards[int(number)] = {"file": file.name, "rows": rows, "checksum": checksum}
        self.reused = len(self._shards)

    def has_shard(self, number: int) -> bool:
        return number in self._shards

    def commit_shard(self, number: int, table: pa.Table) -> None:
        """Write one shard so that it is there whole or not at all."""
        part = self.path / f"{number:05d}.part"
        pq.write_table(table, part, **stored_as(table.schema))
        sync(part)
        checksum = _checksum(part)
        file = self.path / f"{number:05d}-{checksum}.parquet"
        part.rename(file)
        sync(self.path)
        self._shards[number] = {"file": file.name, "rows": table.num_rows, "checksum": checksum}
        self._note_seconds()

    def finish(
        self,
        info: Mapping[str, Any] | None = None,
        rows_in: int | None = None,
        dropped: Mapping[str, int] | None = None,
        failed: Mapping[str, int] | None = None,
        kept: int | None = None,
    ) -> Artifact:
        """Declare the artifact complete. With ``rows_in``, checks that no row went missing on the way.

        Args:
            kept: rows in that gave rows out, where one may give several; otherwise each row out is one row kept.
        """
        shards = [self._shards[number] for number in sorted(self._shards)]
        assert sorted(self._shards) == list(range(len(shards))), "a shard in the middle is missing"
        rows = sum(shard["rows"] for shard in shards)
        kept = rows if kept is None else kept
        assert kept <= rows, "a row kept gives a row"
        lost = sum((dropped or {}).values()) + sum((failed or {}).values())
        if rows_in is not None and rows_in != kept + lost:
            raise StoreError(f"stage {self.spec.stage}: {rows_in} rows in, but {kept} kept, {lost} dropped or failed")
        manifest = {
            "key": self.spec.key, "stage": self.spec.stage, "version": self.spec.version,
            "config": self.spec.config, "inputs": self.spec.inputs, "shards": shards, "rows": rows,
            "kept": kept, "dropped": dict(dropped or {}), "failed": dict(failed or {}), "info": dict(info or {}),
            "seconds": round(self._seconds(), 3),
        }  # fmt: skip
        write_json(self.path / MANIFEST, manifest)
        (self.path / "seconds").unlink(missing_ok=True)
        return Artifact(self.path, manifest)

    def timed(self, progress: Progress) -> Progress:
        """``progress`` that also notes the seconds so far: for stages that work long and commit no shard."""

        def noting(done: int, total: int, note: str) -> None:
            self._note_seconds()
            progress(done, total, note)

        return noting

    def _seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._started

    def _note_seconds(self) -> None:
        (self.path / "seconds").write_text(f"{self._seconds():.3f}")


class Store:
    """The artifacts under one workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, spec: Spec) -> Artifact | None:
        """The complete artifact of ``spec``, or None."""
        return self._open(self._path(spec))

    def get(self, stage: str, key: str) -> Artifact:
        """The complete artifact of that stage and key. Raises StoreError where there is none."""
        artifact = self._open(self.root / stage / key)
        if artifact is None:
            raise StoreError(f"no complete artifact {stage}/{key} under {self.root}")
        return artifact

    def make(self, spec: Spec, build: Callable[[Draft], Artifact]) -> Artifact:
        """The artifact of ``spec``: found, or made by ``build``, which must end with :meth:`Draft.finish`.

        Shards of an interrupted earlier session are still in the draft. One process makes a key at a time;
        a second one waits, then finds it made.
        """
        found = self.find(spec)
        if found is not None:
            return found
        path = self._path(spec)
        path.mkdir(parents=True, exist_ok=True)
        with locked(path / ".lock", wait=True):
            return self.find(spec) or build(Draft(path, spec))

    def _path(self, spec: Spec) -> Path:
        return self.root / spec.stage / spec.key

    def _open(self, path: Path) -> Artifact | None:
        try:
            manifest = json.loads((path / MANIFEST).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreError(f"{path / MANIFEST} is not JSON ({error}); delete {path} to make it again") from None
        return Artifact(path, manifest)


@contextmanager
def locked(path: Path, wait: bool = False, busy: str = "") -> Iterator[None]:
    """Hold an exclusive lock on ``path``; the kernel frees it when the process ends, however it ends.

    With ``wait``, somebody else's is waited for, and said.

    Raises:
        BusyError: somebody else holds it and ``wait`` is false. ``busy`` is the message; their process id follows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            if not wait:
                raise BusyError(f"{busy or f'{path} is locked'} (process {holder})") from None
            log.warning("process %s is making %s; waiting for it", holder, path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` so that ``path`` holds all of it or what it held before."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    sync(part)
    part.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's bytes, or a directory's names, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(path: Path) -> str:
    return file_digest(path)[:16]


def _read_seconds(path: Path) -> float:
    with suppress(FileNotFoundError, ValueError):
        return float((path / "seconds").read_text())
    return 0.0
