"""Simple preference optimisation: no reference, log-probabilities a token, a target margin."""

from torch import Tensor

from trainers.losses.rewards import Beta
from trainers.losses.sigmoid import logistic


def simpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: Beta,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """−log σ(β log π(y_w) / |y_w| − β log π(y_l) / |y_l| − γ), lengths in tokens.

    Meng et al. 2024, arXiv:2405.14734, equation 6. γ is the target margin in units of the reward; some code asks for
    γ / β instead. ``label_smoothing`` is the authors' code's, not the paper's.
    """
    margins = beta * (policy_chosen_logps / chosen_lengths - policy_rejected_logps / rejected_lengths) - gamma
    return logistic(margins, 1 - label_smoothing)
