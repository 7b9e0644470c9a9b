"""Efficient exact optimisation: the reverse KL, where DPO minimises the forward one."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.losses.rewards import Beta, reward_margins


def exo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    label_smoothing: float,
) -> Tensor:
    """KL(p ‖ [1 − ε, ε]), p = [σ(m), σ(−m)], m the reward margin: EXO-pref.

    Ji et al. 2024, arXiv:2402.00856, equation 16. ``label_smoothing`` ε in (0, 0.5) must not be 0, where it is
    infinite. The authors' code takes the target as [1, e⁻¹⁰], which does not sum to 1.
    """
    margins = reward_margins(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    chosen = torch.sigmoid(margins) * (F.logsigmoid(margins) - math.log1p(-label_smoothing))
    rejected = torch.sigmoid(-margins) * (F.logsigmoid(-margins) - math.log(label_smoothing))
    return chosen + rejected
