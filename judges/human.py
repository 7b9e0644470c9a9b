"""People as a judge: votes that were collected before, found again by what they were about."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from judges.annotation.store import Records, Vote, read_votes
from judges.annotation.summary import calibration
from judges.annotation.tasks import Task, conversation_of
from pipeline import config as knobs
from pipeline.errors import DataError, JudgeError, StoreError
from pipeline.store import digest
from pipeline.types import Group, Judgment

RESULTS: Mapping[str, tuple[float, float]] = {
    "first": (1, 0), "second": (0, 1), "tie": (0.5, 0.5), "both_bad": (0, 0),
}  # fmt: skip
"""What a vote gives to the first and to the second candidate."""


class HumanJudge:
    """A candidate's score is its mean result over all votes on it: win 1, tie ½, loss 0, "both bad" 0.

    A vote belongs to a candidate with exactly the text that was voted on, in a group with the same conversation or
    prompt id; its place in the group does not matter, and candidates with the same text share their votes. Only
    comparisons with ``least`` votes count. A candidate in none abstains, and the judgment's last vote says why.
    """

    def __init__(self, config: knobs.HumanJudge, name: str) -> None:
        """Raises JudgeError where no vote is left that counts, or ``exclude`` names somebody who has none."""
        self.name, self._least = name, config.least
        try:
            records = read_votes(Path(config.votes))
        except (DataError, StoreError) as error:
            raise JudgeError(f"judge {name!r}: {error}") from error
        self._votes = counted_votes(records, config, name)
        self._tasks: dict[str, dict[str, Task]] = {}
        for task in records.tasks.values():
            for key in (digest(list(task.conversation)), *([f"id {task.prompt_id}"] if task.prompt_id else [])):
                self._tasks.setdefault(key, {})[task.id] = task

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        return [self._judge_group(group) for group in groups]

    def close(self) -> None:
        """Nothing is open."""

    def _judge_group(self, group: Group) -> Judgment:
        results: list[list[float]] = [[] for _ in group.candidates]
        short = [0 for _ in group.candidates]
        evidence: list[dict[str, Any]] = []
        for task in self._tasks_of(group):
            places = [
                [each.index for each in group.candidates if each.text == text] for text in (task.first, task.second)
            ]
            votes = self._votes.get(task.id, [])
            enough = len(votes) >= self._least
            evidence += [_evidence(vote, places, enough) for vote in votes if all(places)]
            for side, indices in enumerate(places if all(places) else []):
                for index in indices:
                    results[index] += [RESULTS[vote.verdict][side] for vote in votes if enough]
                    short[index] = max(short[index], 0 if enough else len(votes))
        scores = tuple(sum(each) / len(each) if each else None for each in results)
        silent = {
            str(index): f"{short[index]} of {self._least} votes" if short[index] else "no votes"
            for index, score in enumerate(scores)
            if score is None
        }
        return Judgment(group.prompt.id, self.name, scores, (*evidence, *([{"abstained": silent}] if silent else [])))

    def _tasks_of(self, group: Group) -> list[Task]:
        found = self._tasks.get(f"id {group.prompt.id}", {}) | self._tasks.get(
            digest(list(conversation_of(group.prompt))), {}
        )
        return [task for task in found.values() if task.first != task.second]


def counted_votes(records: Records, config: knobs.HumanJudge, name: str) -> dict[str, list[Vote]]:
    """The votes that count under ``config``, by task; skips never do."""
    people = sorted(records.standing)
    for excluded in config.exclude:
        if excluded not in people:
            raise JudgeError(f"judge {name!r}: exclude names {excluded!r}; {config.votes!r} has votes of {people}")
    trusted = [each for each in people if each not in config.exclude and _is_accurate(records, each, config.accuracy)]
    by_task: dict[str, list[Vote]] = {}
    for person in trusted:
        for vote in records.standing[person].values():
            if vote.verdict != "skip":
                by_task.setdefault(vote.task, []).append(vote)
    if not by_task:
        raise JudgeError(f"judge {name!r}: no vote of {config.votes!r} counts; it has votes of {people}")
    return by_task


def _is_accurate(records: Records, person: str, wanted: float | None) -> bool:
    if wanted is None:
        return True
    right, answered = calibration(records.standing[person].values(), records.tasks)
    return answered > 0 and right / answered >= wanted


def _evidence(vote: Vote, places: Sequence[Sequence[int]], counted: bool) -> dict[str, Any]:
    seen = {"annotator": vote.annotator, "first": places[0], "second": places[1], "verdict": vote.verdict}
    known = {"left": vote.left, "seconds": vote.seconds, "comment": vote.comment or None}
    return {**seen, **{name: value for name, value in known.items() if value is not None}, "counted": counted}
