"""A finished round's artifacts, and what each config of a data set takes from them, a span of shards at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.candidates import ASKED
from pipeline.export import columns
from pipeline.export.columns import Common
from pipeline.export.folder import left_out
from pipeline.pairing.artifact import DROPPED
from pipeline.pairing.unpaired import unpaired_by_role
from pipeline.store import Artifact, Store, digest
from pipeline.tables import CANDIDATES, MEMBER, PAIRS, intact

FORMAT = 5
"""Raised when the same artifacts give other files."""
AT_ONCE = 8192
"""Rows worked on at once of a shard or a file with many."""
LABELLED = [name for name in PAIRS.names if not name.endswith("token_ids")]
WITHOUT_IDS = [name for name in CANDIDATES.names if name != "token_ids"]
"""What is read where token ids, half of all the bytes, are not written."""
Shards = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RoundArtifacts:
    """What one round made, as far as a data set has it."""

    number: int
    policy: str
    """Digest of the policy that sampled; empty where the models were others'."""
    candidates: Artifact
    judgments: Artifact
    """Of the judge whose scores were paired."""
    members: Mapping[str, Artifact]
    """Of a panel's members, by name; empty for any other judge."""
    pairs: Artifact
    chat: bool
    """Whether the prompts are conversations."""

    @property
    def common(self) -> Common:
        return Common(self.number, self.policy, self.chat)

    @property
    def keys(self) -> dict[str, str]:
        """All that the round's rows are made from."""
        return {
            "policy": self.policy, "candidates": self.candidates.key, "judgments": self.judgments.key,
            **{f"{MEMBER}{name}": member.key for name, member in self.members.items()}, "pairs": self.pairs.key,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a data set."""

    path: str
    """In the data set's folder."""
    config: str
    tables: Callable[[], Iterator[pa.Table]]
    """Its rows, a shard at a time, with the config's columns."""


def open_round(store: Store, entry: Mapping[str, Any]) -> RoundArtifacts:
    """The artifacts of a round as ``round-NNN.json`` names them. Raises StoreError where one is gone."""
    keys = entry["artifacts"]
    candidates, judgments = store.get("candidates", keys["candidates"]), store.get("judgments", keys["judgments"])
    members = {
        role.removeprefix(MEMBER): store.get("judgments", key)
        for role, key in judgments.manifest["inputs"].items()
        if role.startswith(MEMBER)
    }
    pairs = store.get("pairs", keys["pairs"])
    policy = str(entry.get("policy_in") or "")
    return RoundArtifacts(entry["round"], policy, candidates, judgments, members, pairs, _is_chat(candidates))


def parts(made: RoundArtifacts, rows: int) -> Iterator[Part]:
    """The files of a round: of each config some that hold about ``rows`` rows, whole shards each.

    A file's name tells, by a digest, what it is made from, and depends on nothing but the round: files of finished
    rounds stay as they are when a run goes on.
    """
    named = f"{made.number:03d}-{digest([FORMAT, rows, made.keys])[:8]}"
    common = made.common
    pairs, candidates, judgments = (_shards(each) for each in (made.pairs, made.candidates, made.judgments))
    footer = cache(lambda: _footer(made.candidates))  # it grows with the round: not to be read again for every shard

    def asked(number: int) -> pa.Table:
        return _asked(made.candidates, number, footer())

    def own(number: int, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The shard's pairs of this round's candidates: replayed ones are in the round that made them."""
        for table in _pieces(_read(made.pairs, pairs[number], names)):
            kept = table.filter(pc.equal(table["candidates_key"], made.candidates.key))
            yield from [kept] if kept.num_rows else []

    def labelled(number: int) -> Iterator[pa.Table]:
        for table in own(number, LABELLED):
            found = unpaired_by_role(table)
            yield left_out(columns.labelled(found.completions, common), found.won_and_lost)

    def best(number: int) -> Iterator[pa.Table]:
        candidate = _read(made.candidates, candidates[number], WITHOUT_IDS)
        judgment = _read(made.judgments, judgments[number], ["prompt_id", "scores"])
        yield columns.best_of_n(asked(number), candidate, judgment, common)

    def said(artifact: Artifact, member: str) -> Callable[[int], Iterator[pa.Table]]:
        return lambda number: iter([columns.judgments(_read(artifact, _shards(artifact)[number]), common, member)])

    sources: list[tuple[str, str, Shards, Callable[[int], Iterator[pa.Table]]]] = [
        ("default", "", pairs, lambda n: (columns.preferences(table, common) for table in own(n))),
        ("kto", "", pairs, labelled),
        ("sft", "", candidates, best),
        ("candidates", "", candidates,
         lambda n: iter([columns.candidates(_read(made.candidates, candidates[n]), common)])),
        ("judgments", "", judgments, said(made.judgments, "")),
        *(("judgments", f"-member-{at}", _shards(member), said(member, name))
          for at, (name, member) in enumerate(made.members.items())),
        ("prompts", "", candidates, lambda n: iter([columns.prompts(asked(n), common)])),
    ]  # fmt: skip
    for config, infix, shards, read in sources:
        for at, span in enumerate(_spans(shards, rows)):
            yield Part(_name(config, f"{named}{infix}", at), config, _reader(read, span))
    if (made.pairs.path / DROPPED).exists():
        yield Part(_name("dropped", named, 0), "dropped", lambda: _drops(made.pairs.path / DROPPED, common))


def _name(config: str, named: str, at: int) -> str:
    return f"data/{config}/train-{named}-{at:05d}.parquet"


def _reader(read: Callable[[int], Iterator[pa.Table]], span: range) -> Callable[[], Iterator[pa.Table]]:
    return lambda: (table for number in span for table in read(number))


def _spans(shards: Shards, rows: int) -> Iterator[range]:
    """Neighbouring shards that hold ``rows`` rows together, or a little more."""
    start, total = 0, 0
    for number, shard in enumerate(shards):
        total += shard["rows"]
        if total >= rows:
            yield range(start, number + 1)
            start, total = number + 1, 0
    if total:
        yield range(start, len(shards))


# ---------------------------------------------------------------------------------------------- reading
def _shards(artifact: Artifact) -> Shards:
    shards: Shards = artifact.manifest["shards"]
    return shards


def _read(artifact: Artifact, shard: Mapping[str, Any], names: Sequence[str] | None = None) -> pa.Table:
    """One shard, or some columns of it. Raises StoreError where it cannot be read."""
    path = artifact.path / shard["file"]
    with intact(path), pq.ParquetFile(path) as file:
        return file.read(names, use_threads=False)


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    """The table in pieces of a prompt's rows each, and as many prompts as fit."""
    ids = table["prompt_id"].combine_chunks()
    if not len(ids):
        return
    new = np.flatnonzero(pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)) + 1
    ends = [*new[np.flatnonzero(np.diff(new // AT_ONCE, prepend=0))], len(ids)]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield table.slice(start, end - start)


def _footer(candidates: Artifact) -> pq.FileMetaData:
    """Where the prompts of each shard lie. Raises StoreError where it cannot be read."""
    path = candidates.path / ASKED
    with intact(path):
        return pq.read_metadata(path)


def _asked(candidates: Artifact, number: int, footer: pq.FileMetaData) -> pa.Table:
    """The prompts of one shard, without reading those before it. Raises StoreError where they cannot be read."""
    path = candidates.path / ASKED
    with intact(path), pq.ParquetFile(path, metadata=footer) as file:
        return file.read_row_group(number, use_threads=False)


def _is_chat(candidates: Artifact) -> bool:
    if not _shards(candidates):
        return False
    messages = _asked(candidates, 0, _footer(candidates))["messages"]
    return bool(pc.any(pc.greater(pc.list_value_length(messages), 0), min_count=0).as_py())


def _drops(path: Path, common: Common) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(AT_ONCE):
            yield columns.dropped(pa.Table.from_batches([batch]), common)
