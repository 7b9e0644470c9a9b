"""Online DPO as Prefect flows: a subflow a round, a task a stage. Read this first.

    initial policy, prompts, initial evaluation
    then each round:  sample (→ propose) → judge → pair → reference → train → evaluate → gate

Prefect gives retries, timeouts, schedules and pages to look at. It does not give durability: the store does, so a
task is a thin wrapper round a stage of ``flows.stages``, and a flow that was killed simply runs again.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect import flow

from flows import environment, stages, training
from flows.console import Console
from flows.evaluate import evaluate
from flows.gate import decide, nothing_to_learn
from flows.health import check_fitness
from flows.judging import judge
from flows.proposals import propose_round
from flows.publish import publish
from flows.replay import check_offline, check_vocabulary, replay
from flows.session import Session
from flows.start import initial_policy, policy_of, prompts, read_held_out, read_rounds
from flows.summary import artifact_keys, figures, stage_seconds, summarise
from flows.tasks import stage
from pipeline.config import RunConfig
from pipeline.prompts import check_sources, round_slice
from pipeline.runs import Run
from pipeline.store import Artifact
from pipeline.types import Policy, RoundState


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the rounds stand: all that one hands to the next."""

    initial: Policy
    policy: Policy
    """The last one promoted. A round starts from it, and only a promotion replaces it."""
    average: Policy
    """Moving average of the promoted policies, where the trainer's reference is "ema"; else the first."""
    best_round: int
    prompts: Artifact
    first: Artifact | None = None
    """The first round's candidates: a panel's scales are fitted on them, and stay."""
    earlier: tuple[Artifact, ...] = ()
    """The pairs of every round so far, whatever its gate decided: to be replayed."""


@flow(name="online-dpo", flow_run_name="{name}")
def online_dpo(config: RunConfig, name: str, workspace: str = "workspace", quiet: bool = False) -> dict[str, Any]:
    """Run, or go on with, the rounds of the run ``name``; its status at the end, as ``ratchet status --json`` has it.

    Raises:
        BusyError: another process is running the same name in the same workspace.
        ConfigError: the run began with other settings, or another run cannot be replayed.
        DataError: the path of a source of prompts leads nowhere.
    """
    check_sources(config.prompts)
    environment.use_threads(config.limits.threads)
    session = Session(config, Run(Path(workspace), name), Console(quiet))
    check_offline(session)
    with session.at_work():
        standing = begin(session)
        outcome, reason = "complete", f"all {config.rounds} rounds are done"
        for number in range(config.rounds):
            session.console.round_starts(number, config.rounds)
            state, standing = dpo_round(session, number, standing)
            if state.gate.decision == "stop":
                outcome, reason = "stopped", f"the gate stopped round {number}: {state.gate.reason}"
                break
        session.run.save_outcome(outcome, reason, standing.best_round, standing.policy)
        session.run.link("policy", standing.policy.path)
    return session.run.status()


def begin(session: Session) -> Standing:
    """The initial policy, the prompts, and an evaluation to compare every round with."""
    fitness = stage(session, "judge check", check_fitness) if session.config.health.require else None
    policy, policy_artifact = stage(session, "initial policy", initial_policy)
    check_vocabulary(session, policy)
    prompt_artifact = stage(session, "prompts", prompts, policy_artifact)
    held_out = read_held_out(prompt_artifact)
    evaluation = stage(session, "evaluate", evaluate, policy, policy, policy, held_out)
    made = {"policy": policy_artifact, "prompts": prompt_artifact, "evaluation": evaluation}
    session.run.save_initial(
        {
            "round": -1, "policy_out": policy.digest, "evaluation": figures(evaluation),
            "seconds": stage_seconds(made), "artifacts": artifact_keys(made),
            "health": None if fitness is None else dict(fitness.info),
        }
    )  # fmt: skip
    session.run.forget_rounds()
    session.run.link("initial-policy", policy.path)
    return Standing(policy, policy, policy, -1, prompt_artifact)


@flow(name="dpo-round", flow_run_name="round {number}", validate_parameters=False)
def dpo_round(session: Session, number: int, standing: Standing) -> tuple[RoundState, Standing]:
    """One round, from prompts to the gate's decision."""
    config, start = session.config, standing.policy
    available = read_rounds(standing.prompts)
    asked = round_slice(available, number, config.prompts.per_round, config.seed, config.prompts.weights)
    session.freed.clear()

    made = {"candidates": stage(session, "sample", stages.sample_round, start, asked, number)}
    if config.sampling.proposers:
        made = stage(session, "propose", propose_round, start, made["candidates"], asked, number)
    candidates = made["candidates"]
    session.run.link(f"round-{number:03d}/candidates", candidates.path)  # for people, who judge while it waits
    standing = replace(standing, first=standing.first or candidates)
    judgments = stage(session, "judge", judge, candidates, config.judge, "judge", standing.first)
    pairs = stage(session, "pair", stages.pair, candidates, judgments, number)
    made |= {"judgments": judgments, "pairs": pairs}
    learnable = training.has_examples(pairs, training.held_out_share(session, standing.prompts))
    if learnable:
        made |= learn(session, standing, pairs, number)
        standing = replace(standing, earlier=(*standing.earlier, pairs))
    policy = policy_of(made["train"]) if learnable else start
    held_out = read_held_out(standing.prompts)
    made["evaluation"] = stage(session, "evaluate", evaluate, policy, start, standing.initial, held_out)

    gate = decide(config.gate, figures(made["evaluation"])) if learnable else nothing_to_learn(pairs.manifest)
    state = summarise(number, start, policy, made, gate, session.freed)
    publish(session, state, made)
    if gate.decision == "promote":
        average = standing.average
        if config.trainer.reference == "ema":
            average = policy_of(stage(session, "average", training.average, average, policy))
        standing = replace(standing, policy=policy, average=average, best_round=number)
    return state, standing


def learn(session: Session, standing: Standing, pairs: Artifact, number: int) -> dict[str, Artifact]:
    """The policy trained on ``pairs``, and on earlier ones where they are replayed, and what it was compared with."""
    against = {
        "previous": standing.policy, "lora_base": standing.policy, "initial": standing.initial,
        "ema": standing.average, "none": None,
    }[session.config.trainer.reference]  # fmt: skip
    made: dict[str, Artifact] = {}
    again = session.config.pairing.replay
    if again.share and (standing.earlier or again.offline):
        made["replay"] = pairs = stage(session, "replay", replay, pairs, standing.earlier, number)

    def compare(name: str, policy: Policy, label: str) -> training.Compared:
        title = name.replace("_", " ")
        made[name] = stage(session, title, training.reference, pairs, policy, standing.prompts, label)
        return training.Compared(policy, made[name])

    reference = None if against is None else compare("reference", against, "reference")
    same = reference is not None and reference.policy.digest == standing.initial.digest
    initial = reference if same else compare("initial_reference", standing.initial, "reference π₀")
    made["train"] = stage(
        session, "train", training.train, pairs, reference, initial, standing.policy, standing.prompts, number
    )
    return made
