"""Learning rates as a function of the step alone, so that a resumed training needs no state for them."""

import math
from typing import Literal


def warmup_then(step: int, steps: int, warmup: int, kind: Literal["constant", "linear", "cosine"]) -> float:
    """Factor on the peak rate at ``step`` of ``steps``, counted from 0.

    Rises linearly to 1 over the first ``warmup`` steps, then stays, or falls to 0 in a straight line or a half cosine.
    0 itself would come after the last step, so that no step is wasted on it.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    match kind:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
