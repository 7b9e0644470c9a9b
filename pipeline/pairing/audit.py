"""Why groups gave no pair: one named reason a group, with a detail for people."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import PairingConfig
from pipeline.pairing.columns import Columns, Floats
from pipeline.pairing.comparisons import Comparisons
from pipeline.pairing.standings import Standings
from pipeline.pairing.yardstick import Yardstick
from pipeline.tables import DROPS

REASONS = (
    "abstained", "identical", "tie", "truncated", "empty", "threshold", "margin", "floor", "length_ratio",
    "same_words", "near_identical", "keep",
)  # fmt: skip
"""Why a group gives no pair, whatever ``pairs_per_prompt`` is. Of the filters from ``margin`` on, the one that took
the last comparison.

abstained       fewer than two candidates have a score
identical       best and worst, or all candidates of a tie, are the same completion: the judge contradicts itself, or
                there is nothing to compare
tie             all scores are equal, or all that the rule compares
truncated       what scored above the worst had stopped at the token limit (``drop_truncated``)
empty           what scored above the worst was empty
threshold       no candidate that may be chosen reaches the threshold, or none is below it (rule ``threshold``)
margin          the scores differ by less than ``margin``
floor           the chosen scores are below ``min_score_chosen``
length_ratio    one completion is longer than the other by more than ``max_length_ratio``
same_words      the texts differ in white space alone (``drop_same_words``)
near_identical  the texts are more alike than ``max_similarity``
keep            the margin is not among the widest of the round
"""


def drops(
    columns: Columns,
    scores: Floats,
    standings: Standings,
    found: Comparisons,
    config: PairingConfig,
    yardstick: Yardstick,
) -> pa.Table:
    """A row a group without a pair, in order."""
    rows = np.flatnonzero(found.reasons != "")
    reasons = found.reasons[rows].tolist()
    details = [
        _detail(reason, row, columns, scores, standings, config, yardstick)
        for reason, row in zip(reasons, rows.tolist(), strict=True)
    ]
    names = columns.prompt_ids.take(pa.array(rows, pa.int64()))
    return pa.table([names, pa.array(reasons, pa.string()), pa.array(details, pa.string())], schema=DROPS)


def counted(dropped: pa.Table) -> Mapping[str, int]:
    """Groups dropped, by reason, in the order of ``REASONS``."""
    found = Counter({row["values"]: row["counts"] for row in pc.value_counts(dropped["reason"]).to_pylist()})
    return {reason: found[reason] for reason in REASONS if found[reason]}


def _detail(
    reason: str,
    row: int,
    columns: Columns,
    scores: Floats,
    standings: Standings,
    config: PairingConfig,
    yardstick: Yardstick,
) -> str:
    size, best, worst = columns.sizes[row], standings.best[row], standings.worst[row]
    match reason:
        case "abstained":
            return f"{columns.scored[row].sum()} of {size} candidates have a score"
        case "identical":
            return f"{columns.texts[int(columns.starts[row] + standings.rejected[row])].as_py()[:80]!r}"
        case "tie":
            return f"all scores are {columns.raw[row, standings.rejected[row]]:g}"
        case "truncated" | "empty":
            barred = columns.truncated if reason == "truncated" else columns.empty
            return f"{barred[row].sum()} of {size} candidates are {reason}"
        case "threshold":
            return f"{(scores[row] >= config.threshold).sum()} of {size} candidates reach {config.threshold:g}"
        case "margin":
            return f"{best - worst:g} < {yardstick.least(config):g}"
        case "floor":
            return f"the best score is {best:g}"
        case "length_ratio":
            return f"lengths are {np.nanmin(columns.lengths[row]):g} to {np.nanmax(columns.lengths[row]):g}"
        case "same_words":
            return "no two differ in more than white space"
        case "near_identical":
            return f"no two are less alike than {config.max_similarity:g}"
        case _:
            return f"below the cut-off of {yardstick.cutoff:g}"
