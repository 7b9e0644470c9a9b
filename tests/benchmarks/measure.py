"""Contestants taking turns at the same steps, and what their times say."""

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from regimes import Preference

Batch = Sequence[Preference]
Run = Callable[["Contestant", Batch], Any]

LIBRARIES = ("torch", "transformers", "trl", "accelerate", "numpy")
TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "sve", "bf16")


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt."""


def keep_freed_memory() -> bool:
    """Let freed arrays be used again instead of going back to the kernel, for everyone in this process.

    Fresh pages cost the padded opponent up to a seventh of its time; nobody should win by another's page faults.
    False where the C library has no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all((mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, 2**26)))


class Contestant(Protocol):
    def step(self, pairs: Batch) -> float:
        """One optimiser step; the mean loss over the pairs, before the step."""

    def reference(self, pairs: Batch) -> list[tuple[float, float]]:
        """Summed log-probabilities of chosen and of rejected, in nats."""


def step(contestant: Contestant, batch: Batch) -> float:
    return contestant.step(batch)


def reference(contestant: Contestant, batch: Batch) -> list[tuple[float, float]]:
    return contestant.reference(batch)


@dataclass
class Samples:
    """One contestant's turns, timed ones only; results of all turns, the warm-up included."""

    wall: list[float] = field(default_factory=list)
    """Seconds."""
    cpu: list[float] = field(default_factory=list)
    """Seconds of all threads together: on a shared machine the steadier of the two."""
    pairs: list[int] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    def pairs_per_second(self) -> float:
        return statistics.median(n / seconds for n, seconds in zip(self.pairs, self.wall, strict=True))


@dataclass(frozen=True)
class Ratio:
    """Paired ratios of times: every sample compares two contestants within one repetition."""

    median: float
    lowest: float
    highest: float
    samples: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.median:.2f}× [{self.lowest:.2f}–{self.highest:.2f}]"


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Ratio:
    """How many times faster, over the repetitions both took part in."""
    samples = tuple(a / b for a, b in zip(slower, faster, strict=False))
    return Ratio(statistics.median(samples), min(samples), max(samples), samples)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a contestant returned, and the seconds it took."""

    result: Any
    wall: float
    cpu: float


def take_turn(contestant: Any, run: Run, batch: Batch) -> Turn:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run(contestant, batch)
    return Turn(result, time.perf_counter() - wall, time.process_time() - cpu)


def alternate(
    contestants: Mapping[str, Any], batches: Sequence[Batch], run: Run = step, warm_up: int = 1,
    turns: Mapping[str, int] | None = None, take: Callable[[Any, Run, Batch], Turn] = take_turn,
) -> dict[str, Samples]:  # fmt: skip
    """Every contestant runs every batch, one after another within a repetition, the order reversed each time.

    The first ``warm_up`` batches' results count, their times do not: a process's heap grows for the first few batches
    of new lengths, and the page faults of that are a fifth of a step. ``turns`` limits the timed repetitions of slow
    contestants; they take the first ones, and warm up on one batch.
    """
    samples = {name: Samples() for name in contestants}
    order = list(contestants)
    for repetition, batch in enumerate(batches):
        for name in order if repetition % 2 else reversed(order):
            if turns and name in turns and not warm_up - 1 <= repetition < warm_up + turns[name]:
                continue
            turn = take(contestants[name], run, batch)
            samples[name].results.append(turn.result)
            if repetition >= warm_up:
                samples[name].wall.append(turn.wall)
                samples[name].cpu.append(turn.cpu)
                samples[name].pairs.append(len(batch))
    return samples


def best_batch_size(opponent: Any, batch: Batch, sizes: Sequence[int], run: Run = step, rounds: int = 2) -> "Sizes":
    """Seconds (the least of the rounds) an opponent takes for ``batch`` at each batch size that divides it."""
    seconds = {size: float("inf") for size in sizes if len(batch) % size == 0}
    for _ in range(rounds):
        for size in seconds:
            opponent.batch_size = size
            begin = time.process_time() if opponent.device == "cpu" else time.perf_counter()
            try:
                run(opponent, batch)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            end = time.process_time() if opponent.device == "cpu" else time.perf_counter()
            seconds[size] = min(seconds[size], end - begin)
    best = min(seconds, key=lambda size: seconds[size])
    return Sizes(best, {size: len(batch) / taken for size, taken in seconds.items()})


@dataclass(frozen=True)
class Sizes:
    """The batch size an opponent is best at, and its pairs/s at each."""

    best: int
    pairs_per_second: dict[int, float]


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest difference of two loss curves over the steps both took."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=False))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_family_model": [fields.get("cpu family"), fields.get("model")],
        "flags": [flag for flag in TELLING_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }
