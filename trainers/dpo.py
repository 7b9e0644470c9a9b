"""The DPO loop: pairs with cached reference log-probabilities in, an updated model out.

What a step does depends on nothing but the model, the optimiser, the pairs, the config, the seed and the step number.
So a run that is killed and goes on from its last state ends with the same weights, bit for bit (on a CPU, for a given
number of threads).
"""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.config import LossConfig, TrainerConfig
from pipeline.errors import NonFiniteError, StepZeroError, TrainingError
from pipeline.policy import read_policy
from pipeline.protocols import Progress, silent
from pipeline.store import sync
from pipeline.types import Policy, PreferencePair
from trainers.checkpoints import (
    load_model,
    load_tokenizer,
    load_training_state,
    save_policy,
    save_training_state,
)
from trainers.encoding import encode_pairs, pad, special_ids, split_by_budget
from trainers.examples import Row
from trainers.logprobs import autocast, completion_logprobs
from trainers.losses.nll import nll
from trainers.losses.rewards import rewards
from trainers.losses.sigmoid import sigmoid
from trainers.schedule import warmup_then

METRICS = "metrics.jsonl"
STATE = "state"
STEP_ZERO_TOLERANCE = {"float32": 0.01, "bfloat16": 2.0}
"""Nats a completion by which policy and reference may differ before the first update: rounding, never weights."""


@dataclass(frozen=True, slots=True)
class TrainingPair:
    chosen: Row
    rejected: Row
    reference_chosen: float
    """log π_ref(chosen | prompt), nats."""
    reference_rejected: float

    def __len__(self) -> int:
        return 2 * max(len(self.chosen), len(self.rejected))


def train_policy(
    policy: Policy,
    pairs: Sequence[PreferencePair],
    reference_logps: Sequence[tuple[float, float]],
    config: TrainerConfig,
    directory: Path,
    *,
    learning_rate: float,
    seed: int,
    starts_at_reference: bool,
    progress: Progress = silent,
) -> tuple[Policy, dict[str, float]]:
    """Train ``policy`` on ``pairs``, and save the next one under ``directory/policy``, in float32.

    Not in the precision of the first policy: in 16 bit a weight of 0.02 cannot move by less than 6e-5, and a round at
    the learning rates of large models moves it by 1e-5. Whoever serves the policy may round it; the next round may not.

    ``reference_logps`` holds log π_ref of chosen and rejected, a tuple a pair. Called again after a kill, goes on
    from the last state; called again after the end, returns what is there. ``directory`` must be this training's own.
    Raises what :func:`train` raises, and DataError for a pair whose ids no policy can have seen.
    """
    if (directory / "policy").exists():  # it appears whole, and last
        shutil.rmtree(directory / STATE, ignore_errors=True)
        return read_policy(directory / "policy"), json.loads((directory / METRICS).read_text().splitlines()[-1])
    model, tokenizer = load_model(policy.path), load_tokenizer(policy.path)
    specials = special_ids(tokenizer, model)
    encoded = [
        TrainingPair(pair.chosen, pair.rejected, *logps)
        for pair, logps in zip(encode_pairs(pairs, specials), reference_logps, strict=True)
    ]
    metrics = train(
        model, encoded, config, directory, learning_rate=learning_rate, seed=seed,
        starts_at_reference=starts_at_reference, progress=progress,
    )  # fmt: skip
    trained = save_policy(model, tokenizer, directory / "policy")
    shutil.rmtree(directory / STATE, ignore_errors=True)
    return trained, metrics


def train(
    model: PreTrainedModel,
    pairs: Sequence[TrainingPair],
    config: TrainerConfig,
    directory: Path,
    *,
    learning_rate: float,
    seed: int,
    starts_at_reference: bool,
    progress: Progress = silent,
) -> dict[str, float]:
    """Train ``model`` in place and return the last step's metrics.

    ``directory`` gets ``metrics.jsonl``, a line a step, and the state to go on from. ``starts_at_reference`` says that
    the reference is the model itself as given, and has that checked on the first batch.

    Raises:
        StepZeroError: it is not.
        NonFiniteError: a loss or gradient is NaN or infinite; the last state on disk is from before it.
    """
    if not pairs:
        raise TrainingError("there is no pair to train on: pairing dropped every group")
    loop = Loop(model, pairs, config, directory, learning_rate, seed)
    for step in loop.remaining():
        metrics = loop.step(step, check_reference=starts_at_reference and step == 0)
        progress(step + 1, loop.steps, f"loss {metrics['loss']:.3f} margin {metrics['rewards/margins']:.2f}")
    sync(directory / METRICS)
    return loop.last


class Loop:
    """The optimiser, the schedule and the files of one training."""

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: Sequence[TrainingPair],
        config: TrainerConfig,
        directory: Path,
        learning_rate: float,
        seed: int,
    ) -> None:
        self.model, self.pairs, self.config, self.directory, self.seed = model, pairs, config, directory, seed
        self.steps_per_epoch = math.ceil(len(pairs) / config.batch_size)
        self.steps = self.steps_per_epoch * config.epochs
        self.warmup = math.ceil(config.warmup_ratio * self.steps)
        self.peak_rate = learning_rate
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.last: dict[str, float] = {}

    def remaining(self) -> Iterator[int]:
        """The steps still to do, after restoring what an interrupted session left; saves the state on the way."""
        restored = load_training_state(self.directory / STATE, self.model, self.optimizer)
        first, self.last = (restored[0], restored[1]) if restored else (0, {})
        self._cut_metrics(first)
        for step in range(first, self.steps):
            yield step
            if (step + 1) % self.config.checkpoint_steps == 0:
                sync(self.directory / METRICS)  # a state never outlives the lines of the steps before it
                save_training_state(self.directory / STATE, step + 1, self.model, self.optimizer, self.last)

    def step(self, step: int, check_reference: bool) -> dict[str, float]:
        """One optimiser update on the step's batch of pairs."""
        started = time.monotonic()
        batch = [self.pairs[index] for index in self._indices(step)]
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for indices in split_by_budget(batch, len, self.config.token_budget):
            for name, value in self._accumulate([batch[i] for i in indices], len(batch), check_reference).items():
                sums[name] = sums.get(name, 0.0) + value
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
        if not math.isfinite(sums["loss"]) or not math.isfinite(norm):
            raise NonFiniteError(f"step {step}: loss {sums['loss']} and gradient norm {norm} must be finite")
        rate = self.peak_rate * warmup_then(step, self.steps, self.warmup, self.config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        seconds = time.monotonic() - started
        self.last = {
            "step": step + 1, "epoch": (step + 1) / self.steps_per_epoch,
            **{name: value / len(batch) for name, value in sums.items()},
            "grad_norm": norm, "learning_rate": rate, "pairs_per_second": len(batch) / seconds,
        }  # fmt: skip
        with open(self.directory / METRICS, "a") as file:
            file.write(json.dumps(self.last) + "\n")
        return self.last

    def _accumulate(self, pairs: Sequence[TrainingPair], of: int, check_reference: bool) -> dict[str, float]:
        """Add the gradient of ``pairs``' share of the mean loss over ``of`` pairs; their metrics, summed."""
        rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
        reference = torch.tensor(
            [value for pair in pairs for value in (pair.reference_chosen, pair.reference_rejected)],
            dtype=torch.float64,
            device=self.model.device,
        )
        with autocast(self.model.device, self.config.dtype):
            logps, lengths = completion_logprobs(self.model, pad(rows, 0, self.model.device))
        if check_reference:
            self._check_reference(logps, reference)
        args = (logps[0::2], logps[1::2], reference[0::2], reference[1::2], self.config.beta)
        loss = sum(term.weight * self._term(term, args, lengths[0::2]) for term in self.config.loss)
        assert isinstance(loss, Tensor)
        (loss.sum() / of).backward()
        chosen, rejected = rewards(*args)
        figures = {
            "loss": loss, "rewards/chosen": chosen, "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected, "rewards/accuracies": (chosen > rejected).double(),
            "logps/chosen": logps[0::2], "logps/rejected": logps[1::2],
            "lengths/chosen": lengths[0::2].double(), "lengths/rejected": lengths[1::2].double(),
            "nll": nll(logps[0::2], lengths[0::2]),
        }  # fmt: skip
        return {name: float(value.detach().sum()) for name, value in figures.items()}

    @staticmethod
    def _term(term: LossConfig, args: tuple[Tensor, Tensor, Tensor, Tensor, float], lengths: Tensor) -> Tensor:
        match term.type:
            case "sigmoid":
                return sigmoid(*args)
            case "nll":
                return nll(args[0], lengths)
            case _:
                raise NotImplementedError(term.type)

    def _check_reference(self, logps: Tensor, reference: Tensor) -> None:
        gap = float((logps.detach() - reference).abs().max())
        tolerance = STEP_ZERO_TOLERANCE[self.config.dtype]
        if not gap <= tolerance:
            raise StepZeroError(
                f"before the first update the policy is up to {gap:.3g} nats a completion away from its reference;"
                f" allowed: {tolerance}. The cached reference is of other weights or tokens"
            )

    def _indices(self, step: int) -> list[int]:
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.pairs), generator=generator).tolist()
        return order[position * self.config.batch_size : (position + 1) * self.config.batch_size]

    def _cut_metrics(self, steps: int) -> None:
        """Drop the lines of steps that will run again, and a line torn by a kill."""
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / METRICS
        file.touch()
        lines = file.read_bytes().splitlines(keepends=True)
        os.truncate(file, sum(len(line) for line in lines[:steps]))  # unlike a rewrite, a kill here loses no line
