"""The same contest on a CUDA device: tokens/s, model FLOPs utilisation and peak memory for Qwen2 shapes in bfloat16.

Both keep weights and the optimiser's state in float32 and compute in bfloat16, as on the CPU. FLOPs and MFU are those
of ``trainers.flops``. Each contestant is credited with the tokens its method has to run: TRL with prompt and completion
of every row, we with every prompt and completion once.
"""

import gc
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from contestants import build
from measure import alternate, best_batch_size
from models import Settings, config_of, make_model
from ours import compared
from regimes import Preference, preferences, row_tokens, unique_tokens
from trainers.flops import Arithmetic, utilisation
from trainers.memory import begin_peak, peak_memory
from trainers.packing import PromptGroup, group_rows

BATCH_SIZES = (2, 4, 8, 16)
TOKEN_BUDGET = 16_384


def step_flops(arithmetic: Arithmetic, pairs: Sequence[Preference], shared: bool) -> float:
    """Of one optimiser step, as :class:`Arithmetic` counts; not ``shared``: every row with a prompt of its own."""
    rows = [row for pair in pairs for row in compared(pair).rows]
    return arithmetic.flops(
        group_rows(rows) if shared else [PromptGroup(row.prompt, (row.completion,)) for row in rows]
    )


def contest(
    model_name: str, regime: str, pairs_per_step: int, repetitions: int, device: str = "cuda"
) -> dict[str, Any]:
    """TRL as installed (with its Triton head) at its best batch size, and ours, one after the other on one device.

    One at a time, so that the peak is each one's own. The reference values are zeros: they change no time. On a CPU,
    whose peak is not known, there is no MFU, and the memory is the process'.
    """
    settings, place = Settings(device=device, learning_rate=1e-6), torch.device(device)
    vocabulary = config_of(model_name).vocab_size
    pairs = preferences(regime, pairs_per_step * (repetitions + 1), vocabulary, seed=11)
    batches = [pairs[i : i + pairs_per_step] for i in range(0, len(pairs), pairs_per_step)]
    results: dict[str, Any] = {}
    for name in ("installed", "ours"):
        model = make_model(model_name, device)
        arithmetic = Arithmetic(model)
        size: int | None = TOKEN_BUDGET if name == "ours" else None
        contestant = build(name, model, settings, size)
        if name != "ours":
            sizes = best_batch_size(contestant, batches[0], BATCH_SIZES)
            contestant.batch_size = size = sizes.best  # type: ignore[attr-defined]
            results["batch_sizes"] = sizes.pairs_per_second
        begin_peak(place)
        samples = alternate({name: contestant}, batches)[name]
        shared = name == "ours"
        flops = [step_flops(arithmetic, batch, shared) for batch in batches[1:]]
        tokens = [unique_tokens(batch) if shared else row_tokens(batch) for batch in batches[1:]]
        shares = [utilisation(f, s, place) for f, s in zip(flops, samples.wall, strict=True)]
        results[name] = {
            "size": size,
            "pairs_per_second": samples.pairs_per_second(),
            "tokens_per_second": statistics.median(n / s for n, s in zip(tokens, samples.wall, strict=True)),
            "mfu": statistics.median(known) if (known := [share for share in shares if share is not None]) else None,
            "peak_gib": max(peak_memory(place).values()),
            "wall": samples.wall,
            "losses": samples.results,
        }
        del contestant, model
        gc.collect()
        torch.cuda.empty_cache()
    return results
