"""What a policy must show to be promoted."""

from typing import Literal

from pipeline.config.base import Strict

GATE_METRICS = (
    "win_rate", "win_rate_low", "win_rate_vs_initial", "win_rate_vs_initial_low", "score_mean", "score_delta",
    "score_delta_low", "kl", "length", "length_ratio", "truncated",
)  # fmt: skip


class GateConfig(Strict):
    require: tuple[str, ...] = ("win_rate_low >= 0.5", "kl <= 10", "length_ratio <= 1.3")
    """Conditions on the round's evaluation; all must hold. ``probes.NAME`` reads a probe."""
    on_failure: Literal["stop", "rollback"] = "stop"
    """``stop`` ends the run with the best policy; ``rollback`` goes on from it with fresh samples."""
