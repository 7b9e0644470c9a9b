"""Training without rounds: an existing data set in, a policy out. Plain functions over the store; no Prefect.

    data set → examples → reference → train → trained/<name>/

What a round does with its own pairs (``flows.training``), done with anybody's. Reference and training are artifacts
named by content: token ids, labels, margins, the policy's weights, the settings. So the same command goes on after a
kill and returns at once after the end; and a sweep over β or the learning rate shares one reference.
"""

import json
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows import datasets
from flows.console import Console
from flows.datasets import Loaded
from flows.request import Request
from flows.start import download, policy_of, pretrained_policy, pretrained_spec
from flows.tables import data_table
from flows.training import NOT_LEARNT, Compared, Making, Material, learn, score
from pipeline.commands import note_command
from pipeline.config import PretrainedPolicy
from pipeline.errors import ConfigError
from pipeline.policy import files_digest, read_policy
from pipeline.runs import RESULT, TRAINED, symlink
from pipeline.store import Artifact, Draft, Store, digest, sync, write_json
from pipeline.types import Policy

LAST = 10
"""Steps whose mean is shown, since one batch says little."""


class Bench:
    """A workplace without an engine."""

    def __init__(self, workspace: Path, console: Console) -> None:
        self.store = Store(workspace.resolve() / "artifacts")
        self.console = console

    def warm_up(self) -> None:
        """Nothing samples here."""

    def free_device(self, stage: str) -> None:
        """Nothing holds it."""


# ---------------------------------------------------------------------------------------------- what would be done
def plan(request: Request, console: Console) -> dict[str, Any]:
    """What :func:`train` would do, JSON-serialisable. Makes nothing in the workspace."""
    trainer, place = request.trainer, Bench(request.workspace, console)
    loaded = _load(request, console)
    policy, against = (_known(place.store, each) for each in (request.policy, request.reference or request.policy))
    scored = trained = False
    if policy is not None and against is not None:
        material, compared = loaded.material(trainer), None
        if trainer.reference != "none" and (logps := place.store.find(score(place, material, against, trainer)[0])):
            scored, compared = True, Compared(against, logps)
        if scored or trainer.reference == "none":
            spec, _ = learn(place, material, policy, trainer, request.seed, reference=compared)
            trained = place.store.find(spec) is not None
    return {
        **data_of(loaded), "lengths": datasets.lengths(loaded.examples.all),
        "work": datasets.work(loaded.examples, trainer, request.seed),
        "cached": {"reference": scored, "training": trained},
        "config": trainer.model_dump(mode="json"), "seed": request.seed,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- doing it
def train(request: Request, console: Console) -> dict[str, Any]:
    """Train, and leave the policy and all there is to say of it in ``trained/<name>/``; the latter, JSON-serialisable.

    Raises:
        DataError: a data set or a policy cannot be used as given.
        ConfigError: the name or the folder is another training's.
        TrainingError: the training was refused, or went wrong.
    """
    trainer, place = request.trainer, Bench(request.workspace, console)
    loaded = _load(request, console)
    console.terminal.print(data_table(data_of(loaded)))
    policy = _take_in(place, request.policy)
    against = policy if request.reference is None else _take_in(place, request.reference)
    _check_vocabularies(policy, against)
    material = loaded.material(trainer)
    identity = _identity(request, material, policy, against)
    name = request.name or f"{request.sources[0].name}-{identity[:8]}"
    directory = request.workspace.resolve() / TRAINED / name
    for folder, flag in ((directory, f"--name {name!r}"), (request.out, f"--out {str(request.out)!r}")):
        check_free(folder, identity, flag)

    note_command(directory, identity)
    reference, scored = None, None
    if trainer.reference != "none":
        artifact, scored = _make(place, "reference", score(place, material, against, trainer))
        reference = Compared(against, artifact)
    artifact, trained = _make(
        place, "train", learn(place, material, policy, trainer, request.seed, reference=reference)
    )
    result = {
        "name": name, "identity": identity, **_outcome(artifact), **data_of(loaded),
        "start": policy.digest, "reference": scored and {"policy": against.digest, **scored}, "training": trained,
        "config": trainer.model_dump(mode="json"), "seed": request.seed,
        "directory": str(directory), "out": None if request.out is None else str(request.out.resolve()),
    }  # fmt: skip
    _leave(result, artifact, directory, request.out)
    return result


def _load(request: Request, console: Console) -> Loaded:
    """The examples, by the tokenizer of the policy as it lies; and what can be said against them."""
    from trainers.dpo import objective_of
    from trainers.examples import Pair

    folder = folder_of(request.policy, weights=False)
    with console.stage("data") as progress:
        encoder = datasets.make_encoder(folder, request.limits)
        loaded = datasets.load(request.sources, request.held_out, request.limits, request.seed, encoder)
        progress(0, len(loaded.examples.all), "")
    datasets.check_ids(loaded, folder)
    datasets.check_sources(loaded, request.trainer)
    pairs = [example for example in loaded.examples.all if isinstance(example, Pair)]
    objective = objective_of(request.trainer)
    objective.check(bool(pairs), len(pairs) < len(loaded.examples.all))
    for line in objective.check_labels(pairs):
        console.say(f"  [yellow]![/] {line}")
    return loaded


def folder_of(policy: Policy | PretrainedPolicy, weights: bool = True) -> Path:
    """Where the model lies; of a Hub model without ``weights`` the tokenizer and the configuration are enough."""
    if isinstance(policy, Policy):
        return policy.path
    return Path(policy.path) if Path(policy.path).is_dir() else download(policy, weights)


def _known(store: Store, policy: Policy | PretrainedPolicy) -> Policy | None:
    """The policy as :func:`_take_in` would give it; None where it would have to be downloaded."""
    if isinstance(policy, Policy):
        return policy
    artifact = store.find(pretrained_spec(policy))
    if artifact is not None:
        return policy_of(artifact)
    return read_policy(Path(policy.path)) if Path(policy.path).is_dir() else None


def _take_in(place: Bench, policy: Policy | PretrainedPolicy) -> Policy:
    return policy if isinstance(policy, Policy) else policy_of(pretrained_policy(place, policy))


def _check_vocabularies(policy: Policy, reference: Policy) -> None:
    """Raises ConfigError where ids mean one thing to the policy and another to its reference."""
    from trainers.checkpoints import load_tokenizer

    if reference.path != policy.path and (
        load_tokenizer(reference.path).get_vocab() != load_tokenizer(policy.path).get_vocab()
    ):
        raise ConfigError("--reference-policy has another vocabulary than --policy; allowed: one with the same")


def _identity(request: Request, material: Material, policy: Policy, reference: Policy) -> str:
    """A digest of all that the result depends on, known before anything heavy is done."""
    trainer = request.trainer.model_dump(mode="json", exclude=set(NOT_LEARNT))
    against = None if request.trainer.reference == "none" else reference.digest
    start = [policy.digest, files_digest(policy.path)]
    return digest([dict(material.names), start, against, trainer, request.seed])[:32]


def check_free(folder: Path | None, identity: str, flag: str) -> None:
    """Raises ConfigError where the folder holds the result of another training."""
    if folder is None or not (folder / RESULT).is_file():
        return
    try:
        other = json.loads((folder / RESULT).read_text())["identity"]
    except (ValueError, KeyError):
        other = None
    if other != identity:
        raise ConfigError(f"{flag} is another training's, of other data, policy or settings; give another")


def _make(place: Bench, name: str, making: Making) -> tuple[Artifact, dict[str, Any]]:
    """The artifact, and for people whether it was there."""
    spec, build = making
    found = place.store.find(spec)

    def going_on(draft: Draft) -> Artifact:
        if draft.reused or (draft.path / "state").exists():
            place.console.say(f"  {name}: going on from where it was interrupted")
        return build(draft)

    artifact = found or place.store.make(spec, going_on)
    if found is not None:
        place.console.say(f"  [green]✓[/] {name:<12} found in the store, made before in {found.seconds:.1f} s")
    return artifact, {"key": artifact.key, "reused": found is not None, "seconds": artifact.seconds}


# ---------------------------------------------------------------------------------------------- what came of it
def _outcome(training: Artifact) -> dict[str, Any]:
    """How a training ended, from its artifact alone, so that it says the same whenever it is asked."""
    lines = [json.loads(line) for line in (training.path / "metrics.jsonl").read_text().splitlines()]
    metrics, stopped = training.info["metrics"], training.info["stopped"]
    recent = [name for line in lines[-LAST:] for name in line]  # a batch without such examples has no such figure
    names = [name for name in lines[0] if isinstance(lines[0][name], float) and name in recent]
    return {
        "state": "complete" if stopped is None else "stopped",
        "reason": stopped or f"all {len(lines)} steps are done",
        "policy": {"digest": training.info["policy"], "path": str(training.path / "policy")},
        "steps": len(lines),
        "averaged_steps": len(lines[-LAST:]),
        "figures": {name: statistics.fmean(line[name] for line in lines[-LAST:] if name in line) for name in names},
        "at_first": {name: lines[0][name] for name in names},
        "held_out_figures": {
            name.removeprefix("eval/"): value for name, value in metrics.items() if name.startswith("eval/")
        },
        "pairs_per_second": statistics.median(line["pairs_per_second"] for line in lines),
        "memory_gib": metrics.get("memory/gpu_gib", metrics.get("memory/process_gib")),
        "tensorboard": str(training.path / "tensorboard"),
    }


def data_of(loaded: Loaded) -> dict[str, Any]:
    return {
        "data": datasets.counts(loaded),
        "training_examples": datasets.kinds(loaded.examples.training),
        "held_out_examples": {**datasets.kinds(loaded.examples.held_out), "prompts_also_trained_on": loaded.both},
    }


def _leave(result: Mapping[str, Any], training: Artifact, directory: Path, out: Path | None) -> None:
    """Readable names for what is in the store, and a copy of the policy where one was asked for."""
    directory.mkdir(parents=True, exist_ok=True)
    symlink(directory / "policy", training.path / "policy")
    symlink(directory / "training", training.path)
    write_json(directory / RESULT, result)
    copy_out(training.path / "policy", result, out)


def copy_out(folder: Path, result: Mapping[str, Any], out: Path | None) -> None:
    """A copy of what was trained, and what there is to say of it, whole or not at all."""
    if out is None or (out / RESULT).is_file():
        return
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part)
    write_json(part / RESULT, result)
    for entry in (*part.iterdir(), part):
        sync(entry)
    part.replace(out)  # an empty folder may be in its place
    sync(out.parent)
