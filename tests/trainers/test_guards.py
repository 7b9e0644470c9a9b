"""When a training ends early, and what it says."""

from collections.abc import Mapping

import pytest

from pipeline.config import GuardsConfig
from trainers.guards import reason_to_stop

PAIRS = {"kl": 3.0, "logps/chosen": -25.0, "reference_logps/chosen": -20.0, "rewards/margins": 2.0}
SINGLES = {
    "kl": 3.0, "logps/desirable": -25.0, "reference_logps/desirable": -20.0, "rewards/desirable": 1.5,
    "rewards/undesirable": -0.5,
}  # fmt: skip


@pytest.mark.parametrize("figures", [PAIRS, SINGLES])
@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"kl": 2.9}, "KL to the reference is 3 nats a completion; trainer.guards.kl allows 2.9"),
        ({"displacement": 4.5}, "chosen completions are 5 nats less likely than under the reference;"
                                " trainer.guards.displacement allows 4.5"),
        ({"margin": 1.5}, "the mean reward margin is 2; trainer.guards.margin allows 1.5"),
        ({"kl": 3.0, "displacement": 5.0, "margin": 2.0}, None),
        ({"kl": None}, None),
    ],
)  # fmt: skip
def test_a_guard_fires_beyond_its_limit_and_says_which(
    figures: Mapping[str, float], limits: dict[str, float], reason: str | None
) -> None:
    assert reason_to_stop(GuardsConfig(**limits), figures) == reason


def test_by_default_nothing_ends_a_training() -> None:
    wild = {**PAIRS, "logps/chosen": -1e6, "rewards/margins": 1e6, "kl": 1e6}
    assert reason_to_stop(GuardsConfig(), wild) is None
    assert "10.1 nats" in str(reason_to_stop(GuardsConfig(kl=10.0), {**PAIRS, "kl": 10.1}))


def test_without_a_reference_nothing_is_displaced_and_no_kl_is_known() -> None:
    """Its log-probabilities stand as zeros in the figures then."""
    figures = {"logps/chosen": -25.0, "reference_logps/chosen": 0.0, "rewards/margins": 1.0}
    assert reason_to_stop(GuardsConfig(kl=0.1, displacement=0.1), figures) is None


def test_one_kind_of_labelled_completion_has_no_margin() -> None:
    assert reason_to_stop(GuardsConfig(margin=0.1), {"rewards/desirable": 5.0}) is None
