"""What a run starts from: its initial policy and its prompts."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from rich.markup import escape

from flows.session import Session, Workplace
from pipeline.config import PretrainedPolicy, PromptsConfig, ScratchPolicy
from pipeline.errors import DataError
from pipeline.figures import prompts_text
from pipeline.functions import source_digest
from pipeline.policy import PROBE, read_policy, weights_digest, write_probe
from pipeline.prompts import Reading, load_prompts, settings_of
from pipeline.prompts.commits import at_commits, commits_of
from pipeline.runs import Run
from pipeline.store import Artifact, Draft, Spec, sync
from pipeline.tables import prompts_table, read_prompts
from pipeline.types import Policy, Prompt

UNUSED = ["*.bin", "*.pth", "*.gguf", "original/*"]
"""Files of a Hub model that say again what its safetensors say."""
ROUNDS, HELD_OUT = 0, 1
"""Shards of a prompts artifact."""


def initial_policy(session: Session) -> tuple[Policy, Artifact]:
    """The policy of round 0, trained from scratch or taken from a checkpoint, with its probe."""
    config = session.config.policy
    match config:
        case ScratchPolicy():
            settings: dict[str, Any] = {"seed": session.config.seed, "code": source_digest(config.corpus)}
            spec = Spec("policy", 1, {**config.model_dump(mode="json"), **settings})
            artifact = session.store.make(spec, lambda draft: _from_scratch(session, config, draft))
        case PretrainedPolicy():
            artifact = pretrained_policy(session, config)
    return policy_of(artifact), artifact


def policy_of(artifact: Artifact) -> Policy:
    """The policy a "policy" or "train" artifact holds."""
    return Policy(artifact.info["policy"], artifact.path / "policy")


def _from_scratch(session: Session, config: ScratchPolicy, draft: Draft) -> Artifact:
    from trainers.pretrain import train_from_scratch

    session.warm_up()
    with session.console.stage("base policy") as progress:
        policy = train_from_scratch(config, session.config.seed, draft.path, draft.timed(progress))
    return draft.finish({"policy": policy.digest})


def pretrained_policy(place: Workplace, config: PretrainedPolicy) -> Artifact:
    """A checkpoint, taken into the store. Raises DataError where it cannot be found or read."""
    return place.store.make(pretrained_spec(config), lambda draft: _from_checkpoint(place, config, draft))


def pretrained_spec(config: PretrainedPolicy) -> Spec:
    """A local checkpoint is known by its files, wherever it lies; one on the Hub by its name and revision.

    Raises:
        DataError: the directory holds no weights.
    """
    path = Path(config.path)
    if not path.is_dir():
        return Spec("policy", 1, config.model_dump(mode="json"))
    small = [file for file in sorted(path.iterdir()) if file.is_file() and file.suffix != ".safetensors"]
    others = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in small if file.name != PROBE}
    inputs = {"weights": weights_digest(path), **others}
    return Spec("policy", 1, config.model_dump(mode="json", exclude={"path"}), inputs)


def _from_checkpoint(place: Workplace, config: PretrainedPolicy, draft: Draft) -> Artifact:
    """Take a checkpoint as it is and add its probe; or convert it where another precision is asked for."""
    import torch

    from trainers import checkpoints

    place.warm_up()
    with place.console.stage("base policy"):
        source = Path(config.path) if Path(config.path).is_dir() else download(config)
        directory = draft.path / "policy"
        model, tokenizer = checkpoints.load_model(source), checkpoints.load_tokenizer(source)
        if config.dtype == "auto":
            _take(source, directory, links=not Path(config.path).is_dir())
            write_probe(directory, checkpoints.make_probe(model, tokenizer, checkpoints.saved_dtype(source)))
            policy = read_policy(directory)
        else:
            policy = checkpoints.save_policy(model, tokenizer, directory, getattr(torch, config.dtype))
    return draft.finish({"policy": policy.digest})


def _take(source: Path, directory: Path, links: bool) -> None:
    """The checkpoint's files: links into the Hub's cache, which never changes, or copies of a folder that may."""
    directory.mkdir(exist_ok=True)
    for file in source.iterdir():
        target = directory / file.name
        if not file.is_file() or file.name == PROBE:
            continue
        target.unlink(missing_ok=True)
        if links:
            target.symlink_to(file.resolve())
        else:
            shutil.copy2(file, target)
            sync(target)


def download(config: PretrainedPolicy, weights: bool = True) -> Path:
    """The Hub model's folder in the local cache. Raises DataError where the Hub does not give it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        unused = UNUSED if weights else [*UNUSED, "*.safetensors"]
        return Path(snapshot_download(config.path, revision=config.revision, ignore_patterns=unused))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"policy {config.path!r} is neither a directory nor a model the Hub gives us"
            f" ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def prompts(session: Session, policy_artifact: Artifact) -> Artifact:
    """The run's prompts, rendered to token ids: shard 0 for the rounds, shard 1 held out for evaluation."""
    policy = policy_of(policy_artifact)
    config, inputs = settled(session.run, _that_fit(session, policy)), {"policy": policy_artifact.key}
    return make_prompts(session, config, session.config.seed, inputs, lambda: session.tokenizer(policy))


def settled(run: Run, config: PromptsConfig) -> PromptsConfig:
    """The settings, with each Hub data set at the commit it had when the run first came to its prompts."""
    known = run.commits()
    if (commits := commits_of(config, known)) != known:
        run.save_commits(commits)
    return at_commits(config, commits)


def make_prompts(
    place: Workplace, config: PromptsConfig, seed: int, inputs: Mapping[str, str], tokenizer: Callable[[], Any]
) -> Artifact:
    """The prompts of these settings, in the shards of :func:`prompts`.

    Args:
        inputs: keys of what ``tokenizer`` comes from.
        tokenizer: gives the policy's, or None: see :func:`pipeline.prompts.load_prompts`.

    Raises:
        ConfigError, DataError: as :func:`pipeline.prompts.load_prompts`.
    """

    def load(draft: Draft) -> Artifact:
        with place.console.stage("prompts") as progress:
            loaded = load_prompts(config, tokenizer(), seed)
            draft.commit_shard(ROUNDS, prompts_table(loaded.rounds))
            draft.commit_shard(HELD_OUT, prompts_table(loaded.held_out))
            told = prompts_text(len(loaded.rounds), len(loaded.held_out), loaded.dropped)
            progress(loaded.rows, loaded.rows, f"rows: {told}")
        for bad in loaded.bad:
            place.console.say(f"      [dim]{escape(bad)}[/]")
        info = {
            "rounds": len(loaded.rounds), "held_out": len(loaded.held_out), "read": list(map(asdict, loaded.read)),
            "by_source": loaded.by_source, "source": config.source.model_dump(mode="json"),
        }  # fmt: skip
        return draft.finish(info, rows_in=loaded.rows, dropped=loaded.dropped)

    artifact = place.store.make(Spec("prompts", 5, {**settings_of(config), "seed": seed}, inputs), load)
    for reading in artifact.info["read"]:
        Reading(**reading).check(config.bad_rows)  # they may have been made where more was allowed
    return artifact


def _that_fit(session: Session, policy: Policy) -> PromptsConfig:
    """The prompts' settings, with a length limit that leaves room to answer: a longer prompt is dropped, not fatal."""
    from transformers import AutoConfig

    config, asked = session.config.prompts, session.config.sampling.max_model_len
    longest = int(AutoConfig.from_pretrained(policy.path).get_text_config().max_position_embeddings)
    room = min(longest, asked or longest) - 2  # a token to sample, and one place free to score it
    return config.model_copy(update={"max_tokens": min(config.max_tokens, room)})


def read_rounds(artifact: Artifact) -> list[Prompt]:
    return read_prompts(list(artifact.tables())[ROUNDS])


def read_rounds_ids(artifact: Artifact) -> Iterator[list[int]]:
    """The token ids of :func:`read_rounds`, read when they are asked for."""
    table = next(islice(artifact.tables(["token_ids"]), ROUNDS, None))
    for batch in table.to_batches(1024):
        yield from batch["token_ids"].to_pylist()


def read_held_out(artifact: Artifact) -> list[Prompt]:
    return read_prompts(list(artifact.tables())[HELD_OUT])
