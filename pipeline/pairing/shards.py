"""A shard of groups to its pairs and its drops."""

from dataclasses import dataclass

import pyarrow as pa

from pipeline.config import PairingConfig
from pipeline.pairing.assembly import Origin, pairs_of
from pipeline.pairing.audit import drops
from pipeline.pairing.columns import Floats, Shard, columns_of
from pipeline.pairing.comparisons import compare, keep_widest, margins_of
from pipeline.pairing.lengths import compared_scores
from pipeline.pairing.standings import standings_of
from pipeline.pairing.yardstick import Yardstick, needs_lengths


@dataclass(frozen=True, slots=True)
class Paired:
    pairs: pa.Table
    """In group order; those of a group together, in the order of its rule. Schema ``tables.PAIRS``."""
    dropped: pa.Table
    """Every group without a pair, in group order. Schema ``tables.DROPS``."""
    groups: int
    """All the groups there were."""
    kept: int
    """Those with a pair; with those dropped, all of them."""


def pair(shard: Shard, config: PairingConfig, yardstick: Yardstick, origin: Origin) -> Paired:
    """Pair every group of the shard, or say why not.

    Args:
        yardstick: of the whole round. A default one will do where ``needs_scores`` is false and ``keep`` is 1.
    """
    columns = columns_of(shard, needs_lengths(config))
    scores = compared_scores(columns.raw, columns.lengths, config, yardstick.line)
    standings = standings_of(columns, scores, config)
    found = keep_widest(compare(columns, scores, standings, config, yardstick), scores, yardstick)
    pairs = pairs_of(shard, columns, scores, found, origin)
    dropped = drops(columns, scores, standings, found, config, yardstick)
    kept = int(found.first.sum())
    assert kept + dropped.num_rows == len(columns.sizes), "a group went missing"
    return Paired(pairs, dropped, len(columns.sizes), kept)


def first_margins(shard: Shard, config: PairingConfig, yardstick: Yardstick) -> Floats:
    """What ``keep`` goes by: the margin of each group's first pair, as all other filters leave it."""
    columns = columns_of(shard, needs_lengths(config))
    scores = compared_scores(columns.raw, columns.lengths, config, yardstick.line)
    one = config.model_copy(update={"pairs_per_prompt": 1})
    return margins_of(compare(columns, scores, standings_of(columns, scores, config), one, yardstick), scores)
