"""Pairing: groups and their judgments to preference pairs. Pure functions over Arrow tables and numpy arrays.

    candidates, judgments → columns → standings → comparisons (rules, filters) → pairs, or one named drop a group

A round's shards are paired one by one and in any order, with one :class:`Yardstick` for them all:

    yardstick = yardstick_of(…)          σ of the round, length's line: a first pass over scores and lengths
    for shard in shards:
        pair(shard, config, yardstick, origin)

An empty candidate is never chosen, nor, with ``drop_truncated``, is one that stopped at the token limit; both can be
rejected. A candidate without a score takes part in nothing. Two that the judge scored alike are never compared, length
control or not: a tie is no label.
"""

from pipeline.pairing.assembly import Origin
from pipeline.pairing.audit import REASONS, counted
from pipeline.pairing.columns import Shard, columns_of
from pipeline.pairing.shards import Paired, pair
from pipeline.pairing.yardstick import Yardstick, needs_lengths, needs_scores, with_cutoff, yardstick_of

__all__ = [
    "REASONS",
    "Origin",
    "Paired",
    "Shard",
    "Yardstick",
    "columns_of",
    "counted",
    "needs_lengths",
    "needs_scores",
    "pair",
    "with_cutoff",
    "yardstick_of",
]
