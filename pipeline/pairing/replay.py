"""Which pairs of earlier rounds are trained on again: a draw that depends on nothing but their names.

Mixing old comparisons into what a round trains on works against forgetting: the policy is held to what it was taught
on the prompts of earlier rounds.
"""

import hashlib
import heapq
from collections.abc import Iterable


def replayed(fresh: int, share: float) -> int:
    """How many pairs to draw beside ``fresh`` ones, so that ``share`` of all are drawn ones."""
    return round(fresh * share / (1 - share))


def draw(ids: Iterable[str], count: int, seed: str) -> set[str]:
    """``count`` of the pair ids, or all where there are not so many; whatever order they come in."""
    return set(heapq.nsmallest(count, set(ids), key=lambda one: hashlib.sha256(f"{seed}\0{one}".encode()).digest()))
