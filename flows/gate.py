"""The gate: a policy is promoted only on evidence. Pure: an evaluation in, a decision out."""

from collections.abc import Mapping
from typing import Any

from pipeline.conditions import holds, metric_of, written
from pipeline.config import GateConfig
from pipeline.types import GateCheck, GateDecision


def decide(config: GateConfig, evaluation: Mapping[str, Any]) -> GateDecision:
    """Promote where every condition holds; else ``config.on_failure``. A figure not known fails its condition."""
    checks = tuple(_check(condition, evaluation) for condition in config.require)
    failed = [check for check in checks if not check.passed]
    if not failed:
        return GateDecision("promote", "every condition of the gate holds", checks)
    said = "; ".join(f"{check.condition} does not hold ({written(check.value)})" for check in failed)
    return GateDecision(config.on_failure, said, checks)


def nothing_to_learn(pairs: Mapping[str, Any]) -> GateDecision:
    """Stop: the judge sees no difference that pairing lets through, and more of the same rounds would not either; or
    all there are are held out. ``pairs`` is the manifest of the round's."""
    if pairs["rows"]:
        return GateDecision("stop", f"evaluation.pairs holds out the round's pairs, all {pairs['rows']} of them")
    dropped = pairs["dropped"]
    said = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
    return GateDecision("stop", f"pairing kept none of {sum(dropped.values())} groups ({said})")


def _check(condition: str, evaluation: Mapping[str, Any]) -> GateCheck:
    metric = metric_of(condition)
    probe = metric.removeprefix("probes.")
    value = evaluation["probes"][probe] if metric != probe else evaluation[metric]
    return GateCheck(condition, value, holds(condition, value))
