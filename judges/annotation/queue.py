"""Who is asked what, in which order and which way round: pure functions of the votes so far.

Every draw is a hash of the annotator and the task, so a reload, a second tab or another server shows the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from judges.annotation.store import Records
from judges.annotation.tasks import Side, Task
from pipeline.store import digest


@dataclass(frozen=True, slots=True)
class Plan:
    overlap: int = 1
    """Votes every task shall have, each of another annotator. Whoever is asked twice at once may give one more."""
    calibration: float = 0.1
    """Share of calibration items among what an annotator sees, as long as there are any left."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    done: int
    """Votes of this annotator."""
    skipped: int
    remaining: int
    """Tasks that still want a vote this annotator may give; calibration items aside, unless there is nothing else."""


@dataclass
class Queue:
    tasks: Sequence[Task]
    """What is asked; the records may know more."""
    plan: Plan
    _orders: dict[str, list[Task]] = field(default_factory=dict)

    def next(self, records: Records, annotator: str) -> Task | None:
        """What ``annotator`` is asked now; None when there is nothing left.

        What was taken back last comes first. A calibration item takes one place, drawn for each annotator, in every
        ``1 / calibration`` places. Without ordinary tasks all calibration items are asked.
        """
        seen = records.standing.get(annotator, {})
        ordered = self._order(annotator)
        for taken_back in reversed(records.withdrawn.get(annotator, [])):
            if again := next((task for task in ordered if task.id == taken_back), None):
                return again
        ordinary = next(self._open(records, annotator), None)
        if ordinary and not self.all_known and self._is_calibrated(annotator, len(seen)):
            return next((task for task in ordered if task.known and task.id not in seen), ordinary)
        return ordinary

    def progress(self, records: Records, annotator: str) -> Progress:
        votes = records.standing.get(annotator, {})
        skipped = sum(vote.verdict == "skip" for vote in votes.values())
        return Progress(len(votes) - skipped, skipped, sum(1 for _ in self._open(records, annotator)))

    @cached_property
    def all_known(self) -> bool:
        """There are only calibration items: then those are the work."""
        return all(task.known for task in self.tasks)

    def left(self, task: Task, annotator: str) -> Side:
        """The candidate ``annotator`` sees on the left."""
        return "first" if self._draw("side", annotator, task.id) % 2 else "second"

    def _open(self, records: Records, annotator: str) -> Iterator[Task]:
        seen = records.standing.get(annotator, {})
        return (
            task
            for task in self._order(annotator)
            if task.id not in seen
            and (self.all_known or (not task.known and records.voted[task.id] < self.plan.overlap))
        )

    def _order(self, annotator: str) -> list[Task]:
        if annotator not in self._orders:
            self._orders[annotator] = sorted(self.tasks, key=lambda task: self._draw("order", annotator, task.id))
        return self._orders[annotator]

    def _is_calibrated(self, annotator: str, place: int) -> bool:
        if self.plan.calibration <= 0:
            return False
        every = max(1, round(1 / self.plan.calibration))
        block, within = divmod(place, every)
        return self._draw("calibration", annotator, block) % every == within

    def _draw(self, *what: str | int) -> int:
        return int(digest([self.plan.seed, *what])[:15], 16)
