"""The negative log-likelihood of the chosen completion: RPO's regulariser, and part of ORPO and CPO."""

from torch import Tensor


def nll(policy_chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """−log π(y_w) / |y_w|: negative log-likelihood a token of the chosen completion.

    The regulariser of iterative reasoning preference optimisation, Pang et al. 2024, arXiv:2404.19733, equation 1;
    it keeps the chosen completion's probability from falling together with the rejected one's. A mean over
    completions, as in the paper; some trainers take the mean over the batch's tokens, which weighs long ones more.
    """
    return -policy_chosen_logps / chosen_lengths
