"""Token-level DPO: the margin also takes the KL from the reference along each completion."""

from torch import Tensor

from trainers.losses.rewards import Beta, reward_margins
from trainers.losses.sigmoid import logistic


def tdpo1(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    beta: Beta,
) -> Tensor:
    """−log σ(m − β (D(y_l) − D(y_w))), m the reward margin, D(y) = Σ_t KL(π_ref ‖ π) at position t. In nats.

    Zeng et al. 2024, arXiv:2404.11999, TDPO1.
    """
    margins = reward_margins(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return logistic(margins - beta * (rejected_kl - chosen_kl))


def tdpo2(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    beta: Beta,
    alpha: float,
) -> Tensor:
    """−log σ(m − α β (D(y_l) − sg D(y_w))): the gradient does not flow through the chosen completion's KL.

    The same paper, TDPO2. DPO at α = 0.
    """
    return tdpo1(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps,
        alpha * chosen_kl.detach(), alpha * rejected_kl, beta,
    )  # fmt: skip
