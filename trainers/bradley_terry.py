"""The loss of a reward model. Bradley and Terry: P(chosen is better) = σ(r(chosen) − r(rejected))."""

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    margins: Tensor,
    preferences: Tensor,
    margin_weight: float = 0.0,
    centring: float = 0.0,
) -> Tensor:
    """−p log σ(d) − (1 − p) log σ(−d) + λ (r_c + r_r)², where d = r_c − r_r − m · margin; nats, one a pair.

    With p = 1 the first term alone is −log σ(r_c − r_r − m · margin), Llama 2's eq. 2 (arXiv:2307.09288). The last is
    Eisenstein et al.'s regulariser of the sum, which a preference leaves open (arXiv:2312.09244).

    Args:
        chosen, rejected: rewards, float [pairs].
        margins: ≥ 0, float [pairs]; 0 where nobody gave one.
        preferences: p, the probability that chosen is the better one, float [pairs].
        margin_weight: m.
        centring: λ.
    """
    apart = chosen - rejected - margin_weight * margins
    fit = -preferences * F.logsigmoid(apart) - (1 - preferences) * F.logsigmoid(-apart)
    return fit + centring * (chosen + rejected) ** 2
