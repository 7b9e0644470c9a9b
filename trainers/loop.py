"""The loop: batches in, weights moved, a line of metrics a step, and a state to go on from."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.config import TrainerConfig
from pipeline.errors import NonFiniteError, StepZeroError
from pipeline.store import sync
from trainers.batches import batches_of_epoch
from trainers.checkpoints import load_training_state, save_training_state
from trainers.schedule import warmup_then
from trainers.step import Step
from trainers.weights import Weights

if TYPE_CHECKING:
    from trainers.dpo import Lesson

METRICS = "metrics.jsonl"
STATE = "state"
STEP_ZERO_TOLERANCE = {"float32": 0.01, "bfloat16": 2.0}
"""Nats a completion by which policy and reference may differ before the first update: rounding, never weights."""


class Loop:
    """The optimiser, the schedule and the files of one training."""

    def __init__(self, step: Step, weights: Weights, lesson: "Lesson", config: TrainerConfig, directory: Path) -> None:
        self.gradients, self.weights, self.lesson, self.config, self.directory = (
            step,
            weights,
            lesson,
            config,
            directory,
        )
        self.batches = [
            (epoch, batch)
            for epoch in range(config.epochs)
            for batch in batches_of_epoch(lesson.examples, epoch, lesson.seed, config.batch_size, config.batch_tokens)
        ]
        self.steps = len(self.batches)
        self.warmup = math.ceil(config.warmup_ratio * self.steps)
        self.optimizer = torch.optim.AdamW(
            list(weights), lr=lesson.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.last: dict[str, float] = {}

    def remaining(self) -> Iterator[int]:
        """The steps still to do, after restoring what an interrupted session left; saves the state on the way."""
        first = self._restore()
        self._cut_metrics(first)
        for step in range(first, self.steps):
            yield step
            if (step + 1) % self.config.checkpoint_steps == 0:
                self.save(step + 1)

    def step(self, step: int) -> dict[str, float]:
        """One optimiser update on the step's batch."""
        started = time.monotonic()
        epoch, batch = self.batches[step]
        self.weights.clear()
        figures = self.gradients.backward([self.lesson.examples[index] for index in batch])
        if step == 0 and self.lesson.starts_at_reference:
            self._check_reference()
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.weights), self.config.max_grad_norm))
        if not math.isfinite(figures["loss"]) or not math.isfinite(norm):
            raise NonFiniteError(f"step {step}: loss {figures['loss']} and gradient norm {norm} must be finite")
        rate = self.lesson.learning_rate * warmup_then(step, self.steps, self.warmup, self.config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.weights.publish()
        seconds = time.monotonic() - started
        self.last = {
            "step": step + 1, "epoch": epoch, **figures, "grad_norm": norm, "learning_rate": rate,
            "pairs_per_second": len(batch) / seconds,
        }  # fmt: skip
        with open(self.directory / METRICS, "a") as file:
            file.write(json.dumps(self.last) + "\n")
        return self.last

    def save(self, step: int) -> None:
        """Keep all that step number ``step`` depends on. A state never outlives the lines of the steps before it."""
        sync(self.directory / METRICS)
        extra = {"last": self.last, "objective": self.gradients.objective.state}
        save_training_state(self.directory / STATE, step, self.weights, self.optimizer, extra)

    def _restore(self) -> int:
        restored = load_training_state(self.directory / STATE, self.weights, self.optimizer)
        if restored is None:
            return 0
        first, extra = restored
        self.last, self.gradients.objective.state = extra["last"], extra["objective"]
        return first

    def _check_reference(self) -> None:
        gap, tolerance = self.gradients.totals.gap, STEP_ZERO_TOLERANCE[self.config.dtype]
        if not gap <= tolerance:
            raise StepZeroError(
                f"before the first update the policy is up to {gap:.3g} nats a completion away from its reference;"
                f" allowed: {tolerance}. The cached reference is of other weights or tokens"
            )

    def _cut_metrics(self, steps: int) -> None:
        """Drop the lines of steps that will run again, and a line torn by a kill."""
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / METRICS
        file.touch()
        lines = file.read_bytes().splitlines(keepends=True)
        os.truncate(file, sum(len(line) for line in lines[:steps]))  # unlike a rewrite, a kill here loses no line
