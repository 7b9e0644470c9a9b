"""What is known of a run of tokens, and how a loss depends on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of N tokens, [N] float32 each, nats."""

    logps: Tensor
    """log π(y_t | x, y_<t)"""
    collision: Tensor | None = None
    """log Σ_v π(v | x, y_<t)², where asked for"""
    reference_kl: Tensor | None = None
    """KL(π_ref ‖ π) over the vocabulary at the token's position, where a reference's hidden states were given"""

    def to(self, device: torch.device) -> "Statistics":
        return self._each(lambda values: values.to(device))

    def first(self, count: int) -> "Statistics":
        """Of the first tokens."""
        return self._each(lambda values: values[:count])

    def split(self, lengths: Sequence[int]) -> list["Statistics"]:
        """Of runs of tokens."""
        runs = [
            [None] * len(lengths) if values is None else list(values.split(list(lengths)))
            for values in (self.logps, self.collision, self.reference_kl)
        ]
        return [Statistics(*run) for run in zip(*runs, strict=True)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Statistics":
        collision, kl = (None if each is None else change(each) for each in (self.collision, self.reference_kl))
        return Statistics(change(self.logps), collision, kl)


@dataclass(frozen=True, slots=True)
class Slopes:
    """Gradient of a loss w.r.t. the statistics, [N] each. None: it does not depend on them."""

    logps: Tensor
    reference_kl: Tensor | None = None

    def part(self, tokens: slice) -> "Slopes":
        return Slopes(self.logps[tokens], None if self.reference_kl is None else self.reference_kl[tokens])

    def times(self, factor: float) -> "Slopes":
        return Slopes(self.logps * factor, None if self.reference_kl is None else self.reference_kl * factor)

    def filled(self, count: int) -> "Slopes":
        """With zeros for so many further tokens."""
        kl = self.reference_kl
        return Slopes(pad(self.logps, (0, count)), None if kl is None else pad(kl, (0, count)))

    @staticmethod
    def join(parts: "Sequence[Slopes]") -> "Slopes":
        return Slopes(torch.cat([part.logps for part in parts]), _cat([part.reference_kl for part in parts]))


def join(parts: Sequence[Statistics]) -> Statistics:
    """One after another."""
    return Statistics(
        torch.cat([part.logps for part in parts]),
        _cat([part.collision for part in parts]),
        _cat([part.reference_kl for part in parts]),
    )


def _cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    found = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(found) if found else None
