"""What the votes amount to: how far along they are, how far annotators agree, and how each of them votes."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from judges.agreement import Interval, agreement, cohen_kappa, interval, krippendorff_alpha
from judges.annotation.store import Vote
from judges.annotation.tasks import Task

RESAMPLES = 500


def summarise(votes: Sequence[Vote], tasks: Iterable[Task], overlap: int = 1) -> dict[str, Any]:
    """A JSON object; figures that cannot be told yet are null. Votes on anything but ``tasks`` are left out.

    Agreement is over first, second, tie and both bad, of tasks that both (for alpha: at least two) annotators voted on.
    An annotator's ``left`` is the share of decided votes that went to the left: far from one half is a side bias, since
    sides are drawn.
    """
    chosen = {task.id: task for task in tasks}
    votes = [vote for vote in votes if vote.task in chosen]
    cast = [vote for vote in votes if vote.verdict != "skip"]
    wanted = [task.id for task in chosen.values() if not task.known]
    per_task = Counter(vote.task for vote in cast)
    return {
        "tasks": len(wanted),
        "calibration_tasks": len(chosen) - len(wanted),
        "overlap": overlap,
        "votes": len(cast),
        "skipped": len(votes) - len(cast),
        "finished": sum(per_task[id] >= overlap for id in wanted),
        "remaining": sum(max(0, overlap - per_task[id]) for id in wanted),
        "verdicts": dict(Counter(vote.verdict for vote in cast)),
        "alpha": _alpha(cast),
        "pairs": _pairs(cast),
        "annotators": [_annotator(name, votes, chosen) for name in sorted({vote.annotator for vote in votes})],
    }


def calibration(votes: Iterable[Vote], tasks: dict[str, Task]) -> tuple[int, int]:
    """How many calibration items were answered as known, and how many were answered."""
    right = [vote.verdict == tasks[vote.task].known for vote in votes if tasks[vote.task].known and _decided(vote)]
    return sum(right), len(right)


def _decided(vote: Vote) -> bool:
    return vote.verdict != "skip"


def _alpha(votes: Sequence[Vote]) -> dict[str, Any]:
    by_task: dict[str, list[str]] = {}
    for vote in votes:
        by_task.setdefault(vote.task, []).append(vote.verdict)
    shared = [verdicts for verdicts in by_task.values() if len(verdicts) > 1]
    return _figures(interval(krippendorff_alpha, shared, seed=0, resamples=RESAMPLES))


def _pairs(votes: Sequence[Vote]) -> list[dict[str, Any]]:
    by_name: dict[str, dict[str, str]] = {}
    for vote in votes:
        by_name.setdefault(vote.annotator, {})[vote.task] = vote.verdict
    found = []
    for one, other in itertools.combinations(sorted(by_name), 2):
        shared = [(by_name[one][task], by_name[other][task]) for task in by_name[one] if task in by_name[other]]
        if shared:
            kappa = interval(_kappa, shared, seed=0, resamples=RESAMPLES)
            found.append({"annotators": [one, other], "agreement": _agreed(shared), "kappa": _figures(kappa)})
    return found


def _kappa(rows: Sequence[tuple[str, str]]) -> float:
    return cohen_kappa([row[0] for row in rows], [row[1] for row in rows])


def _agreed(rows: Sequence[tuple[str, str]]) -> float:
    return agreement([row[0] for row in rows], [row[1] for row in rows])


def _annotator(name: str, votes: Sequence[Vote], tasks: dict[str, Task]) -> dict[str, Any]:
    own = [vote for vote in votes if vote.annotator == name]
    cast = [vote for vote in own if _decided(vote)]
    sided = [vote for vote in cast if vote.verdict in ("first", "second") and vote.left]
    times = [vote.seconds for vote in cast if vote.seconds is not None]
    right, answered = calibration(own, tasks)
    return {
        "name": name,
        "votes": len(cast),
        "skipped": len(own) - len(cast),
        "calibration": {"right": right, "answered": answered, "accuracy": right / answered if answered else None},
        "left": sum(vote.verdict == vote.left for vote in sided) / len(sided) if sided else None,
        "decided": len(sided),
        "ties": sum(vote.verdict == "tie" for vote in cast),
        "both_bad": sum(vote.verdict == "both_bad" for vote in cast),
        "comments": sum(bool(vote.comment) for vote in own),
        "seconds": median(times) if times else None,
    }


def _figures(found: Interval) -> dict[str, Any]:
    values = {"value": found.value, "low": found.low, "high": found.high}
    return {"items": found.items, **{name: None if math.isnan(value) else value for name, value in values.items()}}
