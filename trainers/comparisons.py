"""What an objective is of: some completions, each run once, and the examples that compare or label them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Completions:
    """The unique completions of some prompt groups: n of them, N tokens in all, one after another."""

    token_logps: Tensor
    """log π(y_t | x, y_<t), nats, [N] float32; gradients flow to these."""
    owner: Tensor
    """Which completion a token belongs to, [N] int64, ascending."""
    lengths: Tensor
    """Tokens of each, [n] int64."""
    reference_logps: Tensor
    """log π_ref(y | x), nats, [n] float64; zeros without a reference."""
    collision: Tensor | None = None
    """log Σ_v π(v)² at each position, [N], no gradient; for what needs "collision"."""
    reference_kl: Tensor | None = None
    """KL(π_ref ‖ π) over the vocabulary at each position, nats, [N]; gradients flow. For "reference_kl"."""
    reference_token_logps: Tensor | None = None
    """log π_ref(y_t | x, y_<t), nats, [N]; for "reference_tokens"."""

    def sums(self, values: Tensor) -> Tensor:
        """[N] values summed a completion, [n] float64: in float32 some hundred terms lose 1e-3 nats."""
        zeros = torch.zeros(self.lengths.shape, dtype=torch.float64, device=values.device)
        return zeros.index_add(0, self.owner, values.double())

    @property
    def logps(self) -> Tensor:
        """log π(y | x), nats, [n] float64."""
        return self.sums(self.token_logps)

    def first_sums(self, values: Tensor, which: Tensor, counts: Tensor) -> Tensor:
        """Sum of the first ``counts`` [k] of the [N] ``values`` in each of the completions ``which`` [k]."""
        running = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
        starts = (self.lengths.cumsum(0) - self.lengths)[which]
        return running[starts + counts] - running[starts]


@dataclass(frozen=True, slots=True)
class Comparisons:
    """The examples, as indices into Completions; p pairs and s single completions. One completion may be in many."""

    chosen: Tensor
    """[p] int64."""
    rejected: Tensor
    """[p] int64."""
    margins: Tensor
    """Judge's score of chosen minus that of rejected, [p] float64."""
    preferences: Tensor
    """Probability that chosen is the better one, [p] float64."""
    betas: Tensor
    """β of each pair's source, [p] float64."""
    singles: Tensor
    """[s] int64."""
    desirable: Tensor
    """[s] bool."""
    single_betas: Tensor
    """[s] float64."""
    mismatched: Tensor
    """Completions put after another example's prompt, for KTO's KL alone: [m] int64; for what needs "mismatched"."""


class Batch:
    """Completions and comparisons, gathered once for all terms. Pairs' tensors are [p], singles' [s], all float64."""

    def __init__(self, completions: Completions, comparisons: Comparisons) -> None:
        self.completions, self.comparisons = completions, comparisons
        self.logps, self.reference_logps = completions.logps, completions.reference_logps
        chosen, rejected = comparisons.chosen, comparisons.rejected
        self.pairs = (
            self.logps[chosen], self.logps[rejected], self.reference_logps[chosen], self.reference_logps[rejected]
        )  # fmt: skip
        """log π of chosen and rejected, log π_ref of chosen and rejected: how losses take them."""
        self.lengths = (completions.lengths[chosen], completions.lengths[rejected])
        self.singles = (self.logps[comparisons.singles], self.reference_logps[comparisons.singles])
        """log π and log π_ref of the completions labelled one by one."""
        self.single_lengths = completions.lengths[comparisons.singles]

    def public_sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As ``pairs``, but over the first min(|y_w|, |y_l|) tokens of each completion alone."""
        shorter = torch.minimum(*self.lengths)
        reference = self.completions.reference_token_logps
        assert reference is not None, "an objective that needs reference_tokens got none"
        first, sides = self.completions.first_sums, (self.comparisons.chosen, self.comparisons.rejected)
        chosen, rejected = (first(self.completions.token_logps, side, shorter) for side in sides)
        reference_chosen, reference_rejected = (first(reference, side, shorter) for side in sides)
        return chosen, rejected, reference_chosen, reference_rejected

    def alignments(self) -> tuple[Tensor, Tensor]:
        """Mean of log π(y_t) − log Σ_v π(v)² over the tokens of chosen and rejected; no gradient."""
        collision = self.completions.collision
        assert collision is not None, "an objective that needs collision got none"
        gaps = self.completions.token_logps.detach().double() - collision
        means = self.completions.sums(gaps) / self.completions.lengths
        return means[self.comparisons.chosen], means[self.comparisons.rejected]

    def reference_kls(self) -> tuple[Tensor, Tensor]:
        """KL(π_ref ‖ π) summed over the positions of chosen and rejected."""
        reference_kl = self.completions.reference_kl
        assert reference_kl is not None, "an objective that needs reference_kl got none"
        sums = self.completions.sums(reference_kl)
        return sums[self.comparisons.chosen], sums[self.comparisons.rejected]
