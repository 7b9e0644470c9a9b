"""Preference data without training: several models answer the same prompts, a judge scores, pairs come out.

    prompts, then each round:  ask the models → put together → judge → pair

Models that others serve are asked side by side, this machine's one after another.
The run's folder is that of any run, so ``ratchet status``, ``pair``, ``trace``, ``annotate``, ``export`` and ``train``
read it. Its records are text: each local model reads a prompt by its own chat template, and of what it says the words
alone are kept.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow

from flows import environment
from flows.console import Console
from flows.health import check_fitness
from flows.judging import judge
from flows.proposals import Source, longest_of, merge, propose
from flows.publish import publish
from flows.session import DataSession
from flows.side_by_side import side_by_side
from flows.stages import pair, sample
from flows.start import make_prompts, policy_of, pretrained_policy, read_rounds, settled
from flows.summary import PROPOSALS, artifact_keys, stage_seconds, summarise
from flows.tasks import stage
from pipeline.config import DataConfig, LocalModel, Model, PretrainedPolicy, ServedModel
from pipeline.errors import ConfigError, SamplingError
from pipeline.prompts import check_sources, round_slice
from pipeline.prompts.rendering import encode
from pipeline.protocols import Decoding
from pipeline.runs import Run
from pipeline.sampling.proposals import conversation
from pipeline.store import Artifact
from pipeline.types import Candidate, Policy, Prompt, RoundState

LEAST = 2
"""Candidates of a prompt that are worth judging."""


@flow(name="preference-data", flow_run_name="{name}")
def preference_data(config: DataConfig, name: str, workspace: str = "workspace", quiet: bool = False) -> dict[str, Any]:
    """Make, or go on with, the data of the run ``name``; its status at the end, as ``ratchet status --json`` has it.

    Raises:
        BusyError: another process is running the same name in the same workspace.
        ConfigError: the run began with other settings.
        DataError: the prompts cannot be used as given.
        SamplingError, JudgeError: a model or the judge cannot work, or left too much unanswered.
    """
    check_sources(config.prompts)
    environment.use_threads(config.limits.threads)
    session = DataSession(config, Run(Path(workspace), name), Console(quiet))
    with session.at_work():
        asked = begin(session)
        first: Artifact | None = None
        for number in range(config.rounds):
            session.console.round_starts(number, config.rounds)
            first, _ = data_round(session, number, asked, first)
        session.run.save_outcome("complete", f"all {config.rounds} rounds are done")
    return session.run.status()


def begin(session: DataSession) -> Artifact:
    """The prompts, once this machine has the local models, and the judge is known to be fit where the recipe asks."""
    for name, model in session.config.models.items():
        if isinstance(model, LocalModel):  # one that will not do is to be known before others are paid
            stage(session, f"take in {name}", taken_in, name, model)
    fitness = stage(session, "judge check", check_fitness) if session.config.health.require else None
    made = {"prompts": stage(session, "prompts", text_prompts)}
    session.run.save_initial(
        {
            "round": -1, "policy_out": "", "evaluation": {}, "seconds": stage_seconds(made),
            "artifacts": artifact_keys(made), "health": None if fitness is None else dict(fitness.info),
        }
    )  # fmt: skip
    session.run.forget_rounds()
    return made["prompts"]


@flow(name="data-round", flow_run_name="round {number}", validate_parameters=False)
def data_round(
    session: DataSession, number: int, prompts: Artifact, first: Artifact | None
) -> tuple[Artifact, RoundState]:
    """One window of prompts, from the models' answers to pairs.

    Args:
        first: the first round's candidates, on which a panel fits its scales; None in that round.

    Returns:
        The first round's candidates, and what this round made.
    """
    config = session.config
    asked = round_slice(read_rounds(prompts), number, config.prompts.per_round, config.seed, config.prompts.weights)
    asking = {name: partial(stage, session, f"ask {name}", answers, name, model, asked, number)
              for name, model in config.models.items()}  # fmt: skip
    own = [name for name, model in config.models.items() if isinstance(model, LocalModel)]
    sources = list(side_by_side(asking, session.console, here=own).values())
    made = {f"{PROPOSALS}{source.name}": source.artifact for source in sources}
    made["candidates"] = stage(session, "candidates", together, asked, sources)
    session.run.link(f"round-{number:03d}/candidates", made["candidates"].path)  # for people, who judge while it waits
    first = first or made["candidates"]
    made["judgments"] = stage(session, "judge", judge, made["candidates"], config.judge, "judge", first)
    made["pairs"] = stage(session, "pair", pair, made["candidates"], made["judgments"], number)
    state = summarise(number, None, None, made)
    publish(session, state, made)
    return first, state


# ---------------------------------------------------------------------------------------------- stages
def text_prompts(session: DataSession) -> Artifact:
    """The run's prompts as text: shard 0 for the rounds, shard 1 held out, which no model is asked."""
    config = settled(session.run, session.config.prompts)
    return make_prompts(session, config, session.config.seed, {}, lambda: None)


def answers(session: DataSession, name: str, model: Model, prompts: Sequence[Prompt], round: int) -> Source:
    """What one model answers to the round's prompts."""
    if isinstance(model, ServedModel):
        return Source(name, propose(session, name, model, prompts, round), lambda prompt, candidate: candidate)
    return sampled(session, name, model, prompts, round)


def together(session: DataSession, prompts: Sequence[Prompt], sources: Sequence[Source]) -> Artifact:
    """A group a prompt, of all models' candidates."""
    return merge(session, prompts, sources, {}, LEAST)


def taken_in(session: DataSession, name: str, model: LocalModel) -> Policy:
    """The model, in the store. Raises ConfigError where prompts are chats and it has no chat template."""
    config = PretrainedPolicy(type="pretrained", path=model.path, revision=model.revision, dtype=model.dtype)
    policy = policy_of(pretrained_policy(session, config))
    if session.config.prompts.template == "chat" and not session.tokenizer(policy).chat_template:
        raise ConfigError(
            f'prompts.template: "chat", but models.{name} ({model.path!r}) has no chat template; allowed for it:'
            ' "plain"'
        )
    return policy


def sampled(session: DataSession, name: str, model: LocalModel, prompts: Sequence[Prompt], round: int) -> Source:
    """A local model's candidates, by this machine's engine. What it cannot read is left out, and counted."""
    policy = taken_in(session, name, model)
    readable, absent = _rendered(session, model, policy, prompts)
    decoding = Decoding(model.max_tokens, model.temperature, model.top_p, logprobs=False)
    try:
        made = sample(
            session, policy, readable, round=round, n=model.n, decoding=decoding, label=f"ask {name}", model=name
        )
    except SamplingError as error:
        raise SamplingError(f"model {name!r}: {error}") from error

    def words(prompt: Prompt, candidate: Candidate) -> Candidate:
        return replace(candidate, token_ids=(), model=name)

    return Source(name, made, words, {reason: count * model.n for reason, count in absent.items()})


def _rendered(
    session: DataSession, model: LocalModel, policy: Policy, prompts: Sequence[Prompt]
) -> tuple[list[Prompt], Counter[str]]:
    """The prompts in the model's own token ids, and how many of them it cannot be asked, by reason."""
    from jinja2 import TemplateError

    template, tokenizer = session.config.prompts.template, session.tokenizer(policy)
    longest, absent = longest_of(session, policy) - 1, Counter[str]()
    readable = []
    for prompt in prompts:
        text = prompt.text
        if template == "chat":
            turns = [dict(turn) for turn in conversation(prompt, model.system)]
            try:
                text = str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
            except (TemplateError, TypeError):  # two turns of the user in a row, or no system message, for example
                absent["refused_by_template"] += 1
                continue
        (ids,) = encode([text], template, tokenizer)
        if 1 <= len(ids) <= longest:
            readable.append(replace(prompt, token_ids=ids))
        else:
            absent["prompt_too_long"] += 1
    return readable, absent
