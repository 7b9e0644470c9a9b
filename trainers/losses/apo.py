"""Anchored preference optimisation: says which way each completion's probability should go, not only the difference."""

import torch
from torch import Tensor

from trainers.losses.rewards import Beta, rewards


def apo_zero(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
) -> Tensor:
    """−σ(r_w) + σ(r_l) + 1: chosen up, rejected down; for chosen completions better than the policy's own.

    D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7, and a constant that makes it ≥ 0.
    """
    chosen, rejected = rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
) -> Tensor:
    """σ(r_w) − σ(r_w − r_l) + 1: both down, rejected more; for chosen completions worse than the policy's own.

    The same paper, equation 8, and a constant.
    """
    chosen, rejected = rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)
