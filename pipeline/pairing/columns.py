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
    """The groups of all of them, each column in one piece."""
    if len(shards) == 1:
        return shards[0]
    prompts, candidates, judgments = (
        pa.concat_tables([getattr(shard, name) for shard in shards]).combine_chunks()
        for name in ("prompts", "candidates", "judgments")
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
    priority: Words
    """Who comes first among equals."""
    texts: pa.StringArray
    """[rows]"""
    text_sizes: npt.NDArray[np.int32]
    """[rows]: bytes."""
    token_ids: pa.ListArray
    """[rows]"""

    @property
    def scored(self) -> Bools:
        return np.isfinite(self.raw)

    def rows(self, group: Indices, candidate: Indices) -> Indices:
        """Rows of candidates, given by their group and their place in it."""
        rows: Indices = self.starts[group] + candidate
        return rows


def columns_of(shard: Shard, with_lengths: bool) -> Columns:
    """Raises AssertionError where the three tables do not hold the same groups in the same order."""
    names, scores = array(shard.prompts, "prompt_id"), array(shard.judgments, "scores")
    present = presence(scores)
    sizes = present.sum(axis=1)
    starts = np.cumsum(sizes) - sizes
    _check(shard, names, sizes, starts)
    texts, token_ids = array(shard.candidates, "text"), array(shard.candidates, "token_ids")
    raw = _padded(flat_scores(scores), present, np.nan)
    raw[~np.isfinite(raw)] = np.nan
    draws = _draws(shard.candidates, present, sizes)
    spaces = pc.utf8_is_space(texts).to_numpy(zero_copy_only=False)
    text_sizes = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    empty = spaces | (text_sizes == 0)
    truncated = pc.equal(array(shard.candidates, "finish_reason"), "length").to_numpy(zero_copy_only=False)
    return Columns(
        prompt_ids=names,
        sizes=sizes,
        starts=starts,
        raw=raw,
        lengths=lengths_of(token_ids, present, lambda: texts) if with_lengths else np.empty((len(sizes), 0)),
        empty=_padded(empty, present, False),
        truncated=_padded(truncated, present, False),
        draws=draws,
        priority=mixed(draws ^ _hashes(names)[:, None]),
        texts=texts,
        text_sizes=text_sizes,
        token_ids=token_ids,
    )


def array(table: pa.Table, name: str) -> pa.Array:
    """A column in one piece, and without a copy where it already is."""
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


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


def _hashes(names: pa.Array) -> Words:
    return np.array([_hash(name) for name in names.to_pylist()], np.uint64)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
