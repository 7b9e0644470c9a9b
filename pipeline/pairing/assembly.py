"""Pairs as rows: the chosen and the rejected candidate side by side, under a name that stays theirs."""

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.pairing.columns import Columns, Floats, Shard
from pipeline.pairing.comparisons import Comparisons
from pipeline.tables import CANDIDATE_FIELDS, PAIRS, PROMPTS


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
    rows = [columns.rows(found.group, place) for place in (found.chosen, found.rejected)]
    both = shard.candidates.take(pa.array(np.concatenate(rows)))
    chosen, rejected = both.slice(0, count), both.slice(count)
    filled = [
        pa.array(pair_ids(prompts["prompt_id"].to_pylist(), columns, found, origin), pa.string()),
        pa.array(np.full(count, origin.round, np.int32)),
        *(prompts[name] for name in PROMPTS.names),
        *(chosen[name] for name, _ in CANDIDATE_FIELDS),
        *(rejected[name] for name, _ in CANDIDATE_FIELDS),
        pa.array(high), pa.array(low), pa.array(high - low),
        pa.repeat(origin.candidates_key, count), pa.repeat(origin.judgments_key, count),
    ]  # fmt: skip
    return pa.table(filled, schema=PAIRS)


def pair_ids(prompt_ids: list[str], columns: Columns, found: Comparisons, origin: Origin) -> list[str]:
    """SHA-256, first 32 digits, over both artifact keys, the prompt's id, and both candidates' seeds and models.

    Keys, prompt and seed name a candidate's ids and text for ever, so these need not be read; nor does the id depend
    on the round, the rule or the scores.
    """
    prefix = hashlib.sha256(f"{origin.candidates_key}\0{origin.judgments_key}\0".encode())
    chosen = columns.draws[found.group, found.chosen].tolist()
    rejected = columns.draws[found.group, found.rejected].tolist()
    ids = []
    for name, winner, loser in zip(prompt_ids, chosen, rejected, strict=True):
        digest = prefix.copy()
        digest.update(struct.pack("<QQ", winner, loser) + name.encode())
        ids.append(digest.hexdigest()[:32])
    return ids
