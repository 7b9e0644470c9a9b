"""What a judge must show before its scores train anything."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config.base import CONDITION, Strict

HEALTH_METRICS = (
    "agreement", "agreement_decided", "kappa", "kappa_low", "swap_consistency", "tie_rate", "abstention_rate",
    "length_bias", "canaries",
)  # fmt: skip
"""Each is explained in ``judges.health.figures.Health``."""


class HealthConfig(Strict):
    """Checked once, before the first round; ``ratchet judge check`` prints the same figures."""

    labels: str | None = None
    """A file of people's preferences to compare with. None: only canaries."""
    limit: int | None = Field(None, ge=1)
    """Labelled pairs to judge at most."""
    require: tuple[str, ...] = ()
    """Conditions on the figures, e.g. ``kappa_low >= 0.4``; all must hold. Empty: nothing is checked."""

    @model_validator(mode="after")
    def _conditions_read_what_is_measured(self) -> Self:
        for condition in self.require:
            match = CONDITION.fullmatch(condition)
            if match is None or match["metric"] not in HEALTH_METRICS:
                raise ValueError(
                    f"require: {condition!r} is not '<metric> <operator> <number>' with an operator of >=, <=, >, < and"
                    f" a metric of {', '.join(HEALTH_METRICS)}"
                )
            if self.labels is None and match["metric"] != "canaries":
                raise ValueError(f"require: {condition!r} needs labels = a file; without one only canaries is known")
        return self
