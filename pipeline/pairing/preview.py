"""What would each margin keep? The comparisons made again above some margins, so that each row is what pairing gives.

With every rule but ``best_worst`` a group whose first comparison is too narrow may give a wider one, so what a margin
keeps cannot be told from the pairs that are made without one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context
from typing import Any

import numpy as np

from pipeline.config import PairingConfig
from pipeline.pairing.artifact import Each, Round
from pipeline.pairing.columns import Floats, Shard, columns_of
from pipeline.pairing.comparisons import compare, margins_of
from pipeline.pairing.lengths import compared_scores
from pipeline.pairing.standings import standings_of
from pipeline.pairing.yardstick import SLACK, Yardstick

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
SHORT = Context(prec=4, rounding=ROUND_FLOOR)
"""Margins that can be read, and given to ``pairing.margin``, as they are."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What one margin keeps of a shard."""

    margins: Floats
    """[pairs]"""
    prompts: int
    longer: int
    """Pairs whose chosen completion is the longer one."""


def preview(
    source: Round, config: PairingConfig, yardstick: Yardstick, each: Each = map, quantiles: Sequence[float] = QUANTILES
) -> list[dict[str, Any]]:
    """A row a margin, from narrow to wide, JSON-serialisable: all there are, or those at ``quantiles`` of the pairs
    that are made without a margin, where there are more. The first row has all of these pairs; no rows without pairs.

    Args:
        config: its ``margin`` and ``keep`` are not applied.

    Returns:
        The ``margin`` in score units, to four digits, and in ``sigma``, the yardstick's (None where that is 0); of the
        pairs made with it their number ``pairs``, the ``prompts`` they are of, their ``share`` of the first row's
        pairs, their ``mean_margin`` and ``chosen_longer`` share.
    """
    config = config.model_copy(update={"keep": 1.0, "margin_unit": "score"})
    every = _kept(source, config, yardstick, each, [0.0])[0]
    rows: list[dict[str, Any]] = []
    shown = _some(every.margins, quantiles)
    for least, kept in zip(shown, _kept(source, config, yardstick, each, shown), strict=True):
        count = len(kept.margins)
        rows.append(
            {
                "margin": least, "sigma": least / yardstick.sigma if yardstick.sigma > 0 else None,
                "prompts": kept.prompts, "pairs": count, "share": count / len(every.margins),
                "mean_margin": float(kept.margins.mean()), "chosen_longer": kept.longer / count,
            }
        )  # fmt: skip
    return rows


def _some(margins: Floats, quantiles: Sequence[float]) -> list[float]:
    """Ascending; what rounding made of one margin is one."""
    distinct = np.unique(margins)
    if len(distinct) > len(quantiles):
        distinct = np.unique(np.quantile(margins, quantiles, method="higher"))
    return sorted({float(SHORT.create_decimal_from_float(margin * (1 + SLACK))) for margin in distinct.tolist()})


def _kept(
    source: Round, config: PairingConfig, yardstick: Yardstick, each: Each, margins: Sequence[float]
) -> list[_Kept]:
    """Of the whole round, for each of the margins; a shard is read once for them all."""
    if not margins:
        return []
    shards = list(each(lambda one: list(_of_shard(source.shard(one), config, yardstick, margins)), range(len(source))))
    return [
        _Kept(
            np.concatenate([np.empty(0), *(shard[at].margins for shard in shards)]),
            sum(shard[at].prompts for shard in shards), sum(shard[at].longer for shard in shards),
        )
        for at in range(len(margins))
    ]  # fmt: skip


def _of_shard(shard: Shard, config: PairingConfig, yardstick: Yardstick, margins: Sequence[float]) -> Iterator[_Kept]:
    columns = columns_of(shard, with_lengths=True)
    scores = compared_scores(columns.raw, columns.lengths, config, yardstick.line)
    standings = standings_of(columns, scores, config)
    for margin in margins:
        found = compare(columns, scores, standings, config.model_copy(update={"margin": margin}), yardstick)
        chosen, rejected = (columns.lengths[found.group, place] for place in (found.chosen, found.rejected))
        yield _Kept(margins_of(found, scores), int(found.first.sum()), int((chosen > rejected).sum()))
