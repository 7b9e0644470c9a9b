"""Length-desensitised DPO: what lies beyond the shorter completion's length counts less."""

from torch import Tensor

from trainers.losses.rewards import Beta
from trainers.losses.sigmoid import sigmoid


def ld_dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    policy_chosen_public: Tensor,
    policy_rejected_public: Tensor,
    reference_chosen_public: Tensor,
    reference_rejected_public: Tensor,
    beta: Beta,
    alpha: float,
) -> Tensor:
    """DPO of log π̂(y) = Σ_{t ≤ l} log π(y_t) + α Σ_{t > l} log π(y_t), l = min(|y_w|, |y_l|), and log π̂_ref alike.

    LD-DPO, Liu et al. 2024, arXiv:2409.06411. The ``public`` sums are those over t ≤ l. DPO at α = 1.
    """
    return sigmoid(
        policy_chosen_public + alpha * (policy_chosen_logps - policy_chosen_public),
        policy_rejected_public + alpha * (policy_rejected_logps - policy_rejected_public),
        reference_chosen_public + alpha * (reference_chosen_logps - reference_chosen_public),
        reference_rejected_public + alpha * (reference_rejected_logps - reference_rejected_public),
        beta,
    )
