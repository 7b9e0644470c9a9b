"""Conditions such as ``kl <= 10`` on named figures: what a gate asks of a policy, and a health check of a judge."""

import operator

from pipeline.config import CONDITION

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def metric_of(condition: str) -> str:
    """The figure that ``condition``, validated with the config, is about."""
    match = CONDITION.fullmatch(condition)
    assert match is not None, "validated with the config"
    return match["metric"]


def holds(condition: str, value: float | None) -> bool:
    """Whether ``value`` meets ``condition``. A figure not known (None) fails every condition."""
    match = CONDITION.fullmatch(condition)
    assert match is not None, "validated with the config"
    return value is not None and bool(OPERATORS[match["operator"]](value, float(match["limit"])))


def written(value: float | None) -> str:
    """A figure in a sentence; there is none where nothing was measured."""
    return "not known" if value is None else f"{value:.4g}"
