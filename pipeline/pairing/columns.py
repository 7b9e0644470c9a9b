"""Groups as columns: what pairing reads of a shard, without a Python object a candidate.

Numbers lie in arrays [groups, candidates], padded to the largest group of the shard. Nothing depends on the padding or
on the order of a group's candidates, so a round gives the same pairs however it is divided into shards.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pairing.lengths import lengths_of
from pipeline.tables import IDS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Number = TypeVar("Number", bound=np.generic)
LAST = np.uint64(2**64 - 1)


@dataclass(frozen=True, slots=True)
class Shard:
    """Some groups, whole and in order, as they lie in the store: a row a group in ``prompts`` and ``judgments``, and
    in ``candidates`` a row a candidate, a group's together."""

    prompts: pa.Table
    candidates: pa.Table
    judgments: pa.Table
    """``prompt_id`` and ``scores`` are read; the votes are never needed."""


def joined(shards: Sequence[Shard]) -> Shard:
    """The groups of all of them: a column is in several pieces then, and nothing is copied."""
    prompts, candidates, judgments = (
        pa.concat_tables([getattr(shard, name) for shard in shards]) for name in ("prompts", "candidates", "judgments")
    )
    return Shard(prompts, candidates, judgments)


@dataclass(frozen=True, slots=True)
class Columns:
    """Each [groups, candidates] where no other shape is given."""

    prompt_ids: pa.StringArray
    """[groups]"""
    sizes: Indices
    """[groups]: candidates."""
    starts: Indices
    """[groups]: row of the first candidate."""
    raw: Floats
    """The judge's scores; NaN where it abstained, where a score is not finite, or where the group is smaller."""
    lengths: Floats
    """NaN where the group is smaller; [groups, 0] where nobody asked."""
    empty: Bools
    truncated: Bools
    draws: Words
    """Names a candidate within its group, by seed and model."""
    texts: pa.ChunkedArray
    """[rows], in pieces of whole groups; see :func:`taken`."""
    text_sizes: npt.NDArray[np.int32]
    """[rows]: bytes."""
    token_ids: pa.ChunkedArray
    """[rows], in pieces of whole groups."""
    id_sizes: npt.NDArray[np.int32]
    """[rows]: token ids."""

    @property
    def scored(self) -> Bools:
        return np.isfinite(self.raw)

    def rows(self, group: Indices, candidate: Indices) -> Indices:
        """Rows of candidates, given by their group and their place in it."""
        rows: Indices = self.starts[group] + candidate
        return rows

    def priority(self, groups: Indices) -> Words:
        """Who comes first among equals, for these groups."""
        names = self.prompt_ids.take(pa.array(groups)).to_pylist()
        return mixed(self.draws[groups] ^ np.array([_hash(name) for name in names], np.uint64)[:, None])


def columns_of(shard: Shard, with_lengths: bool) -> Columns:
    """Raises AssertionError where the three tables do not hold the same groups in the same order."""
    names, scores = array(shard.prompts, "prompt_id"), array(shard.judgments, "scores")
    present = presence(scores)
    sizes = present.sum(axis=1)
    starts = np.cumsum(sizes) - sizes
    _check(shard, names, sizes, starts)
    texts, token_ids = shard.candidates["text"], shard.candidates["token_ids"]
    raw = _padded(flat_scores(scores), present, np.nan)
    raw[~np.isfinite(raw)] = np.nan
    text_sizes = pc.binary_length(texts).to_numpy()
    empty = pc.utf8_is_space(texts).to_numpy() | (text_sizes == 0)
    truncated = pc.equal(shard.candidates["finish_reason"], "length").to_numpy()
    return Columns(
        prompt_ids=names,
        sizes=sizes,
        starts=starts,
        raw=raw,
        lengths=lengths_of(token_ids, present, lambda: texts) if with_lengths else np.empty((len(sizes), 0)),
        empty=_padded(empty, present, False),
        truncated=_padded(truncated, present, False),
        draws=_draws(shard.candidates, present, sizes),
        texts=texts,
        text_sizes=text_sizes,
        token_ids=token_ids,
        id_sizes=pc.list_value_length(token_ids).to_numpy(),
    )


def array(table: pa.Table, name: str) -> pa.Array:
    """A column in one piece, and without a copy where it already is."""
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def taken(column: pa.ChunkedArray, rows: Indices) -> pa.ChunkedArray:
    """The column's ``rows``, in their order, which must be that of the column's pieces. Arrow would join the pieces
    first, and copying all the texts of a shard costs more than everything else that is done with them."""
    ends = np.cumsum([len(piece) for piece in column.chunks], dtype=np.int64)
    within = np.searchsorted(ends, rows, side="right")
    assert (np.diff(within) >= 0).all(), "rows come piece by piece"
    cuts = np.searchsorted(within, np.arange(len(ends) + 1))
    pieces = zip(column.chunks, ends, cuts, cuts[1:], strict=False)
    found = [_picked(piece, rows[first:last] - (end - len(piece))) for piece, end, first, last in pieces]
    return pa.chunked_array(found, column.type)


def _picked(piece: pa.Array, rows: Indices) -> pa.Array:
    """A row's token ids as one run of bytes: Arrow copies them number by number, three times as long."""
    if piece.type != IDS:
        return piece.take(pa.array(rows))
    values, width = piece.values, piece.values.type.byte_width
    starts = (piece.offsets.to_numpy().astype(np.int64) + values.offset) * width
    runs = pa.Array.from_buffers(pa.large_binary(), len(piece), [None, pa.py_buffer(starts), values.buffers()[1]]).take(
        pa.array(rows)
    )
    ends = pa.Array.from_buffers(pa.int64(), len(rows) + 1, [None, runs.buffers()[1]]).to_numpy() // width
    ids = pa.Array.from_buffers(values.type, int(ends[-1]), [None, runs.buffers()[2]])
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), ids, type=IDS)


def presence(scores: pa.ListArray) -> Bools:
    """[groups, candidates]: whether the group has a candidate in that place."""
    sizes = pc.list_value_length(scores).to_numpy(zero_copy_only=False)
    there: Bools = np.arange(max(1, int(sizes.max(initial=0)))) < sizes[:, None]
    return there


def flat_scores(scores: pa.ListArray) -> Floats:
    """A number a candidate; NaN where the judge abstained."""
    values: Floats = scores.flatten().to_numpy(zero_copy_only=False)
    return values


def mixed(words: Words) -> Words:
    """The finaliser of SplitMix64: a bijection that leaves no trace of the order of its arguments."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _check(shard: Shard, names: pa.Array, sizes: Indices, starts: Indices) -> None:
    assert array(shard.judgments, "prompt_id").equals(names), "every group has one judgment, in its place"
    assert sizes.sum() == shard.candidates.num_rows, "every candidate has one score"
    there = np.flatnonzero(sizes)
    owners, theirs = array(shard.candidates, "prompt_id"), names.take(pa.array(there))
    for rows in (starts[there], starts[there] + sizes[there] - 1):  # ids are unique, so what lies between is theirs
        assert owners.take(pa.array(rows)).equals(theirs), "every candidate has one score, and its group lies together"


def _padded(flat: npt.NDArray[Number], present: Bools, filler: object) -> npt.NDArray[Number]:
    padded = np.full(present.shape, filler, flat.dtype)
    padded[present] = flat
    return padded


def _draws(candidates: pa.Table, present: Bools, sizes: Indices) -> Words:
    """Seed and model as one word. Candidates of one model that share a seed are told apart by their index."""
    models = array(candidates, "model").dictionary_encode()
    known = models.dictionary.to_pylist()
    names = np.array([_hash(name) if name else 0 for name in known], np.uint64)
    seeds = array(candidates, "seed").to_numpy().view(np.uint64)
    draws = _padded(seeds ^ names[models.indices.to_numpy()] if any(known) else seeds, present, 0)
    ordered = np.sort(np.where(present, draws, LAST), axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (np.arange(1, present.shape[1]) < sizes[:, None])).any(axis=1)
    if twice.any():
        indices = _padded(array(candidates, "index").to_numpy().astype(np.uint64) + np.uint64(1), present, 0)
        draws[twice] ^= mixed(indices[twice])
    return draws


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
