"""``ratchet judge train``: preference pairs in, a reward model out. Plain functions over the store; no Prefect.

The training is an artifact named by content: token ids, labels, margins, the base's weights, the settings. So the same
command goes on after a kill, and returns at once after the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import datasets
from flows.console import Console
from flows.datasets import Loaded
from flows.offline import Bench, check_free, copy_out, data_of, folder_of
from flows.request import HeldOut, Limits, check_out, held_out_of
from flows.sources import Source, find_policy, find_source
from flows.tables import data_table
from pipeline.config import PretrainedPolicy, RewardTrainerConfig
from pipeline.errors import ConfigError
from pipeline.policy import files_digest, read_policy
from pipeline.store import Artifact, Draft, Spec
from pipeline.types import Policy

if TYPE_CHECKING:
    from trainers.examples import Pair

HELD_OUT = "0.1"
"""Share of the prompts that is held out where nobody says: a reward model that nobody tested is not worth having."""
NOT_LEARNT = {"checkpoint_steps"}
"""Settings that leave the result as it is."""


@dataclass(frozen=True, slots=True)
class RewardRequest:
    """One call of the command."""

    sources: tuple[Source, ...]
    base: Policy | PretrainedPolicy
    trainer: RewardTrainerConfig
    workspace: Path
    out: Path
    held_out: HeldOut = field(default_factory=HeldOut)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0


def ask(
    pairs: Sequence[str], base: str, out: Path, trainer: RewardTrainerConfig, workspace: Path, *,
    held_out: str = HELD_OUT, held_out_split: str | None = None, limits: Limits | None = None, seed: int = 0,
) -> RewardRequest:  # fmt: skip
    """The request of a command line.

    Args:
        pairs: files or folders of rows in TRL's formats, Hub names, a run's pairs (RUN or RUN:ROUND).
        base: a checkpoint's directory, a Hub name, or a run or training by name.
        held_out: a share or a number of the prompts, or a data set.

    Raises:
        ConfigError: something leads nowhere, or ``out`` is somebody else's.
    """
    check_out(out)
    limits = limits or Limits()
    if limits.prompt is not None or limits.completion is not None:
        raise ConfigError("--max-prompt and --max-completion cut, and a reward model reads whole conversations only")
    return RewardRequest(
        tuple(find_source(given, workspace) for given in pairs), find_policy(base, workspace, "--base"), trainer,
        workspace, out, held_out_of(held_out, held_out_split, workspace), limits, seed,
    )  # fmt: skip


def plan(request: RewardRequest, console: Console) -> dict[str, Any]:
    """What :func:`train` would do, JSON-serialisable (for :func:`flows.tables.reward_plan_table`). Makes nothing in the
    workspace, and of a Hub model downloads no weights."""
    place, folder = Bench(request.workspace, console), folder_of(request.base, weights=False)
    loaded = _load(request, folder, console)
    there = any(folder.glob("*.safetensors"))
    made = there and place.store.find(_spec(request, loaded, read_policy(folder))) is not None
    return {
        **data_of(loaded), "lengths": datasets.lengths(loaded.examples.all), "work": _work(request, loaded),
        "cached": {"training": made}, "config": request.trainer.model_dump(mode="json"), "seed": request.seed,
    }  # fmt: skip


def train(request: RewardRequest, console: Console) -> dict[str, Any]:
    """Train, and leave the reward model with all there is to say of it in ``request.out``; the latter,
    JSON-serialisable (for :func:`flows.tables.reward_table`).

    Raises:
        DataError: a data set or the base cannot be used as given.
        ConfigError: ``out`` is another training's, or rows are conversations and the base has no template.
        TrainingError: the training was refused, or went wrong.
    """
    place, folder = Bench(request.workspace, console), folder_of(request.base)
    loaded = _load(request, folder, console)
    console.terminal.print(data_table(data_of(loaded)))
    spec = _spec(request, loaded, read_policy(folder))
    check_free(request.out, spec.key, f"--out {str(request.out)!r}")
    found = place.store.find(spec)
    if found is not None:
        console.say(f"  [green]✓[/] {'train':<12} found in the store, made before in {found.seconds:.1f} s")
    artifact = found or place.store.make(spec, lambda draft: _build(request, folder, loaded, place, draft))
    result = {
        "identity": artifact.key, **artifact.info, **data_of(loaded),
        "config": request.trainer.model_dump(mode="json"), "seed": request.seed, "base": str(folder),
        "reused": found is not None, "seconds": artifact.seconds, "tensorboard": str(artifact.path / "tensorboard"),
        "directory": str(artifact.path), "out": str(request.out.resolve()),
    }  # fmt: skip
    copy_out(artifact.path / "model", result, request.out)
    return result


def _load(request: RewardRequest, folder: Path, console: Console) -> Loaded:
    with console.stage("data") as progress:
        encoder = datasets.make_conversation_encoder(folder, request.limits)
        loaded = datasets.load(request.sources, request.held_out, request.limits, request.seed, encoder)
        progress(0, len(loaded.examples.all), "")
    datasets.check_ids(loaded, folder)
    return loaded


def _work(request: RewardRequest, loaded: Loaded) -> dict[str, int]:
    """What the training will do, unless its patience ends before: steps, forward passes, and their tokens."""
    from pipeline.padding import default_budget
    from trainers.batches import batches_of_epoch
    from trainers.checkpoints import device
    from trainers.rewards import padded_tokens, parts

    trainer, (pairs, _) = request.trainer, _sides(loaded)
    budget = trainer.token_budget or default_budget(device().type)
    epochs = [batches_of_epoch(pairs, epoch, request.seed, trainer.batch_size) for epoch in range(trainer.epochs)]
    passes = [part for batch in epochs[0] for part in parts([pairs[index] for index in batch], budget)]
    return {
        "steps": sum(map(len, epochs)), "epochs": trainer.epochs, "passes": trainer.epochs * len(passes),
        "token_budget": budget, "tokens": trainer.epochs * sum(len(row) for pair in pairs for row in pair.rows),
        "padded_tokens": trainer.epochs * sum(map(padded_tokens, passes)),
    }  # fmt: skip


def _sides(loaded: Loaded) -> "tuple[list[Pair], list[Pair]]":
    """The pairs to train on, and those held out: its encoder makes nothing but pairs."""
    from trainers.examples import Pair

    training, held_out = (
        [example for example in part if isinstance(example, Pair)]
        for part in (loaded.examples.training, loaded.examples.held_out)
    )
    return training, held_out


def _spec(request: RewardRequest, loaded: Loaded, base: Policy) -> Spec:
    from trainers.examples import digest_examples

    digests = {"examples": digest_examples(loaded.examples.training)}
    if loaded.examples.held_out:
        digests["held_out"] = digest_examples(loaded.examples.held_out)
    config = request.trainer.model_dump(mode="json", exclude=NOT_LEARNT) | {"seed": request.seed}
    return Spec("reward", 2, config, {**digests, "base": base.digest, "files": files_digest(base.path)})


def _build(request: RewardRequest, folder: Path, loaded: Loaded, place: Bench, draft: Draft) -> Artifact:
    from trainers.reward_model import train_reward_model

    training, held_out = _sides(loaded)
    if (draft.path / "state").exists():
        place.console.say("  train: going on from where it was interrupted")
    with place.console.stage("train") as progress:
        outcome = train_reward_model(
            folder, training, held_out, request.trainer, request.seed, draft.path, draft.timed(progress)
        )
    steps = int(outcome.metrics["step"])
    return draft.finish(
        {
            "state": "complete" if outcome.stopped is None else "stopped",
            "reason": outcome.stopped or f"all {steps} steps are done",
            "steps": steps, "kept": outcome.kept, "metrics": outcome.metrics, "held_out": outcome.held_out,
        }
    )  # fmt: skip
