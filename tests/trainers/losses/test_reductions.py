"""What the golden values lack: losses that are DPO at neutral parameters, and what each adds to it."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainers.losses.aot import aot_quantiles
from trainers.losses.bco import running_mean
from trainers.losses.beta_dpo import SMALLEST_SCALE, batch_scale, beta_dpo, choose, moving_figures
from trainers.losses.divergence import alpha_divergence, forward_kl
from trainers.losses.kto import reference_point
from trainers.losses.length import ld_dpo
from trainers.losses.nll import nll
from trainers.losses.odds import odds
from trainers.losses.sigmoid import dpo_positive, logistic, modpo, odpo, r_dpo, robust, sigmoid
from trainers.losses.sppo import sppo
from trainers.losses.tdpo import tdpo1, tdpo2
from trainers.losses.wpo import wpo

logp = st.floats(-500.0, 0.0)
margin = st.floats(1e-3, 1e3)
beta = st.floats(0.01, 2.0)
pairs = st.lists(st.tuples(logp, logp, logp, logp), min_size=1, max_size=4).map(
    lambda rows: tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
)
Pairs = tuple[Tensor, Tensor, Tensor, Tensor]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@given(pairs, beta)
def test_every_relative_of_dpo_is_dpo_at_neutral_parameters(pair: Pairs, b: float) -> None:
    dpo = sigmoid(*pair, b)
    zeros, ones = torch.zeros_like(dpo), torch.ones_like(dpo)
    extra = -7 * ones, -3 * ones
    assert_same(sigmoid(*pair, b, 0.0, ones), dpo)
    assert_same(robust(*pair, b, 0.0), dpo)
    assert_same(odpo(*pair, ones, b), dpo)  # log 1 = 0
    assert_same(odpo(*pair, zeros, b, 1.0, "identity"), dpo)
    assert_same(odpo(*pair, 5 * ones, b, 0.0), dpo)
    assert_same(r_dpo(*pair, 9 * ones, 4 * ones, b, 0.0), dpo)
    assert_same(r_dpo(*pair, 9 * ones, 9 * ones, b, 0.3), dpo)
    assert_same(dpo_positive(*pair, b, 0.0), dpo)
    assert_same(modpo(*pair, 5 * ones, b, 1.0), dpo)
    assert_same(ld_dpo(*pair, *extra, *extra[::-1], b, 1.0), dpo)
    assert_same(ld_dpo(*pair, *pair, b, 0.3), dpo)  # equal lengths: all is public
    assert_same(wpo(*pair, zeros, zeros, b), dpo)
    assert_same(tdpo1(*pair, zeros, zeros, b), dpo)
    assert_same(tdpo2(*pair, ones, 9 * ones, b, 0.0), dpo)
    assert_same(beta_dpo(*pair, b, ones.bool(), tensor(1.0)), dpo)


@given(st.tuples(*[st.floats(-20.0, 0.0)] * 4), beta)
def test_alpha_divergence_lies_between_dpo_and_the_forward_kl(row: tuple[float, ...], b: float) -> None:
    pair = tensor(row[0]), tensor(row[1]), tensor(row[2]), tensor(row[3])
    torch.testing.assert_close(alpha_divergence(*pair, b, 1e-9), sigmoid(*pair, b), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alpha_divergence(*pair, b, 1.0), forward_kl(*pair, b), rtol=1e-12, atol=0.0)
    chosen, rejected = (((pair[k] - pair[k + 2]).exp() ** -0.5 - 1) / -0.5 for k in range(2))  # (1 − u^−α) / α
    torch.testing.assert_close(
        alpha_divergence(*pair, b, 0.5), logistic(b * (chosen - rejected)), rtol=1e-9, atol=1e-12
    )


def test_forward_kl_goes_on_as_its_tangent_where_its_exponential_would_overflow() -> None:
    def loss(ratio: float) -> tuple[float, float]:
        chosen = tensor(ratio).requires_grad_()
        value = forward_kl(chosen, tensor(0.0), tensor(0.0), tensor(0.0), 0.1)
        value.backward()
        assert chosen.grad is not None
        return value.item(), chosen.grad.item()

    at, slope = loss(-20.0)
    assert slope == pytest.approx(-0.1 * math.exp(20), rel=1e-9)
    assert loss(-1000.0) == pytest.approx((at - 980 * slope, slope), rel=1e-9)


@given(pairs, beta, margin, margin)
def test_odpo_asks_for_more_where_the_judge_saw_more(pair: Pairs, b: float, first: float, second: float) -> None:
    ones = torch.ones_like(pair[0])
    small, large = min(first, second), max(first, second)
    for scaling in ("log", "identity"):
        assert (odpo(*pair, small * ones, b, 1.0, scaling) <= odpo(*pair, large * ones, b, 1.0, scaling)).all()


def test_odpo_is_the_paper_equation_and_a_pair_the_judge_found_equal_costs_nothing() -> None:
    pair = tensor(-3.0), tensor(-4.0), tensor(-3.5), tensor(-3.0)
    value = odpo(*pair, tensor(2.5), 0.2, 0.7)
    assert value.item() == pytest.approx(math.log1p(math.exp(-(0.2 * 1.5 - 0.7 * math.log(2.5)))), rel=1e-12)
    assert odpo(*pair, tensor(0.0), 0.2).item() < 1e-300


@given(pairs, beta)
def test_r_dpo_excuses_the_longer_chosen_completion(pair: Pairs, b: float) -> None:
    long, short = torch.full_like(pair[0], 30), torch.full_like(pair[0], 10)
    assert (r_dpo(*pair, long, short, b, 0.1) <= sigmoid(*pair, b)).all()
    assert (r_dpo(*pair, short, long, b, 0.1) >= sigmoid(*pair, b)).all()
    assert_same(
        r_dpo(*pair, long, short, b, 0.1), sigmoid(pair[0] + 2 / b, *pair[1:], b)
    )  # 20 tokens at 0.1 are a reward of 2


@given(pairs, beta)
def test_dpo_positive_is_dpo_until_chosen_loses_probability(pair: Pairs, b: float) -> None:
    up, down = pair[2].clone() + 1, pair[2].clone() - 1
    assert_same(dpo_positive(up, *pair[1:], b, 50.0), sigmoid(up, *pair[1:], b))
    assert_same(dpo_positive(down, *pair[1:], b, 50.0), sigmoid(down - 50, *pair[1:], b))


@given(beta, st.floats(0.05, 1.0), st.floats(-5.0, 5.0), st.floats(-5.0, 5.0))
def test_modpo_is_least_at_the_weighted_sum_of_the_objectives(
    b: float, share: float, mine: float, other: float
) -> None:
    """Labels drawn from the own objective, and the other's margin given: the margin learnt is w r + (1 − w) r'."""
    learnt = (share * mine + (1 - share) * other) / b
    chosen = tensor(learnt).requires_grad_()
    zero = tensor(0.0)
    probability = torch.sigmoid(tensor(mine))
    won = modpo(chosen, zero, zero, zero, tensor(other), b, share)
    lost = modpo(zero, chosen, zero, zero, tensor(-other), b, share)
    (gradient,) = torch.autograd.grad((probability * won + (1 - probability) * lost).sum(), chosen)
    assert abs(gradient.item()) < 1e-12


@given(pairs, beta, st.floats(0.0, 0.49))
def test_smoothing_and_soft_labels_weigh_the_two_labels(pair: Pairs, b: float, rate: float) -> None:
    swapped = pair[1], pair[0], pair[3], pair[2]
    mixed = (1 - rate) * sigmoid(*pair, b) + rate * sigmoid(*swapped, b)
    assert_same(sigmoid(*pair, b, rate), mixed)
    assert_same(sigmoid(*pair, b, 0.0, torch.full_like(pair[0], 1 - rate)), mixed)
    unbiased = (1 - rate) * robust(*pair, b, rate) + rate * robust(*swapped, b, rate)
    torch.testing.assert_close(unbiased, sigmoid(*pair, b), rtol=1e-6, atol=1e-8)


@given(pairs, beta)
def test_sppo_without_soft_labels_is_sure_of_the_winner(pair: Pairs, b: float) -> None:
    ones = torch.ones_like(pair[0])
    assert_same(sppo(*pair, b), sppo(*pair, b, ones, 0 * ones))


def test_ld_dpo_without_alpha_sees_the_public_length_alone() -> None:
    public = tensor(-2.0), tensor(-1.0), tensor(-2.5), tensor(-1.2)
    losses = [
        ld_dpo(tensor(-2.0), tensor(tail), tensor(-2.5), tensor(-9.0), *public, 0.1, 0.0).item() for tail in (-3.0, -90)
    ]
    assert losses[0] == losses[1] == sigmoid(*public, 0.1).item()


def test_wpo_weighs_without_a_gradient_of_its_own() -> None:
    alignment = tensor(-0.7).requires_grad_()
    chosen = tensor(-3.0).requires_grad_()
    args = chosen, tensor(-4.0), tensor(-3.5), tensor(-3.0)
    loss = wpo(*args, alignment, tensor(-0.2), 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(-0.9) * sigmoid(*args, 0.2).item(), rel=1e-12)
    assert alignment.grad is None


def test_tdpo_rewards_the_smaller_divergence_and_its_second_form_holds_that_of_chosen() -> None:
    pair = tensor(-3.0), tensor(-4.0), tensor(-3.5), tensor(-3.0)
    chosen, rejected = tensor(2.0).requires_grad_(), tensor(3.0).requires_grad_()
    first, second = tdpo1(*pair, chosen, rejected, 0.2), tdpo2(*pair, chosen, rejected, 0.2, 0.5)
    assert first.item() == pytest.approx(math.log1p(math.exp(-0.2 * (1.5 - 1.0))), rel=1e-12)
    assert second.item() == pytest.approx(math.log1p(math.exp(-0.2 * (1.5 - 0.5))), rel=1e-12)
    by_chosen, by_rejected = torch.autograd.grad(first, [chosen, rejected])
    assert by_chosen.item() == -by_rejected.item() < 0
    assert torch.autograd.grad(second, [chosen, rejected], allow_unused=True)[0] is None


# ---------------------------------------------------------------------------------------------- β-DPO
def test_beta_dpo_pulls_harder_on_easy_batches_and_never_lets_go() -> None:
    assert batch_scale(tensor(1.0, 3.0), center=1.5, alpha=0.6).item() == pytest.approx(1.3)
    assert batch_scale(tensor(-1e9), center=0.0, alpha=0.6).item() == SMALLEST_SCALE


def test_beta_dpo_averages_over_the_pairs_it_kept() -> None:
    pair = tensor(-1.0, -2.0, -3.0), tensor(-2.0, -2.0, -9.0), tensor(0.0, 0.0, 0.0), tensor(0.0, 0.0, 0.0)
    kept = torch.tensor([True, True, False])
    losses = beta_dpo(*pair, 0.5, kept, tensor(2.0))
    assert losses[2] == 0
    assert losses.mean().item() == pytest.approx(sigmoid(*pair, 1.0)[:2].mean().item(), rel=1e-12)


@given(st.integers(1, 30), st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_beta_dpo_keeps_the_share_asked_for_and_the_same_for_the_same_seed(n: int, keep: float, seed: int) -> None:
    discrepancies = torch.linspace(-3, 3, n, dtype=torch.float64)
    kept = choose(discrepancies, 0.0, 1.0, keep, seed)
    assert int(kept.sum()) == max(1, int(keep * n))
    assert torch.equal(kept, choose(discrepancies, 0.0, 1.0, keep, seed))


def test_beta_dpo_draws_pairs_by_the_normal_density_of_their_discrepancy() -> None:
    discrepancies = tensor(1.0, 4.0, 90.0)
    counts = sum(choose(discrepancies, 1.0, 2.0, 0.34, seed).double() for seed in range(4000))
    assert isinstance(counts, Tensor)
    share = 1 / (1 + math.exp(-1.125))  # densities at 0, 1.5 and 44.5 deviations
    torch.testing.assert_close(counts / 4000, tensor(share, 1 - share, 0.0), rtol=0.0, atol=0.03)


def test_moving_figures_are_exponential_averages_from_zero() -> None:
    center, spread = 0.0, 0.0
    for values in (tensor(1.0, 3.0), tensor(4.0, 8.0)):
        center, spread = moving_figures(center, spread, values, 0.9)
    assert center == pytest.approx(0.9 * 0.1 * 2 + 0.1 * 6)
    assert spread == pytest.approx(0.9 * 0.1 * math.sqrt(2) + 0.1 * math.sqrt(8))
    assert moving_figures(0.0, 0.0, tensor(2.0), 0.0) == (2.0, 0.0)
    assert moving_figures(0.4, 0.3, tensor(), 0.9) == (0.4, 0.3)


# ---------------------------------------------------------------------------------------------- the rest
@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=5), max_size=4))
def test_bco_delta_is_the_mean_of_all_rewards_so_far(batches: list[list[float]]) -> None:
    mean, count = 0.0, 0.0
    for batch in batches:
        mean, count = running_mean(mean, count, tensor(*batch))
    every = [value for batch in batches for value in batch]
    assert count == len(every)
    assert mean == pytest.approx(sum(every) / max(1, len(every)), rel=1e-9, abs=1e-6)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=7), st.lists(st.floats(-20, 20), min_size=1, max_size=7))
def test_aot_of_unequal_numbers_is_that_of_their_repetitions(good: list[float], bad: list[float]) -> None:
    repeated = zip(sorted(good * len(bad)), sorted(bad * len(good)), strict=True)
    mean = logistic(tensor(*(high - low for high, low in repeated)), 0.9).mean()
    assert_same(aot_quantiles(tensor(*good), tensor(*bad), 0.1), mean)


def test_aot_of_one_side_alone_is_nothing() -> None:
    assert aot_quantiles(tensor(1.0), tensor()).item() == 0
    assert aot_quantiles(tensor(), tensor(1.0)).item() == 0


def test_kto_reference_point_is_never_negative_nor_differentiated() -> None:
    policy = tensor(-3.0, -9.0).requires_grad_()
    point = reference_point(policy, tensor(-6.0, -7.0))
    assert point.item() == 0.5
    assert not point.requires_grad
    assert reference_point(policy, tensor(0.0, 0.0)).item() == 0
    assert reference_point(tensor(), tensor()).item() == 0


@given(st.floats(-30.0, -1e-6), st.floats(-30.0, -1e-6), st.integers(1, 50), st.integers(1, 50))
def test_odds_are_the_ratio_of_probabilities_a_token(chosen: float, rejected: float, long: int, short: int) -> None:
    loss = odds(tensor(chosen * long), tensor(rejected * short), tensor(long), tensor(short)).item()
    ratio = math.exp(chosen - rejected) * math.expm1(rejected) / math.expm1(chosen)
    assert loss == pytest.approx(math.log1p(1 / ratio), rel=1e-6, abs=1e-12)


def test_nll_is_the_mean_over_the_chosen_completions_own_tokens() -> None:
    logps = tensor(-6.0, -6.0).requires_grad_()
    loss = nll(logps, torch.tensor([2, 12]))
    assert loss.tolist() == [3.0, 0.5]
    loss.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [-1 / 2, -1 / 12]


@given(st.floats(-1e300, 0.0), st.floats(-1e300, 0.0), st.floats(1e-3, 10.0))
def test_dpo_is_ln_2_where_policy_equals_reference(chosen: float, rejected: float, b: float) -> None:
    assert sigmoid(tensor(chosen), tensor(rejected), tensor(chosen), tensor(rejected), b).item() == math.log(2)


def test_public_and_whole_sums_may_be_of_different_lengths() -> None:
    for alpha, first in product((0.0, 0.5, 1.0), (-1.0, -2.0)):
        value = ld_dpo(
            tensor(-4.0), tensor(-3.0), tensor(-5.0), tensor(-3.5), tensor(first), tensor(-3.0), tensor(-1.5),
            tensor(-3.5), 1.0, alpha,
        )  # fmt: skip
        chosen = first + alpha * (-4 - first) - (-1.5 + alpha * (-5 + 1.5))
        assert value.item() == pytest.approx(math.log1p(math.exp(-(chosen - 0.5))), rel=1e-12)
