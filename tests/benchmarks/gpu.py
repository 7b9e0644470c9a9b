"""The same contest on a CUDA device: tokens/s, model FLOPs utilisation and peak memory for Qwen2 shapes in bfloat16.

Both keep weights and the optimiser's state in float32 and compute in bfloat16, as on the CPU.

FLOPs of one optimiser step, forward and backward, without what is computed twice, padding or the embedding's look-up:

    6 · N · tokens  +  12 · layers · width · Σ context  +  6 · hidden · vocabulary · completion tokens

N are the weights outside embedding and head, width is heads · head size, and Σ context adds, over all tokens, how many
each one attends. The head counts on completion positions only, for both. Each contestant is credited with the tokens
its method has to run: TRL with prompt + completion for every row, we with every prompt and completion once.
"""

import gc
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from contestants import build
from measure import alternate, best_batch_size
from models import Settings, config_of, make_model
from regimes import Preference, preferences, row_tokens, unique_tokens

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bfloat16 of data sheets, per second."""
GIBIBYTE = 2**30
BATCH_SIZES = (2, 4, 8, 16)
TOKEN_BUDGET = 16_384


def peak_flops() -> float | None:
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def contexts(pairs: Sequence[Preference], shared: bool) -> int:
    """Σ context: how many tokens each token attends, itself included, added up."""
    total = 0
    seen: set[tuple[int, ...]] = set()
    for pair in pairs:
        prompt = len(pair.prompt)
        for completion in (pair.chosen, pair.rejected):
            total += len(completion) * prompt + len(completion) * (len(completion) + 1) // 2
            if not shared or pair.prompt not in seen:
                total += prompt * (prompt + 1) // 2
            seen.add(pair.prompt)
    return total


def step_flops(model: str, pairs: Sequence[Preference], shared: bool) -> float:
    """By the formula above, for pairs of different prompts."""
    config = config_of(model)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    narrow = hidden * config.num_key_value_heads // config.num_attention_heads
    weights = layers * (2 * hidden * hidden + 2 * hidden * narrow + 3 * hidden * config.intermediate_size)
    tokens = unique_tokens(pairs) if shared else row_tokens(pairs)
    completion_tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    return (
        6 * weights * tokens
        + 12 * layers * hidden * contexts(pairs, shared)
        + 6 * hidden * config.vocab_size * completion_tokens
    )


def contest(model_name: str, regime: str, pairs_per_step: int, repetitions: int) -> dict[str, Any]:
    """TRL as installed (with its Triton head) at its best batch size, and ours, one after the other on one device.

    One at a time, so that the peak is each one's own. The reference values are zeros: they change no time.
    """
    settings = Settings(device="cuda", learning_rate=1e-6)
    vocabulary = config_of(model_name).vocab_size
    pairs = preferences(regime, pairs_per_step * (repetitions + 1), vocabulary, seed=11)
    batches = [pairs[i : i + pairs_per_step] for i in range(0, len(pairs), pairs_per_step)]
    results: dict[str, Any] = {}
    for name in ("installed", "ours"):
        model = make_model(model_name, "cuda")
        size: int | None = TOKEN_BUDGET if name == "ours" else None
        contestant = build(name, model, settings, size)
        if name != "ours":
            sizes = best_batch_size(contestant, batches[0], BATCH_SIZES)
            contestant.batch_size = size = sizes.best  # type: ignore[attr-defined]
            results["batch_sizes"] = sizes.pairs_per_second
        torch.cuda.reset_peak_memory_stats()
        samples = alternate({name: contestant}, batches)[name]
        shared = name == "ours"
        flops = [step_flops(model_name, batch, shared) for batch in batches[1:]]
        tokens = [unique_tokens(batch) if shared else row_tokens(batch) for batch in batches[1:]]
        peak = peak_flops()
        results[name] = {
            "size": size,
            "pairs_per_second": samples.pairs_per_second(),
            "tokens_per_second": statistics.median(n / s for n, s in zip(tokens, samples.wall, strict=True)),
            "mfu": statistics.median(f / s / peak for f, s in zip(flops, samples.wall, strict=True)) if peak else None,
            "peak_gib": torch.cuda.max_memory_allocated() / GIBIBYTE,
            "wall": samples.wall,
            "losses": samples.results,
        }
        del contestant, model
        gc.collect()
        torch.cuda.empty_cache()
    return results
