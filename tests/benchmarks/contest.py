"""The sections of the benchmark: each measures, prints its table and returns what goes into the JSON."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from alone import Alone, Entry
from contestants import TITLES
from measure import (
    Batch,
    Run,
    Samples,
    Sizes,
    alternate,
    keep_freed_memory,
    largest_difference,
    machine,
    ratio,
    reference,
    step,
)  # fmt: skip
from memory import Case, Peak, peak_of
from models import GPU_SHAPES, Settings, make_model, with_reference
from regimes import REGIMES, SCHEMES, groups_per_step, preferences, row_tokens, unique_tokens
from report import against_goal, console, save, table

BATCH_SIZES = (1, 2, 4, 8)
CALIBRATION_PAIRS = {"ideal": 16, "installed": 8}
FLOAT32_TOLERANCE = 1e-4
"""Of the loss: TRL adds log-probabilities in float32, which alone costs up to 1e-3 nats a row, times β = 0.1."""
LEAN_BUDGETS = (2048, 1024)
MEMORY_GOALS = {("installed", 4): 0.15, ("ideal", 1): 1.0}
"""What our peak shall be at most, in peaks of others, at no less than 90% of the full speed. 4 pairs: a batch that
people use, whatever is fastest here."""
REGIMES_OF_GROUPS = ("typical", "long")
WARM_UP_PROMPTS = 96
"""At least so many before the clock starts: with few a step, the timed steps would still compile kernels for new
lengths, which a training is over with after a few steps."""


@dataclasses.dataclass
class Contest:
    models: list[str]
    names: list[str]
    pairs: int
    """An optimiser step."""
    warm_up: int
    """Untimed repetitions before the others."""
    repetitions: int
    installed: int
    """Repetitions TRL as installed takes part in."""
    threads: int
    batch_sizes: dict[str, int]
    """Given ones; the others are tried out."""
    quick: bool
    compile: bool
    allocator: str
    """ "keep": freed memory stays in the process; "default": as the C library does it."""
    tried: dict[tuple[str, str, str], Sizes] = dataclasses.field(default_factory=dict, repr=False)

    def run(self, sections: Sequence[str], file: Path) -> bool:
        """All sections in order; false if contestants disagree in float32."""
        torch.set_num_threads(self.threads)
        if self.allocator == "keep" and not keep_freed_memory():
            console.print("allocator: this C library has no mallopt; freed memory goes back to the kernel as it likes")
        settings = dataclasses.asdict(self) | {"training": dataclasses.asdict(Settings())}
        del settings["tried"]  # empty yet; each result has its own
        results: dict[str, Any] = {"machine": machine(), "settings": settings}
        agreed = True
        for section in sections:
            if section in REGIMES:
                results[section] = {model: self.speed(model, section) for model in self.models}
            elif section == "groups":
                results[section] = {model: self.groups(model) for model in self.models}
            elif section == "reference":
                results[section] = {model: self.reference(model) for model in self.models}
            elif section == "float32":
                results[section] = self.float32(self.models[-1])
                agreed = results[section]["largest_difference"] <= FLOAT32_TOLERANCE
            elif section == "memory":
                results[section] = self.memory(self.models[0])
            elif section == "gpu":
                results[section] = self.gpu()
            save(results, file)
        return agreed

    def speed(self, name: str, regime: str) -> dict[str, Any]:
        """Optimiser steps of one pair a prompt."""
        model = make_model(name)
        batches = self.batches(model, regime, self.pairs)
        return self.compare(name, model, regime, batches, case=regime, names=self.names)

    def groups(self, name: str) -> dict[str, Any]:
        """Optimiser steps of several pairs a prompt; TRL sees unrelated rows, as it always does."""
        names = self._without_installed()
        results: dict[str, Any] = {}
        for regime in REGIMES_OF_GROUPS[: 1 if self.quick else None]:
            for scheme in list(SCHEMES)[: 1 if self.quick else None]:
                model = make_model(name)
                batches = self.batches(model, regime, groups_per_step(self.pairs, scheme), scheme)
                results[f"{regime}, {scheme}"] = self.compare(name, model, regime, batches, scheme, names)
        return results

    def reference(self, name: str) -> dict[str, Any]:
        """The pass that precomputes the reference's log-probabilities."""
        model = make_model(name)
        batches = self.batches(model, "typical", self.pairs, known=False)
        return self.compare(name, model, "typical", batches, "reference", self.names, run=reference)

    def compare(
        self, name: str, model: PreTrainedModel, regime: str, batches: list[Batch], case: str, names: Sequence[str],
        run: Run = step,
    ) -> dict[str, Any]:  # fmt: skip
        tried = {who: self.calibrate(who, name, case, batches[0], run) for who in names if who != "ours"}
        entries = {who: self.entry(who, name, tried[who].best if who in tried else None) for who in names}
        warm_up = len(batches) - self.repetitions
        samples = contest(entries, batches, run, warm_up, {"installed": self.installed})
        tokens = sum(map(row_tokens, batches)) / sum(map(unique_tokens, batches))
        figures = self.figures(samples, case)
        rows = [
            (TITLES[who], tried[who].best if who in tried else "", f"{one.pairs_per_second():.2f}",
             figures.get(who, {}).get("text"), figures.get(who, {}).get("goal"))
            for who, one in samples.items()
        ]  # fmt: skip
        curves = {} if run is reference else self.curves(samples)
        caption = f"{len(batches[0])} pairs a step; tokens of all rows are {tokens:.2f} × the different ones. "
        title = f"{case}, model {name}" if case == regime else f"{case}, {regime} lengths, model {name}"
        table(title, ("", "batch", "pairs/s", "Ratchet faster by", "goal"), rows,
              caption + curves.get("text", ""))  # fmt: skip
        return {
            "batch_sizes": {who: dataclasses.asdict(sizes) for who, sizes in tried.items()},
            "pairs_per_second": {who: one.pairs_per_second() for who, one in samples.items()},
            "ratios": {who: dataclasses.asdict(figure["ratio"]) for who, figure in figures.items()},
            "wall_ratios": {who: dataclasses.asdict(figure["wall"]) for who, figure in figures.items()},
            "row_tokens_over_unique": tokens,
            "loss_differences": curves,
            "samples": {who: dataclasses.asdict(one) for who, one in samples.items()} if run is step else {
                who: {"wall": one.wall, "cpu": one.cpu} for who, one in samples.items()
            },
        }  # fmt: skip

    def figures(self, samples: dict[str, Samples], case: str) -> dict[str, Any]:
        """Of each opponent: the paired ratio, as text too, and whether it reaches the goal."""
        ours = samples.get("ours")
        figures = {}
        for who, theirs in samples.items():
            if ours is None or who == "ours":
                continue
            wall = ratio(theirs.wall, ours.wall)
            paired = ratio(theirs.cpu, ours.cpu) if self.threads == 1 else wall
            goal = against_goal(case, who, paired.median)
            figures[who] = {"ratio": paired, "wall": wall, "text": str(paired), "goal": goal}
        return figures

    def curves(self, samples: dict[str, Samples]) -> dict[str, Any]:
        """Largest difference of the loss a step. TRL as installed skips steps, so its curve is another."""
        losses = {who: one.results for who, one in samples.items()}
        curve = losses.get("ideal", next(iter(losses.values())))
        text = f"Loss {curve[0]:.4f} → {curve[-1]:.4f}."
        if not {"ours", "ideal"} <= losses.keys():
            return {"text": text}
        gap = largest_difference(losses["ours"], losses["ideal"])
        return {"ours − ideal": gap, "text": f"{text} Largest difference in a step: {gap:.1e}."}

    def batches(
        self, model: PreTrainedModel, regime: str, prompts: int, scheme: str | None = None, known: bool = True
    ) -> list[Batch]:
        """The warm-up's and every repetition's pairs, with the reference values of the model as it is."""
        few = 0 if self.quick else math.ceil(WARM_UP_PROMPTS / prompts)
        count = max(self.warm_up, few) + self.repetitions
        vocabulary = model.config.vocab_size
        batches = [preferences(regime, prompts, vocabulary, seed, scheme) for seed in range(count)]
        return [with_reference(model, batch, Settings()) if known else batch for batch in batches]

    def calibrate(self, who: str, name: str, case: str, batch: Batch, run: Run = step) -> Sizes:
        """The batch size TRL is best at for a model and a case, unless one was given. Tried once."""
        if who in self.batch_sizes:
            return Sizes(self.batch_sizes[who], {})
        if (who, name, case) not in self.tried:
            sizes = BATCH_SIZES if run is step else (*BATCH_SIZES, 16)
            fitting = [size for size in sizes if len(batch) % size == 0]
            part = batch[: CALIBRATION_PAIRS[who]]
            with Alone(self.entry(who, name)) as trial:
                self.tried[who, name, case] = trial.best_batch_size(part, fitting, run, 2 if who == "ideal" else 1)
        return self.tried[who, name, case]

    def float32(self, name: str) -> dict[str, Any]:
        """A few steps without autocast: the loss curves are equal but for rounding."""
        settings = Settings(precision="float32")
        model = make_model(name)
        batches = [
            with_reference(model, preferences("typical", 4, model.config.vocab_size, seed), settings)
            for seed in range(2 if self.quick else 4)
        ]
        sizes = {who: None if who == "ours" else 4 for who in self.names}
        samples = contest({who: self.entry(who, name, size, settings) for who, size in sizes.items()}, batches)
        losses = {who: one.results for who, one in samples.items()}
        ours = losses.get("ours", next(iter(losses.values())))
        largest = max(largest_difference(ours, other) for other in losses.values())
        rows = [(TITLES[who], *(f"{loss:.6f}" for loss in curve)) for who, curve in losses.items()]
        table(f"Loss a step in float32, model {name}", ("", *(f"step {i}" for i in range(len(batches)))), rows,
              f"Largest difference {largest:.1e}, allowed {FLOAT32_TOLERANCE:.0e}.")  # fmt: skip
        return {"model": name, "losses": losses, "largest_difference": largest, "allowed": FLOAT32_TOLERANCE}

    def memory(self, name: str) -> dict[str, Any] | None:
        """Peaks in fresh processes, and what smaller token budgets cost in speed."""
        if not sys.platform.startswith("linux"):
            console.print("memory: skipped, the high-water mark is read from Linux's /proc")
            return None
        model = make_model(name)
        batch = self.batches(model, "typical", self.pairs)[0]
        installed = self.calibrate("installed", name, "typical", model, batch).best if "installed" in self.names else 0
        wanted = [("installed", installed), ("ideal", 1)]
        if not self.quick:
            wanted = [*dict.fromkeys([("installed", installed), ("installed", 4), ("ideal", 1), ("ideal", 4)])]
        from ours import TOKEN_BUDGET

        lean = [budget for budget in LEAN_BUDGETS if budget < TOKEN_BUDGET and not self.quick]
        budgets = [TOKEN_BUDGET, *lean]
        wanted += [("ours", budget) for budget in budgets]
        peaks = {
            (who, size): peak_of(Case(who, size, name, "typical", self.pairs))
            for who, size in wanted
            if who in self.names
        }
        speeds = self.budget_speeds(name, budgets) if "ours" in self.names else {}
        rows = [
            (f"{TITLES[who]}, {'budget' if who == 'ours' else 'batch'} {size}", f"{peak.above:,.0f}",
             f"{peak.without_gradients:,.0f}", *(self.share(peak, peaks.get(other)) for other in MEMORY_GOALS),
             speeds.get(size, ""))
            for (who, size), peak in peaks.items()
        ]  # fmt: skip
        some = next(iter(peaks.values()))
        title = f"Peak memory of a step above weights and optimiser, MiB, model {name}, typical"
        shares = [f"× {who} {size} (≤ {goal})" for (who, size), goal in MEMORY_GOALS.items()]
        table(title, ("", "peak", "− gradients", *shares, "speed"), rows,
              f"Beside it weights {some.weights:,.0f}, optimiser {some.optimiser:,.0f}, the same for all.")  # fmt: skip
        return {f"{who} {size}": dataclasses.asdict(peak) for (who, size), peak in peaks.items()} | {"speed": speeds}

    @staticmethod
    def share(peak: Peak, other: Peak | None) -> str:
        return "" if other is None else f"{peak.above / other.above:.3f}"

    def budget_speeds(self, name: str, budgets: Sequence[int]) -> dict[int, float]:
        """Our speed at each token budget relative to the first, medians of paired ratios."""
        model = make_model(name)
        batches = self.batches(model, "typical", self.pairs)
        entries = {str(budget): self.entry("ours", name, budget) for budget in budgets}
        samples = contest(entries, batches, warm_up=self.warm_up)
        full = samples[str(budgets[0])].cpu
        return {budget: round(ratio(full, samples[str(budget)].cpu).median, 3) for budget in budgets}

    def entry(self, who: str, model: str, size: int | None = None, settings: Settings | None = None) -> Entry:
        return Entry(who, model, settings or Settings(compile=self.compile), size, self.allocator == "keep")

    def _without_installed(self) -> list[str]:
        return [who for who in self.names if who != "installed"]

    def gpu(self) -> dict[str, Any] | None:
        if not torch.cuda.is_available():
            console.print("gpu: skipped, torch sees no CUDA device")
            return None
        import gpu

        results = {}
        for name in GPU_SHAPES:
            results[name] = {regime: gpu.contest(name, regime, 64, self.repetitions) for regime in REGIMES}
            rows = [
                (f"{regime}, {TITLES[who]}", result["size"], f"{result['pairs_per_second']:.1f}",
                 f"{result['tokens_per_second']:,.0f}", f"{result['mfu']:.1%}" if result["mfu"] else "",
                 f"{result['peak_gib']:.1f}")
                for regime, both in results[name].items() for who, result in both.items() if who in TITLES
            ]  # fmt: skip
            table(f"GPU, {name}, bfloat16", ("", "batch or budget", "pairs/s", "tokens/s", "MFU", "peak GiB"), rows)
        return results


def contest(
    entries: Mapping[str, Entry], batches: Sequence[Batch], run: Run = step, warm_up: int = 1,
    turns: Mapping[str, int] | None = None,
) -> dict[str, Samples]:  # fmt: skip
    """:func:`measure.alternate` of contestants in processes of their own."""
    with ExitStack() as stack:
        alone = {who: stack.enter_context(Alone(entry)) for who, entry in entries.items()}
        return alternate(alone, batches, run, warm_up, turns, Alone.turn)
