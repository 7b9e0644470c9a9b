"""Finding a pair among all that a workspace holds: one column read in pieces, whatever the size of the artifacts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, StoreError
from pipeline.store import Artifact, Store
from pipeline.tables import read_pairs
from pipeline.types import PreferencePair

SHORTEST = 8
"""Digits of a pair's id that have to be given."""
LISTED = 6
"""Pairs named where several fit."""
IDS = 65_536
"""Ids in memory at a time."""
ROWS = 256
"""Rows of which one is read, in memory at a time."""
BUFFER = 1 << 20
"""Bytes of a column read ahead; without it a whole row group's are."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pair lies."""

    artifact: Artifact
    file: Path
    row: int

    def read(self) -> PreferencePair:
        """Raises StoreError where the file has been damaged since."""
        seen = 0
        try:
            with pq.ParquetFile(self.file, buffer_size=BUFFER) as file:
                for batch in file.iter_batches(ROWS):
                    if seen + len(batch) > self.row:
                        return read_pairs(pa.Table.from_batches([batch.slice(self.row - seen, 1)]))[0]
                    seen += len(batch)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self.file} cannot be read ({error})") from None
        raise StoreError(f"{self.file} has no row {self.row}")


@dataclass(frozen=True, slots=True)
class Found:
    id: str
    """Whole."""
    places: tuple[Place, ...]
    """In the order of the artifacts; several where the same candidates were paired in several ways."""
    searched: int
    """Pairs looked at."""


def check_id(given: str) -> str:
    """``given`` as ids are written. Raises ConfigError where it cannot be the start of one."""
    digits = given.strip().lower()
    if len(digits) < SHORTEST or set(digits) - set("0123456789abcdef"):
        raise ConfigError(
            f"PAIR_ID {given!r}: allowed: the first {SHORTEST} or more of a pair's hexadecimal digits, or a run that"
            " is in the workspace"
        )
    return digits


def find_pair(artifacts: Iterable[Artifact], given: str, gaps: list[str]) -> Found:
    """The pair whose id begins with ``given``, everywhere it lies.

    Args:
        artifacts: of pairs.
        gaps: takes a line for each file that cannot be read.

    Raises:
        ConfigError: no pair's id begins so, or several pairs' do.
    """
    prefix = check_id(given)
    places: dict[str, list[Place]] = {}
    searched = looked_at = 0
    for artifact in artifacts:
        looked_at += 1
        for file, ids, start in _ids(artifact, gaps):
            hits = pc.indices_nonzero(pc.starts_with(ids, prefix))
            for at in hits.to_pylist():
                places.setdefault(ids[at].as_py(), []).append(Place(artifact, file, start + at))
            searched += len(ids)
    if len(places) > 1:
        named = ", ".join(sorted(places)[:LISTED]) + (", …" if len(places) > LISTED else "")
        raise ConfigError(f"PAIR_ID {given!r} is the start of {len(places)} pairs: {named}; give more digits")
    if not places:
        elsewhere = "" if looked_at else "; give --workspace where they are elsewhere"
        unread = f"; {len(gaps)} files could not be read: {gaps[0]}" if gaps else ""
        raise ConfigError(
            f"PAIR_ID {given!r}: none of {searched:,} pairs in {looked_at:,} artifacts begins so; `ratchet trace RUN`"
            f" lists a run's{elsewhere}{unread}"
        )
    ((pair_id, there),) = places.items()
    return Found(pair_id, tuple(there), searched)


def pair_ids(artifact: Artifact, limit: int) -> list[str]:
    """Of the artifact's first ``limit`` pairs."""
    ids: list[str] = []
    for _, column, _ in _ids(artifact, []):
        ids += column.slice(0, limit - len(ids)).to_pylist()
        if len(ids) >= limit:
            break
    return ids


def holds(artifact: Artifact, pair_id: str, gaps: list[str]) -> bool:
    """Whether the pair of that whole id is in the artifact."""
    return any(pc.any(pc.equal(ids, pair_id)).as_py() for _, ids, _ in _ids(artifact, gaps))


def pair_artifacts(store: Store, first: Iterable[str], gaps: list[str]) -> Iterator[Artifact]:
    """All complete artifacts of pairs: those of the keys in ``first`` in that order, then the newest first."""
    folder = store.root / "pairs"
    manifests = {file.parent.name: file for file in folder.glob("*/manifest.json")}
    newest = sorted(manifests, key=lambda key: manifests[key].stat().st_mtime, reverse=True)
    for key in dict.fromkeys([*(key for key in first if key in manifests), *newest]):
        try:
            yield store.get("pairs", key)
        except StoreError as error:
            gaps.append(str(error))


def _ids(artifact: Artifact, gaps: list[str]) -> Iterator[tuple[Path, pa.Array, int]]:
    """The ids of each file in pieces, with the row that the piece begins at."""
    for shard in artifact.manifest["shards"]:
        path, start = artifact.path / shard["file"], 0
        try:
            with pq.ParquetFile(path, buffer_size=BUFFER) as file:
                for batch in file.iter_batches(IDS, columns=["pair_id"]):
                    yield path, batch.column(0), start
                    start += len(batch)
        except (OSError, pa.ArrowException) as error:
            gaps.append(f"{path} cannot be read ({error})")
