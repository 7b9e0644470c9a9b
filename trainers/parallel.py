"""Several processes, one training."""

from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Share:
    """Which process this is, and of how many."""

    rank: int = 0
    size: int = 1

    def gather(self, mine: T) -> list[T]:
        """Everyone's, in rank order. All processes must call it together."""
        if self.size == 1:
            return [mine]
        everyone: list[T | None] = [None] * self.size
        dist.all_gather_object(everyone, mine)
        return everyone  # type: ignore[return-value]


ALONE = Share()
