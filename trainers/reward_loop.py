"""The loop of a reward model's training: batches in, weights moved, a line of figures a step, the best weights kept."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.config import RewardTrainerConfig
from pipeline.errors import NonFiniteError
from pipeline.padding import default_budget
from trainers.batches import batches_of_epoch
from trainers.bradley_terry import bradley_terry
from trainers.checkpoints import STATE, load_training_state, save_training_state, save_whole
from trainers.examples import Pair
from trainers.memory import begin_peak, is_out_of_memory, peak_memory
from trainers.metrics import Recorder
from trainers.parallel import ALONE
from trainers.reward_base import round_head, weights_of
from trainers.reward_figures import Judged, figures, report
from trainers.rewards import Rewards
from trainers.schedule import warmup_then

BEST = "best.pt"
"""In the state's folder: the weights with the lowest held-out loss so far."""


@dataclass(frozen=True, slots=True)
class RewardOutcome:
    """What a training came to."""

    metrics: dict[str, float]
    """The last step's figures."""
    kept: int
    """The step whose weights were saved: the one with the lowest loss on held-out pairs, or, without any, the last."""
    stopped: str | None
    """Why it ended before its last step, if it did."""
    held_out: dict[str, Any] | None
    """:func:`trainers.reward_figures.report` of the saved model on the held-out pairs."""


class RewardLoop:
    """The optimiser, the schedule and the files of one training; continues where an interrupted session ended."""

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: Sequence[Pair],
        held_out: Sequence[Pair],
        config: RewardTrainerConfig,
        seed: int,
        directory: Path,
    ) -> None:
        self.pairs, self.held_out, self.config, self.directory = pairs, held_out, config, directory
        self.weights = weights_of(model, config.dtype)
        self.rewards = Rewards(model, config.token_budget or default_budget(model.device.type))
        self.batches: list[tuple[float, list[int]]] = []
        """Each step's pairs, and how many epochs are over after it."""
        for epoch in range(config.epochs):
            found = batches_of_epoch(pairs, epoch, seed, config.batch_size)
            self.batches += [(epoch + number / len(found), batch) for number, batch in enumerate(found, 1)]
        self.steps = len(self.batches)
        self.warmup = math.ceil(config.warmup_ratio * self.steps)
        self.optimizer = torch.optim.AdamW(
            list(self.weights), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.last: dict[str, float] = {}
        """The last step's figures."""
        self.best: tuple[int, float] | None = None
        """Step and held-out loss of the weights in ``best.pt``."""
        self.waited = 0
        """Evaluations since."""
        self.stopped: str | None = None
        begin_peak(model.device)
        self.first = self._restore()
        self.recorder = Recorder(directory, self.first)

    def step(self, step: int) -> None:
        """One optimiser update on the step's batch. Its figures are of the weights before it, but for "eval/…"."""
        started = time.monotonic()
        epoch, batch = self.batches[step]
        pairs = [self.pairs[index] for index in batch]
        budget = self.rewards.token_budget
        found = self._backward(pairs)
        if self.rewards.token_budget < budget:  # it is part of the rounding: whoever resumes has to have it
            self.save(step)
        norm = self.weights.clip(self.config.max_grad_norm)
        if not math.isfinite(found["loss"]) or not math.isfinite(norm):
            raise NonFiniteError(f"step {step}: loss {found['loss']} and gradient norm {norm} must be finite")
        rate = self.config.learning_rate * warmup_then(step, self.steps, self.warmup, self.config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.weights.publish()
        seconds = time.monotonic() - started
        tokens = sum(len(row) for pair in pairs for row in pair.rows)
        self.last = {
            "step": step + 1, "epoch": epoch, **found, "grad_norm": norm, "learning_rate": rate, "tokens": tokens,
            "tokens_per_second": tokens / seconds, "pairs_per_second": len(pairs) / seconds,
            **peak_memory(self.rewards.model.device),
        }  # fmt: skip
        better = self.held_out and ((step + 1) % self.config.eval_steps == 0 or step + 1 == self.steps)
        better = better and self._evaluate(step + 1)
        self.recorder.write({**self.last, **({} if self.stopped is None else {"stopped": self.stopped})})
        if better:  # the state that says which step best.pt is of follows at once
            self.save(step + 1)

    def save(self, step: int) -> None:
        """Keep all that step number ``step`` depends on. A state never outlives the lines of the steps before it."""
        self.recorder.sync()
        extra = {
            "last": self.last, "best": self.best, "waited": self.waited, "stopped": self.stopped,
            "token_budget": self.rewards.token_budget,
        }  # fmt: skip
        save_training_state(self.directory / STATE, step, self.weights, self.optimizer, extra, ALONE)

    def finish(self) -> RewardOutcome:
        """Leave the model with the best weights, as they will be on disk; what the training came to."""
        if self.best is not None:
            state = torch.load(self.directory / STATE / BEST, map_location="cpu", weights_only=True, mmap=True)
            self.weights.load_state_dict(state)
        self.weights.clear()
        round_head(self.rewards.model, self.config.dtype)
        kept = int(self.last["step"]) if self.best is None else self.best[0]
        found = report(self._judged()) if self.held_out else None
        return RewardOutcome(self.last, kept, self.stopped, found)

    @property
    def note(self) -> str:
        """The last step in a few words."""
        held_out = "" if self.best is None else f", held out {self.best[1]:.3f} at best,"
        return f"loss {self.last['loss']:.3f}{held_out} {self.last['pairs_per_second']:.1f} pairs/s"

    def _restore(self) -> int:
        restored = load_training_state(self.directory / STATE, self.weights, self.optimizer)
        if restored is None:
            return 0
        first, extra = restored
        self.last, self.best, self.waited = extra["last"], extra["best"], extra["waited"]
        self.stopped = extra["stopped"]
        self.rewards.token_budget = min(self.rewards.token_budget, extra["token_budget"])
        return first

    def _backward(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Gradients of the mean loss; the batch's figures. Out of memory, all again with half the token budget."""
        while True:
            self.weights.clear()
            try:
                return self._accumulate(pairs)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.weights.clear()
            self.rewards.halve(pairs)

    def _accumulate(self, pairs: Sequence[Pair]) -> dict[str, float]:
        sums = dict.fromkeys(("loss", "accuracy", "margin", "reward/chosen", "reward/rejected"), 0.0)
        for part in self.rewards.parts(pairs):
            chosen, rejected = self.rewards.of([row for pair in part for row in pair.rows]).view(-1, 2).unbind(1)
            margins, preferences = (
                torch.tensor(each, device=chosen.device)
                for each in ([max(pair.margin, 0.0) for pair in part], [pair.preference for pair in part])
            )
            losses = bradley_terry(
                chosen, rejected, margins, preferences, self.config.margin_weight, self.config.centring
            )
            (losses.sum() / len(pairs)).backward()
            apart = (chosen - rejected).detach()
            sums["loss"] += losses.sum().item()
            sums["accuracy"] += ((apart > 0).float() + 0.5 * (apart == 0).float()).sum().item()
            sums["margin"] += apart.sum().item()
            sums["reward/chosen"] += chosen.sum().item()
            sums["reward/rejected"] += rejected.sum().item()
        return {name: total / len(pairs) for name, total in sums.items()}

    def _evaluate(self, step: int) -> bool:
        """Measure on held-out pairs; whether these are the best weights so far, which are then kept."""
        found = figures(self._judged())
        self.last |= {f"eval/{name}": value for name, value in found.items()}
        if self.best is not None and found["loss"] >= self.best[1]:
            self.waited += 1
            if step < self.steps and self.config.patience is not None and self.waited >= self.config.patience:
                self.stopped = f"{self.waited} evaluations without a lower held-out loss than {self.best[1]:.4f}"
            return False
        self.best, self.waited = (step, found["loss"]), 0
        save_whole(self.weights.state_dict(), self.directory / STATE / BEST)
        return True

    def _judged(self) -> list[Judged]:
        rows = list(dict.fromkeys(row for pair in self.held_out for row in pair.rows))
        rewards = dict(zip(rows, self.rewards.measured(rows), strict=True))
        apart = [rewards[pair.chosen] - rewards[pair.rejected] for pair in self.held_out]
        return [
            Judged(each, pair.preference, len(pair.chosen) - len(pair.rejected))
            for each, pair in zip(apart, self.held_out, strict=True)
        ]
