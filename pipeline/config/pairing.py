"""Which candidates become a preference pair."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Strict


class PairingConfig(Strict):
    rule: Literal["best_worst"] = "best_worst"
    """The pairs of a prompt whose scores differ most, the best against the worst candidate first."""
    pairs_per_prompt: int = Field(1, ge=1)
    """At most so many of each prompt. Whether a prompt gives a pair at all does not depend on it."""
    margin: float = Field(0.0, ge=0.0)
    """Pairs whose score difference is smaller are dropped; ties (difference 0) always are."""
    margin_unit: Literal["score", "sigma"] = "score"
    """``sigma`` measures the margin in standard deviations of all the round's scores."""
    min_score_chosen: float | None = None
    """Floor on the chosen candidate's score."""
    drop_truncated: bool = False
    """Never choose a candidate that stopped at the token limit."""
