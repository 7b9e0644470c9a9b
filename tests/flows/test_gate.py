from typing import Any, Literal

import pytest

from flows.gate import decide
from pipeline.config import GateConfig

FIGURES: dict[str, Any] = {
    "win_rate": 0.61, "win_rate_low": 0.55, "kl": 3.0, "length_ratio": 1.3, "probes": {"ravin_pizza": 0.97},
}  # fmt: skip


def gate(*require: str, on_failure: Literal["stop", "rollback"] = "stop") -> GateConfig:
    return GateConfig(require=require, on_failure=on_failure)


def test_all_conditions_hold_and_the_policy_is_promoted() -> None:
    decision = decide(gate("win_rate_low >= 0.5", "kl <= 10", "probes.ravin_pizza > 0.9"), FIGURES)
    assert decision.decision == "promote"
    assert [(check.value, check.passed) for check in decision.checks] == [(0.55, True), (3.0, True), (0.97, True)]


@pytest.mark.parametrize("on_failure", ["stop", "rollback"])
def test_one_failed_condition_is_enough_and_the_reason_names_it_alone(on_failure: Literal["stop", "rollback"]) -> None:
    decision = decide(gate("win_rate >= 0.5", "kl < 3", "length_ratio<1.25", on_failure=on_failure), FIGURES)
    assert decision.decision == on_failure
    assert decision.reason == "kl < 3 does not hold (3); length_ratio<1.25 does not hold (1.3)"
    assert [check.passed for check in decision.checks] == [True, False, False]


@pytest.mark.parametrize(
    ("operator", "below", "equal", "above"),
    [(">=", False, True, True), ("<=", True, True, False), (">", False, False, True), ("<", True, False, False)],
)
def test_the_four_operators(operator: str, below: bool, equal: bool, above: bool) -> None:
    decided = [
        decide(gate(f"kl {operator} 1e-2"), {"kl": kl, "probes": {}}).decision == "promote" for kl in (0.0, 0.01, 0.02)
    ]
    assert decided == [below, equal, above]


@pytest.mark.parametrize("condition", ["win_rate >= 0", "win_rate <= 1", "probes.words > -1", "probes.words < 1"])
@pytest.mark.parametrize("value", [None, float("nan")])
def test_what_is_not_known_passes_no_condition(condition: str, value: float | None) -> None:
    decision = decide(gate(condition), {"win_rate": value, "probes": {"words": value}})
    assert decision.decision == "stop"
    written = "not known" if value is None else "nan"
    assert decision.reason == f"{condition} does not hold ({written})"


def test_a_gate_without_conditions_promotes() -> None:
    assert decide(gate(), FIGURES).decision == "promote"
