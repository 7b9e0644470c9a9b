"""The odds-ratio term of ORPO. The whole of ORPO is this with weight λ, and `nll` with weight 1."""

import torch
from torch import Tensor
from torch.nn import functional as F

NEAREST_TO_CERTAIN = -torch.finfo(torch.float32).eps
"""Mean log-probability a token beyond which float32, in which the tokens' are taken, cannot tell it from 0."""


def odds(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor
) -> Tensor:
    """−log σ(log [odds(y_w) / odds(y_l)]), odds(y) = P / (1 − P), P = exp(log π(y) / |y|).

    Odds-ratio preference optimisation, Hong et al. 2024, arXiv:2403.07691, equation 7.
    """
    chosen = _log_odds(policy_chosen_logps / chosen_lengths)
    rejected = _log_odds(policy_rejected_logps / rejected_lengths)
    return -F.logsigmoid(chosen - rejected)


def _log_odds(logps: Tensor) -> Tensor:
    """log P − log(1 − P) = −log(e^{−log P} − 1). Saturated, with no gradient, at a P of 1 to float32 rounding."""
    logps = logps.clamp(max=NEAREST_TO_CERTAIN)
    return logps - torch.where(
        logps > -0.5, (-torch.expm1(logps.clamp(min=-1.0))).log(), torch.log1p(-logps.clamp(max=-0.25).exp())
    )
