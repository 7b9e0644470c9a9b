"""Signs that a training goes wrong: a step's figures in, the reason to end it out."""

from collections.abc import Mapping

from pipeline.config import GuardsConfig

Figures = Mapping[str, float]


def reason_to_stop(guards: GuardsConfig, figures: Figures) -> str | None:
    """What the first guard to fire says, in the order kl, displacement, margin; None where none does.

    A figure that the step does not have fires nothing: without a reference there is neither KL nor displacement.
    """
    checks = (
        ("kl", guards.kl, figures.get("kl"), "KL to the reference is {:.3g} nats a completion"),
        ("displacement", guards.displacement, _displacement(figures),
         "chosen completions are {:.3g} nats less likely than under the reference"),
        ("margin", guards.margin, _margin(figures), "the mean reward margin is {:.3g}"),
    )  # fmt: skip
    for name, limit, value, what in checks:
        if limit is not None and value is not None and value > limit:
            return f"{what.format(value)}; trainer.guards.{name} allows {limit:g}"
    return None


def _displacement(figures: Figures) -> float | None:
    """How far chosen, or desirable, completions fell below the reference's log-probability (likelihood displacement,
    Razin et al. 2024, arXiv:2410.08847)."""
    for kind in ("chosen", "desirable"):
        if "kl" in figures and f"logps/{kind}" in figures:
            return figures[f"reference_logps/{kind}"] - figures[f"logps/{kind}"]
    return None


def _margin(figures: Figures) -> float | None:
    """Of pairs, else between the desirable and the undesirable completions of a batch that has both."""
    if "rewards/margins" in figures:
        return figures["rewards/margins"]
    singles = [figures.get(f"rewards/{kind}") for kind in ("desirable", "undesirable")]
    return None if singles[0] is None or singles[1] is None else singles[0] - singles[1]
