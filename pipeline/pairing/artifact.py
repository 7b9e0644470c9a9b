"""The pairs artifact: shard by shard from a round's candidates and judgments, several shards at once.

    pairs/<key>/00000-….parquet …  dropped.parquet  manifest.json

An output shard holds the pairs of several input shards and is made from them alone, so each is worked on by itself,
and a round that was interrupted goes on with those that are missing. Only the shard in hand is in memory.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.candidates import ASKED
from pipeline.config import PairingConfig
from pipeline.pairing.assembly import Origin
from pipeline.pairing.audit import REASONS, counted
from pipeline.pairing.columns import Floats, Shard, array, flat_scores, joined, presence
from pipeline.pairing.lengths import controls_length, lengths_of
from pipeline.pairing.shards import Paired, first_margins, pair
from pipeline.pairing.yardstick import Yardstick, needs_scores, with_cutoff, yardstick_of
from pipeline.protocols import Progress
from pipeline.store import Artifact, Draft, Spec, sync
from pipeline.tables import DROPS, PAIRS, intact

VERSION = 5
"""Part of the key. Raised where columns change, or which input shards an output shard is made from, too: of a half-made
artifact the shards that are there are kept, and they would be another version's."""
DROPPED = "dropped.parquet"
"""The audit of drops, beside a pairs artifact's shards."""
ROWS, BYTES = 2**16, 2**26
"""Candidates, and bytes on disk, that an output shard is made from at most: a worker holds their pairs in memory."""
JOINED = 2**14
"""Candidates paired at once: more are no faster, and take memory."""
WORKERS = 8
"""At most: each holds up to a hundred MB, and the disk is busy by then."""


class Round:
    """A round's shards as they lie in the store, read one by one in any order and from any thread."""

    def __init__(self, candidates: Artifact, judgments: Artifact) -> None:
        self.candidates, self.judgments = candidates, judgments
        with intact(candidates.path / ASKED):
            self._asked = pq.read_metadata(candidates.path / ASKED)
        assert len(candidates.manifest["shards"]) == len(judgments.manifest["shards"]) == self._asked.num_row_groups

    def __len__(self) -> int:
        return len(self.candidates.manifest["shards"])

    @property
    def groups(self) -> int:
        return int(self._asked.num_rows)

    def shard(self, number: int) -> Shard:
        """Raises StoreError where a file has been removed or damaged."""
        return next(self.read([number]))

    def read(self, numbers: Sequence[int]) -> Iterator[Shard]:
        """Some shards, one by one. Raises StoreError as :meth:`shard` does."""
        path = self.candidates.path / ASKED
        with intact(path):
            asked = pq.ParquetFile(path, metadata=self._asked)
        with asked:
            for number in numbers:
                with intact(path):
                    prompts = asked.read_row_group(number, use_threads=False)
                candidates = self._read(self.candidates, number, None)
                yield Shard(prompts, candidates, self._read(self.judgments, number, ["prompt_id", "scores"]))

    def scores(self, number: int) -> tuple[Floats, Floats]:
        """Of all the shard's candidates, flat; and in place of lengths nothing."""
        return flat_scores(array(self._read(self.judgments, number, ["scores"]), "scores")), np.empty(0)

    def scores_and_lengths(self, number: int) -> tuple[Floats, Floats]:
        """Of all the shard's candidates, flat."""
        scores = array(self._read(self.judgments, number, ["scores"]), "scores")
        token_ids = self._read(self.candidates, number, ["token_ids"])["token_ids"]
        present = presence(scores)
        lengths = lengths_of(token_ids, present, lambda: self._read(self.candidates, number, ["text"])["text"])
        return flat_scores(scores), lengths[present]

    def _read(self, artifact: Artifact, number: int, columns: list[str] | None) -> pa.Table:
        path = artifact.path / artifact.manifest["shards"][number]["file"]
        with intact(path), pa.OSFile(str(path)) as bytes, pq.ParquetFile(bytes) as file:
            return file.read(columns, use_threads=False)


def pairs_spec(candidates: Artifact, judgments: Artifact, config: PairingConfig, round: int) -> Spec:
    settings = config.model_dump(mode="json", exclude={"replay"}) | {"round": round}
    return Spec("pairs", VERSION, settings, {"candidates": candidates.key, "judgments": judgments.key})


def make_pairs(draft: Draft, source: Round, config: PairingConfig, threads: int | None, progress: Progress) -> Artifact:
    """All the round's pairs, and in ``dropped.parquet`` why every other group gave none.

    Args:
        threads: shards worked on at once; None: one a core, and one more. The result does not depend on it.
        progress: told of groups.
    """
    origin = Origin(draft.spec.config["round"], source.candidates.key, source.judgments.key)
    outputs = plan(source, config)
    with workers(threads, len(outputs)) as each:
        yardstick = survey(source, config, each)

        def make(number: int) -> int:
            """Groups worked on."""
            if not draft.has_shard(number):
                _make_shard(draft, number, source.read(outputs[number]), config, yardstick, origin)
            return _counts(draft, number)["groups"]

        done = 0
        for groups in each(make, range(len(outputs))):
            done += groups
            progress(done, source.groups, "")
    return _finish(draft, len(outputs), source.groups, yardstick, progress)


def plan(source: Round, config: PairingConfig) -> list[list[int]]:
    """Numbers of the input shards of each output shard: the same for the same artifacts and config."""
    outputs: list[list[int]] = []
    rows = size = 0
    for number, shard in enumerate(source.candidates.manifest["shards"]):
        more = (source.candidates.path / shard["file"]).stat().st_size
        if not outputs or rows + shard["rows"] > ROWS // config.pairs_per_prompt or size + more > BYTES:
            outputs.append([])
            rows = size = 0
        outputs[-1].append(number)
        rows, size = rows + shard["rows"], size + more
    return outputs or [[]]


Each = Callable[[Callable[[int], Any], Iterable[int]], Iterator[Any]]
"""``map``, or the same on several threads: results in order."""


@contextmanager
def workers(threads: int | None, tasks: int) -> Iterator[Each]:
    """Reading, writing and most of the arithmetic let other threads work; the one more is for when one waits for the
    disk."""
    count = min(threads or (os.cpu_count() or 1) + 1, WORKERS, tasks)
    if count < 2:
        yield map
        return
    pool = ThreadPoolExecutor(count)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def survey(source: Round, config: PairingConfig, each: Each = map) -> Yardstick:
    """The round's yardstick, read before anything is paired; nothing is read where the config needs none."""
    numbers = range(len(source))
    yardstick = Yardstick()
    if controls_length(config):
        yardstick = yardstick_of(each(source.scores_and_lengths, numbers), config)
    elif needs_scores(config):
        yardstick = yardstick_of(each(source.scores, numbers), config)
    if config.keep == 1:
        return yardstick
    margins = each(lambda one: first_margins(source.shard(one), config, yardstick), range(len(source)))
    return with_cutoff(yardstick, np.concatenate([np.empty(0), *margins]), config.keep)


def _make_shard(
    draft: Draft, number: int, shards: Iterable[Shard], config: PairingConfig, yardstick: Yardstick, origin: Origin
) -> None:
    """Pairs and drops of some shards. The drops are on disk first, so that a shard that is there has its drops."""

    def paired_of(shard: Shard) -> Paired:
        return pair(shard, config, yardstick, origin)

    paired = list(map(paired_of, _joined(shards)))  # a loop's variable would keep each shard while the next is read
    dropped = pa.concat_tables([DROPS.empty_table(), *(one.dropped for one in paired)])
    counts = {"groups": str(sum(one.groups for one in paired)), "kept": str(sum(one.kept for one in paired))}
    file = _drops_file(draft, number)
    pq.write_table(dropped.replace_schema_metadata(counts), file)
    sync(file)
    draft.commit_shard(number, pa.concat_tables([PAIRS.empty_table(), *(one.pairs for one in paired)]))


def _joined(shards: Iterable[Shard]) -> Iterator[Shard]:
    """The same groups in fewer shards: what is done once a shard is done less often, and holds up fewer threads."""
    waiting: list[Shard] = []
    for shard in shards:
        waiting.append(shard)
        if sum(one.candidates.num_rows for one in waiting) >= JOINED:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)


def _drops_file(draft: Draft, number: int) -> Path:
    return draft.path / f"dropped-{number:05d}.parquet"


def _counts(draft: Draft, number: int) -> dict[str, int]:
    metadata = pq.read_schema(_drops_file(draft, number)).metadata
    return {name.decode(): int(value) for name, value in metadata.items() if name in (b"groups", b"kept")}


def _finish(draft: Draft, shards: int, groups: int, yardstick: Yardstick, progress: Progress) -> Artifact:
    """The drops of all shards in one file, and the manifest, once all groups are accounted for."""
    counts = dict.fromkeys(REASONS, 0)
    kept = 0
    part = draft.path / f"{DROPPED}.part"
    with pq.ParquetWriter(part, DROPS) as writer:
        for number in range(shards):
            dropped = pq.read_table(_drops_file(draft, number)).replace_schema_metadata(None)
            writer.write_table(dropped)
            kept += _counts(draft, number)["kept"]
            for reason, count in counted(dropped).items():
                counts[reason] += count
    sync(part)
    part.rename(draft.path / DROPPED)
    found = {reason: count for reason, count in counts.items() if count}
    artifact = draft.finish({"yardstick": yardstick.to_json()}, rows_in=groups, dropped=found, kept=kept)
    for number in range(shards):
        _drops_file(draft, number).unlink()
    rows = artifact.manifest["rows"]
    progress(groups, groups, f"{rows} pairs{f' from {kept} prompts' if kept < rows else ''}")
    return artifact
