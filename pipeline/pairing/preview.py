"""What would each margin keep? The margins of a round's first pairs, and what is left of them above some of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.pairing.columns import Bools, Floats
from pipeline.pairing.yardstick import SLACK

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


def preview(
    margins: Floats, chosen_longer: Bools, sigma: float, quantiles: Sequence[float] = QUANTILES
) -> list[dict[str, Any]]:
    """A row a margin, from narrow to wide, JSON-serialisable: all there are, or those at ``quantiles`` where there are
    more. No two rows keep the same pairs; no rows without pairs.

    Args:
        margins: [prompts], in score units.
        chosen_longer: [prompts]: whether the chosen completion is the longer one.
        sigma: standard deviation of all the round's scores.

    Returns:
        The ``margin`` in score units and in ``sigma`` (None where σ is 0); and of the pairs that it would keep their
        number ``pairs``, their ``share``, ``mean_margin`` and ``chosen_longer`` share.
    """
    rows = []
    for least in map(float, _some(margins, quantiles)):
        kept = margins >= least * (1 - SLACK)
        rows.append(
            {
                "margin": least, "sigma": least / sigma if sigma > 0 else None,
                "pairs": int(kept.sum()), "share": float(kept.mean()),
                "mean_margin": float(margins[kept].mean()), "chosen_longer": float(chosen_longer[kept].mean()),
            }
        )  # fmt: skip
    return rows


def _some(margins: Floats, quantiles: Sequence[float]) -> Floats:
    distinct = np.unique(margins)
    if len(distinct) > len(quantiles):
        distinct = np.unique(np.quantile(margins, quantiles, method="higher"))
    return distinct[np.diff(distinct, prepend=-np.inf) > SLACK * distinct]  # what rounding made of one margin is one
