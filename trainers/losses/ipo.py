"""Identity preference optimisation. Its two definitions differ by much more than a constant, so both are here."""

from torch import Tensor

from trainers.losses.rewards import Beta, reward_margins


def ipo_sum(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
) -> Tensor:
    """(h − 1 / (2β))², h the difference of the log-ratios summed over tokens; β is the paper's τ.

    Azar et al. 2023, arXiv:2310.12036, equation 17.
    """
    ratios = reward_margins(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, 1.0
    )
    return (ratios - 1 / (2 * beta)) ** 2


def ipo_length_normalised(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: Beta,
) -> Tensor:
    """As :func:`ipo_sum`, each log-ratio divided by its completion's length in tokens.

    Not in the paper; what its authors say they ran, and what TRL and HALOs call IPO.
    """
    return ipo_sum(
        policy_chosen_logps / chosen_lengths,
        policy_rejected_logps / rejected_lengths,
        reference_chosen_logps / chosen_lengths,
        reference_rejected_logps / rejected_lengths,
        beta,
    )
