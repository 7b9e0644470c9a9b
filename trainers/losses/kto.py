"""Kahneman-Tversky optimisation: each completion is good or bad by itself."""

import torch
from torch import Tensor

from trainers.losses.rewards import Beta


def reference_point(policy_mismatched_logps: Tensor, reference_mismatched_logps: Tensor) -> Tensor:
    """z₀ = max(0, mean of log π(y') − log π_ref(y')), a scalar without gradient; y' are completions of other prompts.

    The paper's estimate of KL(π ‖ π_ref). Without any such completion 0.
    """
    if policy_mismatched_logps.numel() == 0:
        return policy_mismatched_logps.new_zeros(())
    return (policy_mismatched_logps - reference_mismatched_logps).mean().clamp(min=0).detach()


def kto(
    policy_logps: Tensor,
    reference_logps: Tensor,
    desirable: Tensor,
    point: Tensor,
    beta: Beta,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """λ_D (1 − σ(β (r − z₀))) where desirable, λ_U (1 − σ(β (z₀ − r))) where not; r the log-ratio. [completions].

    Ethayarajh et al. 2024, arXiv:2402.01306. ``desirable`` is bool, [completions]; ``point`` is z₀, from
    :func:`reference_point`, in nats.
    """
    values = beta * (policy_logps - reference_logps - point)
    return torch.where(desirable, desirable_weight * torch.sigmoid(-values), undesirable_weight * torch.sigmoid(values))


def kto_pairs(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    point: Tensor,
    beta: Beta,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """The mean of :func:`kto` of chosen, as desirable, and of rejected, as undesirable. [pairs]."""
    desirable = torch.ones_like(policy_chosen_logps, dtype=torch.bool)
    weights = (desirable_weight, undesirable_weight)
    chosen = kto(policy_chosen_logps, reference_chosen_logps, desirable, point, beta, *weights)
    rejected = kto(policy_rejected_logps, reference_rejected_logps, ~desirable, point, beta, *weights)
    return (chosen + rejected) / 2
