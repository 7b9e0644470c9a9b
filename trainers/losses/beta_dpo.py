"""DPO with a dynamic β: a batch of easy pairs pulls less far from the reference, and outliers are left out."""

import torch
from torch import Tensor

from trainers.losses.rewards import Beta
from trainers.losses.sigmoid import sigmoid

SMALLEST_SCALE = 0.01
"""Least factor on β; the equation alone would make it negative for a batch far below the running mean."""


def beta_dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    kept: Tensor,
    scale: Tensor,
) -> Tensor:
    """DPO with β · ``scale`` on the ``kept`` pairs, bool [pairs]; 0 on the others. Neither has a gradient.

    β-DPO, Wu et al. 2024, arXiv:2407.08639. Losses are multiplied by pairs / kept pairs, so that the mean
    over the batch is the mean over those kept.
    """
    losses = sigmoid(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta * scale
    )
    return torch.where(kept, losses, 0.0) * (kept.numel() / kept.sum().clamp(min=1))


def batch_scale(discrepancies: Tensor, center: float, alpha: float) -> Tensor:
    """1 + α (mean M − M₀), a scalar ≥ :data:`SMALLEST_SCALE`; M = ``discrepancies``, the reward margins of the pairs.

    The paper's M is of rewards, which have β in them; the authors' code leaves it out. The paper's is taken.
    """
    return (1 + alpha * (discrepancies.detach().mean() - center)).clamp(min=SMALLEST_SCALE)


def choose(discrepancies: Tensor, center: float, spread: float, keep: float, seed: int) -> Tensor:
    """Which pairs to keep, bool [pairs]: a share ``keep`` of them, drawn without replacement.

    A pair's probability is the normal density at its discrepancy, with mean M₀ ``center`` and deviation ``spread``.
    Drawn by Gumbel noise on the log-densities, which no outlier underflows.
    """
    count = max(1, int(keep * discrepancies.numel()))
    uniform = torch.rand(discrepancies.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gumbel = -(-uniform.clamp(min=1e-300).log()).clamp(min=1e-300).log()
    deviations = (discrepancies.detach().double() - center) / max(spread, 1e-6)
    scores = gumbel.to(deviations.device) - 0.5 * deviations**2
    kept = torch.zeros_like(discrepancies, dtype=torch.bool)
    kept[scores.topk(count).indices] = True
    return kept


def moving_figures(center: float, spread: float, discrepancies: Tensor, momentum: float) -> tuple[float, float]:
    """M₀ and the deviation after another batch: m · old + (1 − m) · the batch's, both from 0. No pairs move none."""
    values = discrepancies.detach().double()
    if not values.numel():
        return center, spread
    deviation = float(values.std()) if values.numel() > 1 else 0.0
    return momentum * center + (1 - momentum) * float(values.mean()), momentum * spread + (1 - momentum) * deviation
