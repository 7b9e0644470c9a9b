"""Binary classifier optimisation: the implicit reward as a classifier's logit, shifted by its running mean δ."""

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.losses.rewards import Beta


def bco(policy_logps: Tensor, reference_logps: Tensor, desirable: Tensor, beta: Beta, delta: float = 0.0) -> Tensor:
    """−log σ(r − δ) where desirable, −log σ(δ − r) where not; r = β log(π/π_ref). [completions].

    Jung et al. 2024, arXiv:2404.04656. ``desirable`` is bool, [completions].
    """
    logits = beta * (policy_logps - reference_logps) - delta
    return -F.logsigmoid(torch.where(desirable, logits, -logits))


def bco_pairs(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    delta: float = 0.0,
) -> Tensor:
    """The sum of :func:`bco` of chosen, as desirable, and of rejected, as undesirable. [pairs]; a bound on DPO's."""
    desirable = torch.ones_like(policy_chosen_logps, dtype=torch.bool)
    chosen = bco(policy_chosen_logps, reference_chosen_logps, desirable, beta, delta)
    return chosen + bco(policy_rejected_logps, reference_rejected_logps, ~desirable, beta, delta)


def running_mean(mean: float, count: float, rewards: Tensor) -> tuple[float, float]:
    """δ and the number of rewards in it, after those of another batch; δ is the mean of all so far."""
    total = count + rewards.numel()
    return (mean if total == count else mean + float((rewards.double() - mean).sum()) / total), total
