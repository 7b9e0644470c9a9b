"""What holds of all losses: finite wherever the inputs are, gradients that are the derivative, and the right way."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import trainers
from tests.trainers.losses.catalogue import FALLING, PAIRWISE, Inputs

HELPERS = {"logistic", "rewards", "reward_margins", "reference_point", "running_mean", "batch_scale", "choose",
           "moving_figures", "kto", "bco"}  # fmt: skip
"""No losses of pairs: parts of them, and the two of single completions, which those of pairs call."""

MOST = 2.0**40  # 1e12
anything = st.floats(-MOST, MOST, width=32)
sixfold = st.tuples(*[anything] * 6)
BIG = (1e4, -1e4, 1e6, -1e6, 1e12, -1e12)


def inputs(rows: list[tuple[float, ...]], margin: float, dtype: torch.dtype) -> Inputs:
    columns = [torch.tensor(column, dtype=dtype) for column in zip(*rows, strict=True)]
    for policy in columns[:2]:
        policy.requires_grad_()
    count = len(rows)
    lengths = torch.arange(1, count + 1), torch.full((count,), 7)
    chosen, rejected, reference_chosen, reference_rejected, *extras = columns
    margins = torch.full((count,), abs(margin), dtype=dtype)
    return Inputs(chosen, rejected, reference_chosen, reference_rejected, *lengths, extras[0], extras[1], margins)


def moderate(seed: int, count: int = 5) -> Inputs:
    rows = -8 * torch.rand(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return inputs([tuple(row) for row in rows.tolist()], 1.7, torch.float64)


def test_every_loss_of_pairs_is_in_the_catalogue() -> None:
    folder = Path(trainers.__path__[0]) / "losses"
    functions = {
        node.name
        for file in folder.glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert functions - HELPERS == {name.partition(",")[0] for name in PAIRWISE}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", PAIRWISE)
@settings(max_examples=30)
@given(rows=st.lists(sixfold, min_size=1, max_size=4), margin=anything)
@example(rows=[(0.0,) * 6], margin=0.0)
@example(rows=[(a, b, 0.0, 0.0, 0.0, 0.0) for a in BIG for b in BIG], margin=0.0)
@example(rows=[(0.0, 0.0, a, b, 0.0, 0.0) for a in BIG for b in BIG], margin=1e12)
@example(rows=[(0.0, 0.0, 0.0, 0.0, a, b) for a in BIG for b in BIG], margin=1e-30)
@example(rows=[(-1e-30, -1e-30, 0.0, 0.0, 0.0, 0.0), (-1e12, -1e-30, 0.0, 0.0, 0.0, 0.0)], margin=1.0)
def test_value_and_gradient_are_finite_for_any_finite_input(
    name: str, dtype: torch.dtype, rows: list[tuple[float, ...]], margin: float
) -> None:
    given_inputs = inputs(rows, margin, dtype)
    losses = PAIRWISE[name](given_inputs)
    assert losses.shape == (len(rows),)
    assert losses.dtype == dtype
    assert losses.isfinite().all()
    gradients = torch.autograd.grad(losses.sum(), given_inputs.policies, allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", sorted(PAIRWISE.keys() - {"beta_dpo"}))
@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_the_derivative(name: str, seed: int) -> None:
    fixed = moderate(seed)
    if name == "kto_pairs":  # z₀ is held constant, which no difference quotient knows; here it stays at its least, 0
        fixed = replace(fixed, reference_chosen=fixed.reference_chosen + 20)

    def losses(chosen: Tensor, rejected: Tensor) -> Tensor:
        return PAIRWISE[name](replace(fixed, chosen=chosen, rejected=rejected))

    assert torch.autograd.gradcheck(losses, fixed.policies)


@pytest.mark.parametrize("name", sorted(FALLING))
@settings(max_examples=40)
@given(row=st.tuples(*[st.floats(-300.0, 0.0)] * 6))
def test_loss_never_rises_with_chosen_nor_falls_with_rejected(name: str, row: tuple[float, ...]) -> None:
    given_inputs = inputs([row], 1.7, torch.float64)
    losses = PAIRWISE[name](given_inputs)
    by_chosen, by_rejected = torch.autograd.grad(losses.sum(), given_inputs.policies, allow_unused=True)
    assert by_chosen.item() <= 0
    assert by_rejected is None or by_rejected.item() >= 0


NO_REFERENCE = {"simpo", "odds", "cpo", "nll"}


@pytest.mark.parametrize("name", sorted(PAIRWISE.keys() - NO_REFERENCE - {"aot_paired"}))
@settings(max_examples=10)
@given(shift=st.floats(-50.0, 50.0))
def test_only_the_log_ratio_to_the_reference_matters(name: str, shift: float) -> None:
    before = moderate(0)
    after = replace(
        before,
        chosen=before.chosen + shift, reference_chosen=before.reference_chosen + shift,
        rejected=before.rejected - shift, reference_rejected=before.reference_rejected - shift,
    )  # fmt: skip
    torch.testing.assert_close(PAIRWISE[name](after), PAIRWISE[name](before), rtol=1e-9, atol=1e-12)


def test_aot_of_paired_margins_sees_no_shift_of_both_completions() -> None:
    before = moderate(0)
    after = replace(before, chosen=before.chosen + 3.0, rejected=before.rejected + 3.0)
    torch.testing.assert_close(PAIRWISE["aot_paired"](after), PAIRWISE["aot_paired"](before))


@pytest.mark.parametrize("name", PAIRWISE)
def test_beta_may_be_one_a_pair(name: str) -> None:
    one = replace(moderate(1), beta=0.2)
    many = replace(one, beta=torch.full((5,), 0.2, dtype=torch.float64))
    torch.testing.assert_close(PAIRWISE[name](many), PAIRWISE[name](one))
