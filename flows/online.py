"""Online DPO as Prefect flows: a subflow a round, a task a stage. Read this first.

    initial policy, prompts, initial evaluation
    then each round:  sample → judge → pair → reference → train → evaluate → gate

Prefect gives retries, timeouts, schedules and pages to look at. It does not give durability: the store does, so a
task is a thin wrapper round a stage of ``flows.stages``, and a flow that was killed simply runs again.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple, Unpack

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows import environment, stages, training
from flows.console import Console, round_rows
from flows.evaluate import evaluate
from flows.gate import decide, no_pairs
from flows.health import check_fitness
from flows.judging import judge
from flows.session import Session
from flows.start import initial_policy, policy_of, prompts, read_held_out, read_rounds
from flows.summary import artifact_keys, figures, stage_seconds, summarise
from pipeline.conditions import written
from pipeline.config import RunConfig
from pipeline.errors import JudgeError, SamplingError, UnfitJudgeError
from pipeline.prompts import round_slice
from pipeline.report import write_report
from pipeline.runs import Run
from pipeline.store import Artifact
from pipeline.types import Policy, RoundState

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


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


@flow(name="online-dpo", flow_run_name="{name}")
def online_dpo(config: RunConfig, name: str, workspace: str = "workspace", quiet: bool = False) -> dict[str, Any]:
    """Run, or go on with, the rounds of the run ``name``; its status at the end, as ``ratchet status --json`` has it.

    Raises:
        BusyError: another process is running the same name in the same workspace.
        ConfigError: the run began with other settings.
    """
    environment.use_threads(config.limits.threads)
    run = Run(Path(workspace), name)
    session = Session(config, run, Console(quiet))
    with run.held():
        run.begin(config)
        try:
            standing = begin(session)
            outcome, reason = "complete", f"all {config.rounds} rounds are done"
            for number in range(config.rounds):
                session.console.round_starts(number, config.rounds)
                state, standing = dpo_round(session, number, standing)
                if state.gate.decision == "stop":
                    outcome, reason = "stopped", f"the gate stopped round {number}: {state.gate.reason}"
                    break
            run.save_outcome(outcome, reason, standing.best_round, standing.policy)
            run.link("policy", standing.policy.path)
            write_report(run.status(), run.store, run.directory / "report.html")
        except Exception as error:
            run.save_failure(error)
            write_report(run.status(), run.store, run.directory / "report.html")
            raise
        finally:
            session.close()
    return run.status()


def begin(session: Session) -> Standing:
    """The initial policy, the prompts, and an evaluation to compare every round with."""
    fitness = _stage(session, "judge check", check_fitness) if session.config.health.require else None
    policy, policy_artifact = _stage(session, "initial policy", initial_policy)
    prompt_artifact = _stage(session, "prompts", prompts, policy_artifact)
    held_out = read_held_out(prompt_artifact)
    evaluation = _stage(session, "evaluate", evaluate, policy, policy, policy, held_out)
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
    asked = round_slice(read_rounds(standing.prompts), number, config.prompts.per_round, config.seed)
    session.freed.clear()

    candidates = _stage(session, "sample", stages.sample_round, start, asked, number)
    session.run.link(f"round-{number:03d}/candidates", candidates.path)  # for people, who judge while it waits
    standing = replace(standing, first=standing.first or candidates)
    judgments = _stage(session, "judge", judge, candidates, config.judge, "judge", standing.first)
    pairs = _stage(session, "pair", stages.pair, candidates, judgments, number)
    made = {"candidates": candidates, "judgments": judgments, "pairs": pairs}
    learnable = stages.has_pairs(pairs)
    if learnable:
        made |= learn(session, standing, pairs, number)
    policy = policy_of(made["train"]) if learnable else start
    held_out = read_held_out(standing.prompts)
    made["evaluation"] = _stage(session, "evaluate", evaluate, policy, start, standing.initial, held_out)

    gate = decide(config.gate, figures(made["evaluation"])) if learnable else no_pairs(pairs.manifest["dropped"])
    state = summarise(number, start, policy, made, gate, session.freed)
    _publish(session, state, made)
    if gate.decision == "promote":
        average = standing.average
        if config.trainer.reference == "ema":
            average = policy_of(_stage(session, "average", training.average, average, policy))
        standing = replace(standing, policy=policy, average=average, best_round=number)
    return state, standing


def learn(session: Session, standing: Standing, pairs: Artifact, number: int) -> dict[str, Artifact]:
    """The policy trained on ``pairs``, and what it was compared with."""
    against = {
        "previous": standing.policy, "lora_base": standing.policy, "initial": standing.initial,
        "ema": standing.average, "none": None,
    }[session.config.trainer.reference]  # fmt: skip
    made: dict[str, Artifact] = {}

    def compare(name: str, policy: Policy) -> training.Compared:
        made[name] = _stage(session, name.replace("_", " "), training.reference, pairs, policy)
        return training.Compared(policy, made[name])

    reference = None if against is None else compare("reference", against)
    same = reference is not None and reference.policy.digest == standing.initial.digest
    initial = reference if same else compare("initial_reference", standing.initial)
    made["train"] = _stage(
        session, "train", training.train, pairs, reference, initial, standing.policy, standing.prompts, number
    )
    return made


def _stage(session: Session, name: str, work: Callable[[Session, Unpack[Ts]], R], *args: *Ts) -> R:
    """Run one stage as a Prefect task: retried where an engine or a judge failed, never cached by Prefect."""
    limits = session.config.limits

    def in_charge(session: Session, *args: *Ts) -> R:
        with environment.in_charge():
            return work(session, *args)

    as_task = task(
        name=name, cache_policy=NO_CACHE, persist_result=False, retries=limits.retries,
        retry_delay_seconds=limits.retry_delay, timeout_seconds=limits.stage_timeout, retry_condition_fn=_worth_a_retry,
    )  # fmt: skip
    return as_task(in_charge)(session, *args)


def _worth_a_retry(task: Any, run: Any, state: Any) -> bool:
    """A dead engine or a judge that does not answer may work next time; a wrong config or a NaN will not."""
    try:
        state.result()
    except UnfitJudgeError:
        return False
    except (SamplingError, JudgeError):
        return True
    except Exception:
        return False
    return False


def _publish(session: Session, state: RoundState, made: dict[str, Artifact]) -> None:
    """Write the round down where people look: the run's folder, the terminal, the report, Prefect's page."""
    run, entry = session.run, asdict(state)
    run.save_round(state)
    for stage, artifact in made.items():
        run.link(f"round-{state.round:03d}/{stage}", artifact.path)
    session.console.round_table(entry)
    write_report(run.status(), run.store, run.directory / "report.html")
    key = f"{run.name}-round-{state.round}".lower().replace("_", "-").replace(".", "-")
    rows = [{"figure": name, "value": value} for name, value in round_rows(entry, markup=False)]
    create_table_artifact(table=rows, key=f"{key}-table", description=f"Round {state.round} of {run.name}")
    create_markdown_artifact(
        key=f"{key}-gate",
        markdown=f"## Round {state.round}: {state.gate.decision}\n\n{state.gate.reason}\n\n"
        + "\n".join(f"- {'✓' if c.passed else '✗'} `{c.condition}`: {written(c.value)}" for c in state.gate.checks)
        + f"\n\nReport: `{run.directory / 'report.html'}`",
    )
