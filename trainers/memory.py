"""Memory of a training: how much it took, and what to do when there is no more."""

import gc
import logging
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import TrainingError
from trainers.examples import Row
from trainers.packing import group_rows

log = logging.getLogger("ratchet.trainers")


def peak_memory(device: torch.device) -> dict[str, float]:
    """Figures in GiB: on a GPU what tensors took at most since the training began, on a CPU the process' largest
    resident set since it began."""
    if device.type == "cuda":
        return {"memory/gpu_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    return {"memory/process_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def begin_peak(device: torch.device) -> None:
    """Count from here, where the device counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def is_out_of_memory(error: Exception) -> bool:
    """A GPU's allocator has an error of its own; a CPU's, and the libraries beside a GPU's, only their words."""
    words = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(each in str(error) for each in words)


@contextmanager
def enough_for(work: str, mend: str) -> Iterator[None]:
    """For ``work`` of which nothing can be halved. Raises TrainingError, which says to ``mend`` it where memory runs
    out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory {work} ({_words(error)}); {mend}") from None


def _words(error: Exception) -> str:
    return (str(error) or "no memory").splitlines()[0]


def halve_budget(budget: int, rows: Iterable[Row], error: Exception) -> int:
    """A token budget of half of what ``rows`` took at once, when memory ran out; what nobody holds is given back.

    Raises:
        TrainingError: the largest prompt group alone is too much; half a group is none.
    """
    sizes = [group.tokens for group in group_rows(rows)]
    taken, largest = min(budget, sum(sizes)), max(sizes)
    if taken <= largest:
        raise TrainingError(
            f"out of memory on a prompt and its completions of {largest} tokens, the least that runs at once"
            f" ({_words(error)}); set trainer.recompute = true, or take shorter rows or fewer pairs a prompt"
        )
    halved = max(largest, taken // 2)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("out of memory on %d tokens at once; the token budget is now %d", taken, halved)
    return halved
