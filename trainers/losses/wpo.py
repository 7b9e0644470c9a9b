"""Weighted preference optimisation: pairs the policy would itself have sampled count more."""

from torch import Tensor

from trainers.losses.rewards import Beta
from trainers.losses.sigmoid import sigmoid

MOST = 20.0
"""Nats: more than the log of any vocabulary, which bounds the weight's logarithm."""


def wpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_alignments: Tensor,
    rejected_alignments: Tensor,
    beta: Beta,
) -> Tensor:
    """w(y_w) w(y_l) times DPO, w(y) = exp(mean over tokens of log π(y_t) − log Σ_v π(v)²), without gradient.

    Zhou et al. 2024, arXiv:2406.11827, equation 2 with sampled alignment. ``alignments`` are the means, [pairs], nats;
    a token as likely as a draw from the policy is on average has 0. The paper caps no weight; some code does, at 1.
    """
    weights = (chosen_alignments + rejected_alignments).detach().clamp(max=2 * MOST).exp()
    return weights * sigmoid(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
