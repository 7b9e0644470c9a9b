"""Which pairs of earlier rounds are trained on again: a draw that depends on nothing but their names.

Mixing old comparisons into what a round trains on works against forgetting: the policy is held to what it was taught
on the prompts of earlier rounds.

A pair takes part by its lot, 16 bytes of a SHA-256 over the draw's seed and the pair's id. The lowest lots are drawn,
so that a draw holds them alone, some 50 MB a million pairs, and neither ids nor rows.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Lots = npt.NDArray[np.bytes_]
"""[pairs] of 16 bytes."""
LOT = "S16"


def replayed(fresh: int, share: float) -> int:
    """How many pairs to draw beside ``fresh`` ones, so that ``share`` of all are drawn ones."""
    return round(fresh * share / (1 - share))


def lots(ids: Iterable[str], seed: str) -> Lots:
    """The lots of pairs, in the order of their ids."""
    begun = hashlib.sha256(f"{seed}\0".encode())

    def lot(one: str) -> bytes:
        whole = begun.copy()
        whole.update(one.encode())
        return whole.digest()[:16]

    return np.frombuffer(b"".join(map(lot, ids)), LOT)


def gathered(parts: Sequence[Lots]) -> Lots:
    """All of them, each once, the lowest first."""
    every = np.concatenate([np.empty(0, LOT), *parts])
    every.sort()
    new = np.ones(len(every), bool)
    np.not_equal(every[1:], every[:-1], out=new[1:])
    once: Lots = every[new]
    return once


def drawable(others: Lots, fresh: Lots) -> Lots:
    """``others`` without ``fresh``; both as :func:`gathered` gives them."""
    return others[~_among(others, fresh)]


class Hand:
    """The lots drawn, each to be met once."""

    def __init__(self, drawn: Lots) -> None:
        """``drawn``: as :func:`gathered` gives them, some of the lowest."""
        self._drawn, self._met = drawn, np.zeros(len(drawn), bool)

    def take(self, shown: Lots) -> npt.NDArray[np.bool_]:
        """Which of ``shown`` were drawn and not met before, here or in an earlier call."""
        hits = np.flatnonzero(_among(shown, self._drawn))
        places = np.searchsorted(self._drawn, shown[hits])
        _, first = np.unique(places, return_index=True)
        first = first[~self._met[places[first]]]
        self._met[places[first]] = True
        taken = np.zeros(len(shown), bool)
        taken[hits[first]] = True
        return taken


def _among(some: Lots, known: Lots) -> npt.NDArray[np.bool_]:
    """Which of ``some`` are in ``known``, which is in order."""
    if not len(known):
        return np.zeros(len(some), bool)
    places = np.searchsorted(known, some)
    places[places == len(known)] = 0
    found: npt.NDArray[np.bool_] = known[places] == some
    return found
