"""Direct preference optimisation, and the losses that only shift, scale or soften its margin."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.losses.rewards import Beta, reward_margins


def logistic(margins: Tensor, probability: Tensor | float = 1.0) -> Tensor:
    """−p log σ(m) − (1 − p) log σ(−m): cross-entropy where chosen is the better one with ``probability`` p."""
    return -probability * F.logsigmoid(margins) - (1 - probability) * F.logsigmoid(-margins)


def sigmoid(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    label_smoothing: float = 0.0,
    preferences: Tensor | float = 1.0,
) -> Tensor:
    """−log σ(β [(log π(y_w) − log π_ref(y_w)) − (log π(y_l) − log π_ref(y_l))]).

    Direct preference optimisation, Rafailov et al. 2023, arXiv:2305.18290, equation 7. ln 2 where the policy equals
    the reference. ``label_smoothing`` ε in [0, 0.5) makes it conservative DPO (Mitchell 2023, equation 3): labels are
    wrong with probability ε. ``preferences``, [pairs], are soft labels: the probability that chosen is better; they
    are smoothed like hard ones.
    """
    margins = reward_margins(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return logistic(margins, preferences * (1 - label_smoothing) + (1 - preferences) * label_smoothing)


def robust(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    label_smoothing: float,
) -> Tensor:
    """(−(1 − ε) log σ(m) + ε log σ(−m)) / (1 − 2ε): unbiased where labels are flipped with probability ε < 0.5.

    Provably robust DPO, Chowdhury et al. 2024, arXiv:2403.00409. Negative for large margins m.
    """
    margins = reward_margins(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    clean, flipped = -F.logsigmoid(margins), -F.logsigmoid(-margins)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def sigmoid_length_normalised(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: Beta,
) -> Tensor:
    """−log σ(β [log-ratio(y_w) / |y_w| − log-ratio(y_l) / |y_l|]); lengths in tokens.

    Length-normalised DPO of Tülu 3, Lambert et al. 2024, arXiv:2411.15124.
    """
    return sigmoid(
        policy_chosen_logps / chosen_lengths,
        policy_rejected_logps / rejected_lengths,
        reference_chosen_logps / chosen_lengths,
        reference_rejected_logps / rejected_lengths,
        beta,
    )


def odpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    margins: Tensor,
    beta: Beta,
    alpha: float = 1.0,
    scaling: Literal["log", "identity"] = "log",
) -> Tensor:
    """−log σ(m − α f(s_w − s_l)), m the reward margin, s the judge's scores, f ``scaling``.

    DPO with an offset, Amini et al. 2024, arXiv:2402.10571; f is the logarithm in its experiments. A
    ``margins`` s_w − s_l of 0 has offset −∞ under the logarithm: such a pair prefers nothing, and its loss is 0 up to
    float rounding (it is taken as the smallest normal number).
    """
    if scaling == "log":
        margins = margins.clamp(min=torch.finfo(margins.dtype).tiny).log()
    ours = reward_margins(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return logistic(ours - alpha * margins)


def r_dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: Beta,
    alpha: float,
) -> Tensor:
    """−log σ(m + α (|y_w| − |y_l|)): a pair that length already explains teaches less.

    Park et al. 2024, arXiv:2403.19159: the optimum of reward − α |y|, hence the sign.
    """
    margins = reward_margins(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return logistic(margins + alpha * (chosen_lengths - rejected_lengths))


def dpo_positive(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Beta,
    penalty: float,
) -> Tensor:
    """−log σ(m − β λ max(0, log π_ref(y_w) − log π(y_w))), λ ``penalty``: chosen may not lose probability.

    DPO-Positive (Smaug), Pal et al. 2024, arXiv:2402.13228.
    """
    lost = F.relu(reference_chosen_logps - policy_chosen_logps)
    margins = reward_margins(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return logistic(margins - beta * penalty * lost)


def modpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    margins: Tensor,
    beta: Beta,
    share: float,
) -> Tensor:
    """−log σ((m − (1 − w) Δr) / w): w ``share`` of the objective the pairs are labelled for, the rest another's.

    Multi-objective DPO, Zhou et al. 2023, arXiv:2310.03708. ``margins`` Δr is the other objectives'
    reward of chosen minus that of rejected, [pairs], weighted among themselves; DPO at w = 1.
    """
    ours = reward_margins(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
    )
    return logistic((ours - (1 - share) * margins) / share)
