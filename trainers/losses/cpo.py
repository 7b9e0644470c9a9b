"""Contrastive preference optimisation's preference term. The whole of CPO adds `nll`."""

from torch import Tensor

from trainers.losses.rewards import Beta
from trainers.losses.sigmoid import logistic


def cpo(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, beta: Beta, label_smoothing: float = 0.0) -> Tensor:
    """−log σ(β log π(y_w) − β log π(y_l)): DPO with a uniform reference.

    Xu et al. 2024, arXiv:2401.08417. ``label_smoothing`` is the authors' code's, not the paper's.
    """
    return logistic(beta * (policy_chosen_logps - policy_rejected_logps), 1 - label_smoothing)
