"""``ratchet trace``: all that made a pair, JSON-serialisable; ``flows.trace_tree`` shows it to people."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.judging import LEDGER
from pipeline.calls.recall import PaidCall
from pipeline.commands import read_commands
from pipeline.errors import ConfigError
from pipeline.lineage import search
from pipeline.lineage.policies import Step
from pipeline.lineage.verdicts import Opinion
from pipeline.lineage.walk import Lineage, lineage
from pipeline.runs import TRAINED, Run
from pipeline.types import Candidate

LIMIT = 20
"""Pairs listed of a run, unless more are asked for."""


def trace(pair_id: str, workspace: Path) -> dict[str, Any]:
    """From a pair to its prompt, candidates, scores, judge calls, policy, and the commands that made them.

    Args:
        pair_id: whole, or its first eight or more digits.

    Raises:
        ConfigError: there is no such pair, there are several, or too few digits are given.
    """
    found = lineage(workspace, pair_id, workspace.resolve() / LEDGER)
    pair = found.pair
    return {
        "pair": {
            "id": pair.id, "round": pair.round, "prompt_id": pair.prompt.id,
            "chosen": pair.chosen.index, "rejected": pair.rejected.index, "chosen_text": pair.chosen.text,
            "rejected_text": pair.rejected.text, "score_chosen": pair.score_chosen,
            "score_rejected": pair.score_rejected, "margin": pair.margin,
        },
        "pairings": [asdict(each) for each in found.pairings],
        "prompt": {
            "id": pair.prompt.id, "text": pair.prompt.text, "messages": list(pair.prompt.messages),
            "answer": pair.prompt.answer, "source": pair.prompt.source, "tokens": len(pair.prompt.token_ids),
            "prompts": None if found.prompts is None else asdict(found.prompts),
        },
        "candidates": _candidates(found),
        "sampling": [asdict(each) for each in found.sampling],
        "policies": {model: list(map(_step, steps)) for model, steps in found.policies.items()},
        "judgment": None if found.opinion is None else _opinion(found.opinion),
        "uses": [asdict(each) for each in found.uses],
        "trainings": _trainings(workspace, found),
        "commands": {run: [asdict(each) for each in commands] for run, commands in found.commands},
        "searched": found.searched,
        "gaps": list(found.gaps),
    }  # fmt: skip


def pair_ids(name: str | None, round: int | None, limit: int, workspace: Path) -> list[dict[str, Any]]:
    """A run's pairs to trace: ``id`` and ``round``, the newest round's first, at most ``limit``.

    Args:
        name: of the run; None: the newest.
        round: None: all.

    Raises:
        ConfigError: there is no such run, it has no such round, or no pairs yet.
    """
    run = Run.existing(workspace, name)
    rounds = [entry for entry in run.status()["rounds"] if entry["artifacts"].get("pairs")]
    wanted = [entry for entry in rounds if round is None or entry["round"] == round]
    if not rounds:
        raise ConfigError(f"run {run.name!r} has no finished round with pairs yet")
    if not wanted:
        there = ", ".join(str(entry["round"]) for entry in rounds)
        raise ConfigError(f"'{run.name}:{round}': run {run.name!r} has pairs of the rounds {there}")
    found: list[dict[str, Any]] = []
    for entry in reversed(wanted):
        artifact = run.store.get("pairs", entry["artifacts"]["pairs"])
        ids = search.pair_ids(artifact, limit - len(found))
        found += [{"id": each, "round": entry["round"]} for each in ids]
    return found


def _candidates(found: Lineage) -> list[dict[str, Any]]:
    """The group's, best first; of a group that is gone, the pair's two."""
    pair, opinion = found.pair, found.opinion
    scores: dict[int, float | None] = {} if opinion is None else dict(enumerate(opinion.scores))
    if not scores:
        scores = {pair.chosen.index: pair.score_chosen, pair.rejected.index: pair.score_rejected}
    roles = {pair.chosen.index: "chosen", pair.rejected.index: "rejected"}
    rows = [
        _candidate(each, scores.get(each.index), roles.get(each.index), found.answers.get(each.index))
        for each in found.candidates or (pair.chosen, pair.rejected)
    ]
    return sorted(rows, key=lambda row: (row["score"] is None, -(row["score"] or 0.0), row["index"]))


def _candidate(candidate: Candidate, score: float | None, role: str | None, call: PaidCall | None) -> dict[str, Any]:
    return {
        "index": candidate.index, "role": role, "score": score, "text": candidate.text,
        "model": candidate.model, "seed": candidate.seed, "finish_reason": candidate.finish_reason,
        "tokens": len(candidate.token_ids), "cumulative_logprob": candidate.cumulative_logprob,
        "call": None if call is None else asdict(call),
    }  # fmt: skip


def _step(step: Step) -> dict[str, Any]:
    return asdict(step) | {
        "rounds": [{"run": run, "round": number} for run, number in step.rounds],
        "trainings": [{"name": name, "read": list(read)} for name, read in step.trainings],
    }


def _opinion(opinion: Opinion) -> dict[str, Any]:
    return {
        "member": opinion.member, "judge": opinion.judge, "made": asdict(opinion.made), "scores": list(opinion.scores),
        "votes": [dict(vote) for vote in opinion.votes],
        "calls": {key: asdict(call) for key, call in opinion.calls.calls.items()},
        "unanswered": {key: dict(tries) for key, tries in opinion.calls.unanswered.items()},
        "members": [_opinion(member) for member in opinion.members],
    }  # fmt: skip


def _trainings(workspace: Path, lineage: Lineage) -> list[dict[str, Any]]:
    """Trainings without rounds that read the pair, and their commands."""
    return [
        {
            "name": each.name, "read": list(read), "policy": each.policy,
            "commands": [asdict(command) for command in read_commands(workspace / TRAINED / each.name)],
        }
        for each, read in lineage.trainings
    ]  # fmt: skip
