"""Noise-contrastive alignment of pairs: the chosen completion's absolute likelihood may not fall."""

from torch import Tensor
from torch.nn import functional as F

from trainers.losses.rewards import Beta, rewards


def nca(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
) -> Tensor:
    """−log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l), r the implicit rewards.

    Chen et al. 2024, arXiv:2402.05369: NCA of two completions, one certainly the better.
    """
    chosen, rejected = rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)
