"""The log-ratio modulated loss that a language model discovered."""

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.losses.rewards import Beta, reward_margins


def discopop(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    tau: float = 0.05,
) -> Tensor:
    """(1 − σ(m/τ)) · −log σ(m) + σ(m/τ) · e^{−m}, m the reward margin, 0 < τ ≤ 1.

    DiscoPOP, Lu et al. 2024, arXiv:2406.08414, equation 5. The second part is taken as e^{−m + log σ(m/τ)}, whose
    exponent is never positive for τ ≤ 1; as written it is 0 · ∞ at very negative margins.
    """
    margins = reward_margins(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    exponential = torch.exp(F.logsigmoid(margins / tau) - margins)
    return -F.logsigmoid(margins) * torch.sigmoid(-margins / tau) + exponential
