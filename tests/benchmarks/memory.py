"""Peak memory of one optimiser step on the CPU, each contestant in a process of its own.

The kernel's high-water mark of resident memory (VmHWM) is reset before the first step; its height above the memory held
then, less the optimiser's state, is what the method needs: activations, logits, gradients, and buffers it keeps between
steps. A second copy of the weights, made before the first step, counts; pages of code and of mapped files do not.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

MEBIBYTE = 2**20
ADAM_STATES = 2
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""The same for all: a freed array goes back at once, so that the high-water mark shows what was in use together."""


@dataclass(frozen=True)
class Case:
    contestant: str
    """installed, ideal or ours."""
    size: int
    """Pairs a batch for TRL, token budget for ours."""
    model: str
    regime: str
    pairs: int


@dataclass(frozen=True)
class Peak:
    """MiB. ``above`` is the peak over weights and optimiser state; it includes the gradients."""

    above: float
    weights: float
    gradients: float
    optimiser: float

    @property
    def without_gradients(self) -> float:
        return self.above - self.gradients


def peak_of(case: Case) -> Peak:
    """Measured in a fresh process."""
    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, json.dumps(asdict(case))]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def measure(case: Case) -> Peak:
    import torch

    from contestants import build
    from models import Settings, config_of, make_model, with_reference
    from regimes import preferences

    torch.set_num_threads(1)
    settings = Settings()
    model = make_model(case.model)
    pairs = preferences(case.regime, case.pairs, config_of(case.model).vocab_size, seed=7)
    pairs = with_reference(model, pairs, settings)
    weights = tensors_held()
    contestant = build(case.contestant, model, settings, case.size)
    copies = tensors_held() - weights
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    held = resident("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    contestant.step(pairs)
    contestant.step(pairs)  # the first makes the optimiser's state at its end, so the second stands highest
    above = resident("VmHWM") - resident("RssFile") - held - ADAM_STATES * weights
    return Peak(above + copies, weights, gradients=weights, optimiser=ADAM_STATES * weights)


def tensors_held() -> float:
    """MiB of all tensors alive, each storage once."""
    import torch

    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some library objects complain when they are asked for their class
        storages = [each.untyped_storage() for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / MEBIBYTE


def resident(field: str) -> float:
    """MiB of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Case(**json.loads(sys.argv[1]))))))
