"""Preference losses: tensors in, tensors out. One function a loss, with its paper and equation.

All take summed log-probabilities in nats, [pairs], and return a loss a pair, [pairs]; reduction is the caller's.
"""

from torch import Tensor
from torch.nn import functional as F


def sigmoid(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
) -> Tensor:
    """−log σ(β [(log π(y_w) − log π_ref(y_w)) − (log π(y_l) − log π_ref(y_l))]).

    Direct preference optimisation, Rafailov et al. 2023, arXiv:2305.18290, equation 7. ln 2 where the policy equals
    the reference.
    """
    chosen, rejected = rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return -F.logsigmoid(chosen - rejected)


def nll(policy_chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """−log π(y_w) / |y_w|: negative log-likelihood a token of the chosen completion.

    The regulariser of iterative reasoning preference optimisation, Pang et al. 2024, arXiv:2404.19733, equation 1;
    it keeps the chosen completion's probability from falling together with the rejected one's.
    """
    return -policy_chosen_logps / chosen_lengths


def rewards(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """The implicit rewards β (log π(y) − log π_ref(y)) of chosen and rejected, [pairs] each.

    Rafailov et al. 2023, section 4: r̂(x, y), up to a term that depends on the prompt alone.
    """
    return (
        beta * (policy_chosen_logps - reference_chosen_logps),
        beta * (policy_rejected_logps - reference_rejected_logps),
    )
