"""The loop: batches in, weights moved, a line of figures a step, and a state to go on from."""

import logging
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from pipeline.config import TrainerConfig
from pipeline.errors import NonFiniteError, StepZeroError
from trainers.batches import batches_of_epoch
from trainers.checkpoints import STATE, load_training_state, save_training_state
from trainers.examples import Example
from trainers.flops import Arithmetic, utilisation
from trainers.guards import reason_to_stop
from trainers.lesson import Lesson
from trainers.memory import begin_peak, halve_budget, is_out_of_memory, peak_memory
from trainers.metrics import Recorder
from trainers.packing import group_rows
from trainers.samples import sample_completions
from trainers.schedule import warmup_then
from trainers.step import Step
from trainers.weights import Weights

log = logging.getLogger("ratchet.trainers")

STEP_ZERO_TOLERANCE = {"float32": 0.01, "bfloat16": 2.0}
"""Nats a completion by which policy and reference may differ before the first update: rounding, never weights."""
STEP_ZERO_MEAN = {"float32": 0.01, "bfloat16": 0.5}
"""The same of the first batch's mean: rounding goes both ways, another round's weights do not."""


class Loop:
    """The optimiser, the schedule and the files of one training. Of several processes the first writes the files."""

    def __init__(
        self,
        step: Step,
        weights: Weights,
        lesson: Lesson,
        config: TrainerConfig,
        directory: Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.gradients, self.weights, self.lesson, self.config = step, weights, lesson, config
        self.directory, self.tokenizer = directory, tokenizer
        self.batches: list[tuple[float, list[int]]] = []
        """Each step's examples, and how many epochs are over after it."""
        for epoch in range(config.epochs):
            found = batches_of_epoch(lesson.examples, epoch, lesson.seed, config.batch_size, config.batch_tokens)
            self.batches += [(epoch + number / len(found), batch) for number, batch in enumerate(found, 1)]
        self.steps = len(self.batches)
        self.warmup = math.ceil(config.warmup_ratio * self.steps)
        self.optimizer = torch.optim.AdamW(
            list(weights), lr=lesson.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.arithmetic = Arithmetic(step.policy.model)
        self.measured_at_once = step.token_budget
        """Tokens that an evaluation forwards at once, at most."""
        self.recorder: Recorder | None = None
        self.last: dict[str, float] = {}
        """The last step's figures."""
        self.stopped: str | None = None
        """Why the training ended before its last step, if it did."""

    def remaining(self) -> Generator[int, None, None]:
        """The steps still to do, after restoring what an interrupted session left; saves the state on the way."""
        begin_peak(self.gradients.policy.model.device)
        first = self._restore()
        if self.gradients.share.writes:
            self.recorder = Recorder(self.directory, first)
        try:
            for step in range(first, self.steps):
                if self.stopped is not None:
                    return
                yield step
                # After the last one too: what remains, to merge and to write, may take long, or find the disk full.
                ended = self.stopped is not None or step + 1 == self.steps
                if ended or (step + 1) % self.config.checkpoint_steps == 0:
                    self.save(step + 1)
        finally:
            if self.recorder is not None:
                self.recorder.close()

    def step(self, step: int) -> dict[str, float]:
        """One optimiser update on the step's batch, unless a guard fires; the step's figures.

        They are of the weights before the update, but for "eval/…", measured after it.
        """
        started = time.monotonic()
        epoch, batch = self.batches[step]
        examples = [self.lesson.examples[index] for index in batch]
        figures = self._within_memory(self.gradients.backward, examples, lambda: self.save(step))
        if step == 0 and self.lesson.starts_at_reference:
            self._check_reference(figures)
        norm = self.weights.clip(self.config.max_grad_norm)
        if not math.isfinite(figures["loss"]) or not math.isfinite(norm):
            raise NonFiniteError(f"step {step}: loss {figures['loss']} and gradient norm {norm} must be finite")
        rate = self.lesson.learning_rate * warmup_then(step, self.steps, self.warmup, self.config.schedule)
        self.stopped = reason_to_stop(self.config.guards, figures)
        if self.stopped is None:
            self._update(rate)
        self.last = {
            "step": step + 1, "epoch": epoch, **figures, "grad_norm": norm, "learning_rate": rate,
            **self._cost(examples, time.monotonic() - started),
        }  # fmt: skip
        evaluated = (step + 1) % self.config.eval_steps == 0 or step + 1 == self.steps or self.stopped is not None
        if evaluated and self.lesson.held_out:
            self.last |= {f"eval/{name}": value for name, value in self._measured().items()}
        self._record(sampled=evaluated)
        return self.last

    def save(self, step: int) -> None:
        """Keep all that step number ``step`` depends on. A state never outlives the lines of the steps before it."""
        if self.recorder is not None:
            self.recorder.sync()
        extra = {
            "last": self.last, "objective": self.gradients.objective.state,
            "token_budget": self.gradients.token_budget, "stopped": self.stopped,
        }  # fmt: skip
        save_training_state(self.directory / STATE, step, self.weights, self.optimizer, extra, self.gradients.share)

    @property
    def note(self) -> str:
        """The last step in a few words."""
        margin = f" margin {self.last['rewards/margins']:.2f}" if "rewards/margins" in self.last else ""
        budget = self.gradients.token_budget
        halved = f" token budget {budget}" if budget < self.config.token_budget else ""
        stopped = "" if self.stopped is None else " ended early"
        return f"loss {self.last['loss']:.3f}{margin} {self.last['pairs_per_second']:.1f} pairs/s{halved}{stopped}"

    def _restore(self) -> int:
        restored = load_training_state(self.directory / STATE, self.weights, self.optimizer)
        if restored is None:
            return 0
        first, extra = restored
        self.last, self.gradients.objective.state = extra["last"], extra["objective"]
        self.stopped = extra["stopped"]
        self.gradients.token_budget = min(self.gradients.token_budget, extra["token_budget"])
        return first

    def _within_memory(
        self,
        work: Callable[[Sequence[Example]], dict[str, float]],
        examples: Sequence[Example],
        keep: Callable[[], None] | None = None,
    ) -> dict[str, float]:
        """``work`` on ``examples``; where memory runs out, all over again with half the token budget.

        The budget is part of the rounding, so ``keep`` is called to save it for whoever resumes.
        """
        objective = self.gradients.objective
        state = dict(objective.state)
        while True:
            self.weights.clear()
            try:
                return work(examples)
            except (RuntimeError, MemoryError) as error:
                # Several processes would each halve at another moment, and wait for each other for ever.
                if self.gradients.share.size > 1 or not is_out_of_memory(error):
                    raise
                lack = error.with_traceback(None)  # its frames hold the step's tensors
            self.weights.clear()
            objective.state = dict(state)
            self.gradients.free()
            rows, _ = self.gradients.rows(examples)
            self.gradients.token_budget = halve_budget(self.gradients.token_budget, rows, lack)
            if keep is not None:
                keep()

    def _measured(self) -> dict[str, float]:
        """Figures of the held-out examples. A budget that memory halves here is the evaluations' alone: the training's
        is part of its rounding, and the last state, from before this step's update, has it as it was."""
        training = self.gradients.token_budget
        self.gradients.token_budget = min(training, self.measured_at_once)
        try:
            return self._within_memory(self.gradients.measure, self.lesson.held_out)
        finally:
            self.measured_at_once, self.gradients.token_budget = self.gradients.token_budget, training

    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not self.optimizer.state:
            self.gradients.free()  # its first step takes twice the weights for good
        self.optimizer.step()
        self.weights.publish()

    def _cost(self, examples: Sequence[Example], seconds: float) -> Mapping[str, float]:
        """How much was trained on in how long: tokens as packed, each prompt and each of its completions once."""
        rows = list(dict.fromkeys(row for example in examples for row in example.rows))
        groups, device = group_rows(rows), self.gradients.policy.model.device
        tokens = sum(group.tokens for group in groups)
        cost: dict[str, float] = {} if self.lesson.truncated is None else {
            "truncated": sum(row in self.lesson.truncated for row in rows) / len(rows)
        }  # fmt: skip
        cost |= {
            "tokens": tokens, "tokens_per_second": tokens / seconds, "pairs_per_second": len(examples) / seconds,
            **peak_memory(device),
        }  # fmt: skip
        mfu = utilisation(self.arithmetic.flops(groups), seconds, device, self.gradients.share.size)
        return cost if mfu is None else {**cost, "mfu": mfu}

    def _record(self, sampled: bool) -> None:
        if self.recorder is not None:
            ended = {} if self.stopped is None else {"stopped": self.stopped}
            self.recorder.write({**self.last, **ended})
        if sampled and self.lesson.sample_prompts and self.tokenizer is not None:
            self._show_samples(self.tokenizer)

    def _show_samples(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """People watch by them and nothing depends on them: where memory runs out, there are none this time."""
        try:
            samples = sample_completions(self.gradients.policy, self.lesson.sample_prompts, tokenizer)
        except (RuntimeError, MemoryError) as error:
            if self.gradients.share.size > 1 or not is_out_of_memory(error):  # as in a step
                raise
            self.gradients.free()
            log.warning("out of memory on sample completions; step %d has none", self.last["step"])
            return
        if self.recorder is not None:
            self.recorder.write_samples(int(self.last["step"]), samples)

    def _check_reference(self, figures: Mapping[str, float]) -> None:
        gap, tolerance = self.gradients.totals.gap, STEP_ZERO_TOLERANCE[self.config.dtype]
        mean, mean_tolerance = abs(figures["kl"]), STEP_ZERO_MEAN[self.config.dtype]
        if not (gap <= tolerance and mean <= mean_tolerance):
            raise StepZeroError(
                f"before the first update the policy is up to {gap:.3g} nats a completion away from its reference, and"
                f" {mean:.3g} in the mean; allowed: {tolerance} and {mean_tolerance}."
                " The cached reference is of other weights or tokens"
            )
