"""A training: a policy and preferences in, the next policy out.

What a step does depends on nothing but the weights, the optimiser, the examples, the config, the seed and the step
number. So a run that is killed and goes on from its last state ends with the same weights, bit for bit (on one device;
on a CPU, for a given number of threads).
"""

import json
import shutil
from collections.abc import Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import TrainerConfig
from pipeline.errors import TrainingError
from pipeline.policy import read_policy
from pipeline.protocols import Progress, silent
from pipeline.types import Policy
from trainers.checkpoints import load_model, load_tokenizer, save_policy
from trainers.examples import Example, Pair, Row, Single
from trainers.interruption import noticed
from trainers.loop import STATE, Loop
from trainers.metrics import METRICS
from trainers.objective import Objective
from trainers.packed import PackedPolicy, prove
from trainers.step import KnownReference, Step
from trainers.weights import DTYPES, Weights


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one training learns from, and how fast."""

    examples: Sequence[Example]
    reference: KnownReference
    learning_rate: float
    seed: int
    starts_at_reference: bool
    """The reference is the policy itself as given; checked on the first batch."""
    mismatched: Mapping[Row, Row] = field(default_factory=dict)
    """Each row's prompt with another's completion, where the objective needs "mismatched"."""
    initial_logps: Mapping[Row, float] = field(default_factory=dict)
    """log π₀ of the rows, nats, for a KL to the very first policy; may be empty."""
    live: Policy | None = None
    """The reference, to hold in memory beside the policy where the objective needs "reference_kl"."""
    held_out: Sequence[Example] = ()
    """Examples of other prompts, never trained on; their rows are in ``reference`` (and ``mismatched``) too."""
    sample_prompts: Sequence[tuple[int, ...]] = ()
    """Prompts, as token ids, whose likeliest completions are written down beside each evaluation."""
    truncated: Set[Row] | None = None
    """Rows whose completion was cut at a length limit, for a figure; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training came to."""

    metrics: dict[str, float]
    """The last step's figures."""
    stopped: str | None
    """What the guard said that ended it; None where it took all its steps."""


def objective_of(config: TrainerConfig) -> Objective:
    return Objective(config.loss, config.beta, config.betas)


def train_policy(
    policy: Policy, lesson: Lesson, config: TrainerConfig, directory: Path, progress: Progress = silent
) -> tuple[Policy, Trained]:
    """Train ``policy``, and save the next one under ``directory/policy``, in float32.

    Not in the precision of the first policy: in 16 bit a weight of 0.02 cannot move by less than 6e-5, and a round at
    the learning rates of large models moves it by 1e-5. Whoever serves the policy may round it; the next round may not.

    Called again after a kill, goes on from the last state; called again after the end, returns what is there.
    ``directory`` must be this training's own. Raises what :func:`train` raises.
    """
    if (directory / "policy").exists():  # it appears whole, and last
        shutil.rmtree(directory / STATE, ignore_errors=True)
        metrics = json.loads((directory / METRICS).read_text().splitlines()[-1])
        stopped = metrics.pop("stopped", None)
        return read_policy(directory / "policy"), Trained(metrics, stopped)
    model, tokenizer = load_model(policy.path), load_tokenizer(policy.path)
    trained = train(model, lesson, config, directory, progress, tokenizer)
    saved = save_policy(model, tokenizer, directory / "policy")
    shutil.rmtree(directory / STATE, ignore_errors=True)
    return saved, trained


def train(
    model: PreTrainedModel,
    lesson: Lesson,
    config: TrainerConfig,
    directory: Path,
    progress: Progress = silent,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Trained:
    """Train ``model`` in place, its weights in float32 at the end.

    ``directory`` gets ``metrics.jsonl``, a line a step, the same for TensorBoard, where there is a ``tokenizer`` the
    lesson's sample completions, and the state to go on from. On SIGTERM and Ctrl-C, where nobody else handles them,
    the step ends, the state is saved, and the process leaves (SystemExit, KeyboardInterrupt).

    Raises:
        TrainingError: there is nothing to train on, the model cannot run on packed prompts, or memory is too small.
        DataError: the objective cannot take the examples.
        StepZeroError: the policy is not its reference, and should be.
        NonFiniteError: a loss or gradient is NaN or infinite; the last state on disk is from before it.
    """
    if not lesson.examples:
        raise TrainingError("there is nothing to train on: no pair is left")
    objective = objective_of(config)
    objective.check(
        any(isinstance(example, Pair) for example in lesson.examples),
        any(isinstance(example, Single) for example in lesson.examples),
    )
    prove(model, max(len(row) for example in lesson.examples for row in example.rows))
    weights = Weights(model, config.dtype)
    policy = PackedPolicy(model, weights, recompute=config.recompute, compile=config.compile)
    live = None if lesson.live is None else PackedPolicy(load_model(lesson.live.path, DTYPES[config.dtype]))
    step = Step(
        policy, objective, lesson.reference, config.token_budget, live,
        mismatched=lesson.mismatched, initial=lesson.initial_logps,
    )  # fmt: skip
    loop = Loop(step, weights, lesson, config, directory, tokenizer)
    _run(loop, progress)
    weights.release()
    policy.unpack()
    return Trained(loop.last, loop.stopped)


def _run(loop: Loop, progress: Progress) -> None:
    with noticed() as interruption, closing(loop.remaining()) as remaining:
        for number in remaining:
            loop.step(number)
            progress(number + 1, loop.steps, loop.note)
            signal = interruption.of_any(loop.gradients.share)
            if signal is not None:
                if loop.stopped is None:  # else the steps since the last state run again, and it stops again
                    loop.save(number + 1)
                interruption.leave(signal)
