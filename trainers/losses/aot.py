"""Alignment via optimal transport: distributions are compared, not pairs. Only the sum over the batch means anything:
a value belongs to a quantile, and not to the pair in its place.
"""

import torch
from torch import Tensor

from trainers.losses.rewards import Beta, rewards
from trainers.losses.sigmoid import logistic


def aot_paired(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The policy's log-ratios of chosen to rejected should dominate the reference's: both sorted, compared by rank.

    −log σ(β (u₍ᵢ₎ − v₍ᵢ₎)), u = log π(y_w) − log π(y_l), v the same of π_ref; [pairs], ascending. Melnyk et al.
    2024, arXiv:2406.05882, paired. With one β a pair, β u and β v are sorted.
    """
    ours = beta * (policy_chosen_logps - policy_rejected_logps)
    theirs = beta * (reference_chosen_logps - reference_rejected_logps)
    return logistic(ours.sort().values - theirs.sort().values, 1 - label_smoothing)


def aot_unpaired(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The chosen completions' rewards should dominate the rejected ones': both sorted, compared by rank.

    −log σ(r_w₍ᵢ₎ − r_l₍ᵢ₎), r the implicit rewards; [pairs], ascending. The same paper, unpaired.
    """
    chosen, rejected = rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return logistic(chosen.sort().values - rejected.sort().values, 1 - label_smoothing)


def aot_quantiles(desirable: Tensor, undesirable: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """:func:`aot_unpaired` for any numbers of ``desirable`` and ``undesirable`` rewards, [a] and [b]: one scalar.

    ∫₀¹ −log σ(F⁻¹(t) − G⁻¹(t)) dt, F and G the two empirical distributions: exact, since both quantile functions are
    steps. The mean of the other form where a = b. 0 where either is empty: there is nothing to dominate.
    """
    first, second = len(desirable), len(undesirable)
    if not first or not second:
        return (desirable.sum() + undesirable.sum()) * 0
    # Steps end at multiples of b among a·b units of probability, and at multiples of a: integers, so none is lost.
    device = desirable.device
    ends = torch.cat([torch.arange(first, device=device) * second, torch.arange(second, device=device) * first])
    starts = ends.unique()  # ascending
    widths = torch.diff(starts, append=starts.new_tensor([first * second])).to(desirable.dtype) / (first * second)
    gaps = desirable.sort().values[starts // second] - undesirable.sort().values[starts // first]
    return (widths * logistic(gaps, 1 - label_smoothing)).sum()
