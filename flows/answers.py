"""What policies answer to the held-out prompts, and what the held-out judge makes of two policies' answers.

A judge whose scores mean the same everywhere scores each policy's answers by themselves, once. One that compares is
shown both policies' answers to a prompt as one group: its scores hold within the group, and that is where they meet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flows.judging import compares, judge
from flows.session import Session
from flows.stages import sample
from pipeline.candidates import all_groups, asked, group_shards, groups_in, joined, write_asked
from pipeline.config import JudgeConfig
from pipeline.protocols import Decoding
from pipeline.store import Artifact, Draft, Spec
from pipeline.tables import all_judgments, candidates_table
from pipeline.types import Group, Policy, Prompt

EVALUATION_ROUND = -1
"""Stands for the round in evaluation seeds, so that every policy answers with the same draws."""
Scores = list[tuple[float | None, ...]]
"""[prompts][samples]"""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one policy said to the held-out prompts."""

    candidates: Artifact
    groups: list[Group]

    def lengths(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Tokens a sample, [samples]."""
        return np.array([len(candidate.token_ids) for group in self.groups for candidate in group.candidates], float)

    def truncated(self) -> float:
        reasons = [candidate.finish_reason for group in self.groups for candidate in group.candidates]
        return reasons.count("length") / len(reasons)


def answers(session: Session, policy: Policy, held_out: Sequence[Prompt]) -> Answers:
    """Drawn at temperature 1 from the plain policy, which the KL estimate needs."""
    candidates = sample(
        session, policy, held_out, round=EVALUATION_ROUND, n=session.config.evaluation.n,
        decoding=decoding(session), label="answers",
    )  # fmt: skip
    return Answers(candidates, all_groups(candidates))


def decoding(session: Session) -> Decoding:
    return Decoding(max_tokens=session.config.sampling.max_tokens, temperature=1.0, logprobs=False)


def held_out_judge(session: Session) -> JudgeConfig:
    return session.config.evaluation.judge or session.config.judge


def scored(session: Session, one: Answers, other: Answers, frozen: Answers) -> tuple[Scores, Scores]:
    """The scores of both policies' answers, on one scale.

    ``frozen`` are the answers that a panel's scales are fitted on, the same for all of the run.
    """
    if not compares(held_out_judge(session)) or one.candidates.key == other.candidates.key:
        return _judged(session, one.candidates, frozen), _judged(session, other.candidates, frozen)
    sizes = [len(group.candidates) for group in one.groups]
    both = _judged(session, _together(session, one.candidates, other.candidates), frozen)
    return (
        [scores[:size] for scores, size in zip(both, sizes, strict=True)],
        [scores[size:] for scores, size in zip(both, sizes, strict=True)],
    )


def _judged(session: Session, candidates: Artifact, frozen: Answers) -> Scores:
    judgments = judge(session, candidates, held_out_judge(session), "held-out judge", frozen.candidates)
    return [judgment.scores for judgment in all_judgments(judgments.tables())]


def _together(session: Session, one: Artifact, other: Artifact) -> Artifact:
    """The answers of both to each prompt as one group."""

    def build(draft: Draft) -> Artifact:
        write_asked(draft, asked(one))
        for number, shards in enumerate(zip(group_shards(one), group_shards(other), strict=True)):
            groups = [joined(*pair) for pair in zip(*shards, strict=True)]
            draft.commit_shard(number, candidates_table(groups))
        rows = sum(int(each.manifest["rows"]) for each in (one, other))
        return draft.finish({"groups": groups_in(one)}, rows_in=rows)

    return session.store.make(Spec("together", 1, inputs={"one": one.key, "other": other.key}), build)
