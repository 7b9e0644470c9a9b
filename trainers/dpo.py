"""A training: a policy and preferences in, the next policy out.

What a step does depends on nothing but the weights, the optimiser, the examples, the config, the seed and the step
number. So a run that is killed and goes on from its last state ends with the same weights: bit for bit on a CPU, for a
given number of threads; on a GPU but for the order in which its kernels add.
"""

import json
import shutil
from contextlib import closing
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import TrainerConfig
from pipeline.errors import TrainingError
from pipeline.policy import read_policy
from pipeline.protocols import Progress, silent
from pipeline.types import Policy
from trainers.checkpoints import STATE, load_model, load_tokenizer, save_policy
from trainers.examples import Pair, Single
from trainers.interruption import noticed
from trainers.lesson import Lesson, Trained
from trainers.loop import Loop
from trainers.memory import enough_for
from trainers.metrics import METRICS
from trainers.objective import Objective
from trainers.packed import PackedPolicy, prove
from trainers.parallel import ALONE, ShardedWeights, Share, shard, whole
from trainers.reference import Reference
from trainers.step import Step
from trainers.weights import DTYPES, Weights


def objective_of(config: TrainerConfig) -> Objective:
    return Objective(config.loss, config.beta, config.betas)


@enough_for(
    "while training",
    'less is needed with trainer.dtype = "bfloat16", trainer.recompute = true, trainer.lora or more trainer.processes',
)
def train_policy(
    policy: Policy,
    lesson: Lesson,
    config: TrainerConfig,
    directory: Path,
    progress: Progress = silent,
    share: Share = ALONE,
) -> tuple[Policy, Trained]:
    """Train ``policy``, and save the next one under ``directory/policy``, in float32; adapters merged into it.

    Not in the precision of the first policy: in 16 bit a weight of 0.02 cannot move by less than 6e-5, and a round at
    the learning rates of large models moves it by 1e-5. Whoever serves the policy may round it; the next round may not.

    Called again after a kill, goes on from the last state; called again after the end, returns what is there.
    ``directory`` must be this training's own. Of several processes each calls it with its ``share``, and the first one
    saves. Raises what :func:`train` and :func:`trainers.adapters.add_adapters` raise.
    """
    saved = finished(directory)
    if saved is not None:
        return saved
    tokenizer = load_tokenizer(policy.path)
    model = _load(policy, lesson, config, share)
    trained = train(model, lesson, config, directory, progress, tokenizer, share)
    whole_model = _export(model, policy, config, directory, share)
    del model
    if whole_model is None:
        return policy, trained
    exported = save_policy(whole_model, tokenizer, directory / "policy")
    shutil.rmtree(directory / STATE, ignore_errors=True)
    return exported, trained


def finished(directory: Path) -> tuple[Policy, Trained] | None:
    """What a training in ``directory`` came to, if it is at its end."""
    if (directory / "policy").exists():  # it appears whole, and last
        shutil.rmtree(directory / STATE, ignore_errors=True)
        metrics = json.loads((directory / METRICS).read_text().splitlines()[-1])
        stopped = metrics.pop("stopped", None)
        return read_policy(directory / "policy"), Trained(metrics, stopped)
    return None


def _load(policy: Policy, lesson: Lesson, config: TrainerConfig, share: Share) -> PreTrainedModel:
    """What is to be trained; where it will be sharded, on the CPU."""
    place = None if share.size == 1 else torch.device("cpu")
    if config.lora is None:
        return load_model(policy.path, place=place)
    from trainers.adapters import add_adapters, load_base  # peft takes a second to import

    model = load_base(policy.path, config.lora, DTYPES[config.dtype], place)
    add_adapters(model, config.lora, lesson.seed)
    return model


def _export(
    model: PreTrainedModel, policy: Policy, config: TrainerConfig, directory: Path, share: Share
) -> PreTrainedModel | None:
    """The trained model, whole, unrounded and without adapters; None where another process saves it."""
    if config.lora is None and share.size == 1:
        return model
    trained = whole({name: each for name, each in model.named_parameters() if each.requires_grad}, share)
    if not share.writes:
        return None
    if config.lora is not None:
        from trainers.adapters import merge

        return merge(policy.path, config.lora, trained, directory)
    fresh = load_model(policy.path, place=torch.device("cpu"))  # a sharded model does not run like another
    fresh.load_state_dict(trained, strict=False)
    return fresh


def train(
    model: PreTrainedModel,
    lesson: Lesson,
    config: TrainerConfig,
    directory: Path,
    progress: Progress = silent,
    tokenizer: PreTrainedTokenizerBase | None = None,
    share: Share = ALONE,
) -> Trained:
    """Train ``model`` in place: those of its weights that want a gradient, which are in float32 at the end.

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
    everything = (*lesson.examples, *lesson.held_out)
    prove(model, max(len(row) for example in everything for row in example.rows))
    if share.size == 1:
        weights = Weights(model, config.dtype)
        policy = PackedPolicy(model, weights, recompute=config.recompute, compile=config.compile)
    else:
        policy = PackedPolicy(model, recompute=config.recompute, compile=config.compile)
        shard(policy, config.dtype)
        policy.weights = weights = ShardedWeights(policy)
    step = Step(
        policy, objective, lesson.reference, config.token_budget, _live(policy, lesson, config, share),
        mismatched=lesson.mismatched, initial=lesson.initial_logps, share=share,
    )  # fmt: skip
    loop = Loop(step, weights, lesson, config, directory, tokenizer)
    _run(loop, progress)
    weights.release()
    policy.unpack()
    return Trained(loop.last, loop.stopped)


def _live(policy: PackedPolicy, lesson: Lesson, config: TrainerConfig, share: Share) -> PackedPolicy | None:
    """The reference in memory; the policy's own base where it is that."""
    if lesson.live is None:
        return None
    if config.lora is not None and lesson.starts_at_reference:
        from trainers.adapters import BasePolicy

        return BasePolicy(policy)
    if share.size == 1:
        return Reference(lesson.live, config.dtype, config.token_budget, config.lora).policy
    live = PackedPolicy(load_model(lesson.live.path, place=torch.device("cpu")).requires_grad_(False))
    shard(live, config.dtype)
    return live


def _run(loop: Loop, progress: Progress) -> None:
    with noticed() as interruption, closing(loop.remaining()) as remaining:
        for number in remaining:
            loop.step(number)
            progress(number + 1, loop.steps, loop.note)
            signal = interruption.of_any(loop.gradients.share)
            if signal is not None:
                loop.save(number + 1)
                interruption.leave(signal)
