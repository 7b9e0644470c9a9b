"""Contestants in processes of their own, which take turns: as trainers run in life.

In one process a padded opponent's many shapes push the other's compiled kernels out of oneDNN's cache, which holds
1,024 of them for everyone, and both leave their holes in one heap: our step took a tenth longer beside TRL's.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from contestants import build
from measure import Batch, Contestant, Run, Sizes, Turn, best_batch_size, keep_freed_memory, take_turn
from models import Settings, make_model


@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant to be built: equal models have equal weights."""

    name: str
    model: str
    settings: Settings
    size: int | None
    """Pairs a batch, or our token budget; None: as :func:`contestants.build` chooses."""
    keep_memory: bool


class Alone:
    """A contestant in a process that ends with the ``with`` block. Whatever it raises, it raises here."""

    def __init__(self, entry: Entry) -> None:
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, context, _begin, (entry, torch.get_num_threads()))

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def turn(self, run: Run, batch: Batch) -> Turn:
        return self._process.submit(_turn, run, batch).result()

    def best_batch_size(self, batch: Batch, sizes: Sequence[int], run: Run, rounds: int) -> Sizes:
        return self._process.submit(_best_batch_size, batch, sizes, run, rounds).result()


_here: dict[str, Any] = {}
"""In a contestant's process: the contestant."""


def _begin(entry: Entry, threads: int) -> None:
    torch.set_num_threads(threads)
    if entry.keep_memory:
        keep_freed_memory()
    _here["contestant"] = build(entry.name, make_model(entry.model), entry.settings, entry.size)


def _turn(run: Run, batch: Batch) -> Turn:
    contestant: Contestant = _here["contestant"]
    return take_turn(contestant, run, batch)


def _best_batch_size(batch: Batch, sizes: Sequence[int], run: Run, rounds: int) -> Sizes:
    return best_batch_size(_here["contestant"], batch, sizes, run, rounds)
