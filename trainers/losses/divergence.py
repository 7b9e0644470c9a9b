"""DPO under other divergences than the reverse KL: f-DPO.

−log σ(β f′(π(y_w)/π_ref(y_w)) − β f′(π(y_l)/π_ref(y_l))), Wang et al. 2023, arXiv:2309.16240.
"""

from torch import Tensor
from torch.nn import functional as F

from trainers.losses.rewards import Beta
from trainers.losses.sigmoid import logistic

LINEAR_FROM = 20.0
"""Nats at which e^x goes on as its tangent. A completion e²⁰ times less likely than under the reference has a gradient
5e8 times DPO's as it is, which clipping turns into a direction; squared, larger ones would overflow in float32."""


def forward_kl(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    linear_from: float = LINEAR_FROM,
) -> Tensor:
    """f(u) = −log u, f′(u) = −1/u: :func:`alpha_divergence` at α = 1.

    1/u = e^{−log u} overflows; beyond ``linear_from`` nats its tangent takes its place, see :data:`LINEAR_FROM`.
    """
    return alpha_divergence(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta, 1.0,
        linear_from,
    )  # fmt: skip


def alpha_divergence(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    alpha: float,
    linear_from: float = LINEAR_FROM,
) -> Tensor:
    """f′(u) = (1 − u^{−α}) / α with 0 < α < 1; DPO's log u as α → 0. The paper's α: other code has 1 − α.

    The tangent takes the exponential's place as in :func:`forward_kl`.
    """
    chosen = _alpha_score(policy_chosen_logps - reference_chosen_logps, alpha, linear_from)
    rejected = _alpha_score(policy_rejected_logps - reference_rejected_logps, alpha, linear_from)
    return logistic(beta * chosen - beta * rejected)


def _alpha_score(ratios: Tensor, alpha: float, linear_from: float) -> Tensor:
    exponents = -alpha * ratios
    within = exponents.clamp(max=linear_from)
    return -(within.expm1() + within.exp() * F.relu(exponents - linear_from)) / alpha


def jensen_shannon(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
) -> Tensor:
    """f′(u) = log(2u / (1 + u)) = log 2 + log σ(log u)."""
    chosen = F.logsigmoid(policy_chosen_logps - reference_chosen_logps)
    rejected = F.logsigmoid(policy_rejected_logps - reference_rejected_logps)
    return logistic(beta * chosen - beta * rejected)
