"""The hinge on the reward margin: SLiC's calibration loss, normalised by the reference as in RSO."""

from torch import Tensor
from torch.nn import functional as F

from trainers.losses.rewards import Beta, reward_margins


def hinge(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
) -> Tensor:
    """max(0, 1 − m), m the reward margin.

    Statistical rejection sampling optimisation's hinge-norm loss, Liu et al. 2023, arXiv:2309.06657, β
    its γ; with a reference of zeros, SLiC-HF's rank loss, Zhao et al. 2023, arXiv:2305.10425, in units of β.
    """
    return F.relu(
        1
        - reward_margins(
            policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
        )
    )
