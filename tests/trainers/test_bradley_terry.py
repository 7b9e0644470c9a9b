"""Losses worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.bradley_terry import bradley_terry
from trainers.reward_figures import Judged, figures


def loss(chosen: float, rejected: float, margin: float = 0.0, preference: float = 1.0, **weights: float) -> float:
    tensors = (torch.tensor([each], dtype=torch.float64) for each in (chosen, rejected, margin, preference))
    return bradley_terry(*tensors, **weights).item()


def test_equal_rewards_cost_one_bit() -> None:
    assert loss(3.0, 3.0) == pytest.approx(math.log(2))


def test_loss_with_margin_as_llama_2_writes_it() -> None:
    """r_c − r_r = 1, m · margin = 0.5 · 3: −log σ(−0.5) = log(1 + e^0.5)."""
    assert loss(2.0, 1.0, margin=3.0, margin_weight=0.5) == pytest.approx(0.974076984180107)


def test_centring_adds_the_square_of_the_sum() -> None:
    """log(1 + e⁻¹) + 0.01 · (2 + 1)²."""
    assert loss(2.0, 1.0, centring=0.01) == pytest.approx(0.313261687518223 + 0.09)


def test_a_soft_label_mixes_both_directions() -> None:
    """0.8 log(1 + e⁻¹) + 0.2 log(1 + e)."""
    assert loss(2.0, 1.0, preference=0.8) == pytest.approx(0.8 * 0.313261687518223 + 0.2 * 1.313261687518223)


def test_gradient_is_that_of_the_formula() -> None:
    """d/dr_c = −σ(−d) + 2 λ (r_c + r_r), d/dr_r = σ(−d) + 2 λ (r_c + r_r), with d = 1 − 0.5 · 3."""
    chosen, rejected = (torch.tensor([each], dtype=torch.float64, requires_grad=True) for each in (2.0, 1.0))
    one = torch.ones(1, dtype=torch.float64)
    bradley_terry(chosen, rejected, 3 * one, one, margin_weight=0.5, centring=0.01).sum().backward()
    away = 1 / (1 + math.exp(-0.5))
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-away + 0.06)
    assert rejected.grad.item() == pytest.approx(away + 0.06)


@given(st.floats(-300, 300), st.floats(0.5, 1.0))
def test_figures_say_the_same_loss(apart: float, preference: float) -> None:
    found = figures([Judged(apart, preference, 0)])
    assert found["loss"] == pytest.approx(loss(apart, 0.0, preference=preference), rel=1e-9, abs=1e-12)
