"""Which pairs of a run's rounds are held out: measured while a policy is trained, and never trained on.

It is decided by prompt, from a hash of its token ids and the share alone: not by the round, the seed, or which other
prompts there are. So a prompt is on the same side in every round, whoever asks for it again and wherever its pairs are
replayed; and a smaller share holds out some of what a larger one does.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence

SHARE = 0.05
"""Of the prompts, where nobody says."""
ENOUGH = 640
"""Different prompts a round from which on that share is held out: 32 of them, below which a figure says little and
every pair is wanted."""


def share_held_out(asked: float | None, prompts: Iterable[Sequence[int]], per_round: int) -> float:
    """The share of prompts whose pairs are held out in every round of a run.

    Args:
        asked: what the recipe says; None: ``SHARE`` where a round has ``ENOUGH`` different prompts, else none.
        prompts: token ids of all the prompts there are for rounds; no more are read than it takes.
        per_round: how many a round asks at most; 0: all.
    """
    if asked is not None:
        return asked
    if 0 < per_round < ENOUGH:
        return 0.0
    different: set[tuple[int, ...]] = set()
    for prompt in prompts:
        different.add(tuple(prompt))
        if len(different) == ENOUGH:
            return SHARE
    return 0.0


def is_held_out(prompt: Sequence[int], share: float) -> bool:
    """Whether pairs of the prompt with these token ids are held out."""
    drawn = hashlib.sha256(b"held out\0" + array("q", prompt).tobytes()).digest()
    return int.from_bytes(drawn[:8]) < share * 2**64
