"""What every loss with a reference is made of: log-ratios, and the implicit rewards they amount to."""

from torch import Tensor

Beta = Tensor | float
"""One for all, or [pairs]."""


def rewards(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
) -> tuple[Tensor, Tensor]:
    """The implicit rewards β (log π(y) − log π_ref(y)) of chosen and rejected, [pairs] each.

    Rafailov et al. 2023, arXiv:2305.18290, section 4: r̂(x, y), up to a term that depends on the prompt alone.
    """
    return (
        beta * (policy_chosen_logps - reference_chosen_logps),
        beta * (policy_rejected_logps - reference_rejected_logps),
    )


def reward_margins(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
) -> Tensor:
    """r̂(x, y_w) − r̂(x, y_l), [pairs]."""
    chosen, rejected = rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return chosen - rejected
