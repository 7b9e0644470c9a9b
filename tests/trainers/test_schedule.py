import math
from typing import Literal

import pytest

from trainers.schedule import warmup_then

Kind = Literal["constant", "linear", "cosine"]


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]),
    ],
)
def test_the_rate_rises_in_two_steps_and_then_follows_its_kind(kind: Kind, rates: list[float]) -> None:
    assert [warmup_then(step, 6, 2, kind) for step in range(6)] == pytest.approx(rates, abs=1e-15)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_every_step_learns_however_few_there_are(kind: Kind) -> None:
    for steps in (1, 2, 3, 100):
        for warmup in range(steps + 1):
            rates = [warmup_then(step, steps, warmup, kind) for step in range(steps)]
            assert all(0 < rate <= 1 for rate in rates)
            assert max(rates) == 1
