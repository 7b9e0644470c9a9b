"""Self-play preference optimisation: regress each log-ratio on the win rate."""

from torch import Tensor

from trainers.losses.rewards import Beta, rewards


def sppo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    chosen_win: Tensor | float = 1.0,
    rejected_win: Tensor | float = 0.0,
) -> Tensor:
    """(r_w − (P_w − ½) / β)² + (r_l − (P_l − ½) / β)², r the log-ratios, β = 1/η.

    Wu et al. 2024, arXiv:2405.00675, equation 4.7. ``chosen_win`` and ``rejected_win`` are the probabilities P of
    winning against the policy; 1 and 0 without soft labels. The authors' code has half of it.
    """
    chosen, rejected = rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, 1.0
    )
    return (chosen - (chosen_win - 0.5) / beta) ** 2 + (rejected - (rejected_win - 0.5) / beta) ** 2
