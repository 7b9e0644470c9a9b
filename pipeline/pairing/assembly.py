"""Pairs as rows: the chosen and the rejected candidate side by side, under a name that stays theirs."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.pairing.columns import Columns, Floats, Indices, Shard, taken
from pipeline.pairing.comparisons import Comparisons
from pipeline.tables import CANDIDATE_FIELDS, PAIRS, PROMPTS

LARGE = ["text", "token_ids"]
"""Columns of candidates that are not copied more often than need be."""
SMALL = [name for name, _ in CANDIDATE_FIELDS if name not in LARGE]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the groups and their scores come from."""

    round: int
    candidates_key: str
    judgments_key: str


def pairs_of(shard: Shard, columns: Columns, scores: Floats, found: Comparisons, origin: Origin) -> pa.Table:
    """A row a pair, with the scores that were compared."""
    high, low = scores[found.group, found.chosen], scores[found.group, found.rejected]
    assert (high > low).all(), "chosen scores higher"
    prompts = shard.prompts.take(pa.array(found.group))
    count = len(high)
    chosen, rejected = (_rows(shard, columns.rows(found.group, place)) for place in (found.chosen, found.rejected))
    filled = [
        pair_ids(prompts["prompt_id"], columns, found, origin),
        pa.array(np.full(count, origin.round, np.int32)),
        *(prompts[name] for name in PROMPTS.names),
        *(chosen[name] for name, _ in CANDIDATE_FIELDS),
        *(rejected[name] for name, _ in CANDIDATE_FIELDS),
        pa.array(high), pa.array(low), pa.array(high - low),
        pa.repeat(origin.candidates_key, count), pa.repeat(origin.judgments_key, count),
    ]  # fmt: skip
    return pa.table(filled, schema=PAIRS)


def _rows(shard: Shard, rows: Indices) -> Mapping[str, pa.ChunkedArray]:
    small = shard.candidates.select(SMALL).take(pa.array(rows))
    return {name: small[name] for name in SMALL} | {name: taken(shard.candidates[name], rows) for name in LARGE}


def pair_ids(prompt_ids: pa.ChunkedArray, columns: Columns, found: Comparisons, origin: Origin) -> pa.StringArray:
    """SHA-256, first 32 digits, over both artifact keys, the prompt's id, and both candidates' seeds and models.

    Keys, prompt and seed name a candidate's ids and text for ever, so these need not be read; nor does the id depend
    on the round, the rule or the scores.
    """
    prefix = hashlib.sha256(f"{origin.candidates_key}\0{origin.judgments_key}\0".encode())
    draws = np.stack([columns.draws[found.group, place] for place in (found.chosen, found.rejected)], axis=1)
    words = draws.astype("<u8").tobytes()
    digests = []
    for start, name in zip(range(0, len(words), 16), prompt_ids.cast(pa.binary()).to_pylist(), strict=True):
        digest = prefix.copy()
        digest.update(words[start : start + 16] + name)
        digests.append(digest.digest()[:16])
    digits = b"".join(digests).hex().encode()
    offsets = np.arange(0, len(digits) + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(len(digests), pa.py_buffer(offsets), pa.py_buffer(digits))
