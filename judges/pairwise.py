"""A language model that compares candidates two at a time, always in both orders.

Votes: first the comparisons, in the order they were made, each with

    first, second  indices of the two candidates
    result         P(first is better): the mean of both orders, then of the jury; None abstains
    straight       that probability as judged with ``first`` shown first
    swapped        the same probability (of ``first``) as judged with ``second`` shown first
    contradicted   whether the two orders prefer different candidates; of hard verdicts the result is then a tie
    abstained      only where ``result`` is None: why. One order that failed is enough
    calls          one record a call, as ``judges/llm/jury.py`` says, and ``order``: "straight" or "swapped". A call's
                   ``value`` is of what was *shown* first
    identical      only where the two texts are the same: a tie that nobody was asked about; no orders, no calls

then, for each candidate whose score is None, ``candidate`` (its index) and ``abstained``: why, as
``judges/llm/tournament.py`` says. A candidate whose text an earlier one has is compared with that one alone, and gets
its score.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from judges.llm.jury import Call, Jury, pooled, together
from judges.llm.tournament import Pair, Schedule, Standings, all_pairs, knockout, most_comparisons
from judges.llm.verdicts import Verdict
from pipeline import config as knobs
from pipeline.calls.request import Desk, Request
from pipeline.types import Group, Judgment, Prompt

SCHEDULES: Mapping[str, Callable[[int], Schedule]] = {"all_pairs": all_pairs, "knockout": knockout}


@dataclass(frozen=True, slots=True)
class Comparison:
    first: int
    second: int
    result: Verdict
    straight: float | None
    swapped: float | None
    calls: tuple[tuple[str, Call], ...]
    """With the order each was asked in."""

    def vote(self) -> dict[str, Any]:
        vote: dict[str, Any] = {
            "first": self.first, "second": self.second, "result": self.result.value, "straight": self.straight,
            "swapped": self.swapped, "contradicted": self.contradicted,
            "calls": [{"order": order} | call.vote() for order, call in self.calls],
        }  # fmt: skip
        return vote | ({} if self.result.abstained is None else {"abstained": self.result.abstained})

    @property
    def contradicted(self) -> bool:
        return (
            self.straight is not None and self.swapped is not None and (self.straight - 0.5) * (self.swapped - 0.5) < 0
        )


class PairwiseJudge:
    """Thread-safe. All groups given are asked about at once, as far as the endpoints' ``concurrency`` allows.

    Scores under ``all_pairs`` are Bradley-Terry strengths in logits with mean 0; under ``knockout`` 1 for the best, −1
    for the worst, 0 for the others.
    """

    def __init__(self, config: knobs.PairwiseJudge, name: str, desk: Desk) -> None:
        """Raises ConfigError where the template cannot be used."""
        self.name = name
        self.config = config
        self.jury = Jury(config, name, desk)

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        from pipeline.calls.client import run

        return run(together(self._judge(group) for group in groups))

    def calls(self, groups: Sequence[Group]) -> Iterator[tuple[int, Request]]:
        """What ``judge`` would ask, each with the number of its endpoint in the config: exactly under ``all_pairs``.

        Under ``knockout`` who meets whom depends on the answers; as many comparisons as there can be, of the longest
        candidates, are an upper bound in calls and in characters. Sends nothing.
        """
        for group in groups:
            texts = list(dict.fromkeys(candidate.text for candidate in group.candidates))
            texts.sort(key=len, reverse=True)
            pairs = [(a, b) for place, a in enumerate(texts) for b in texts[place + 1 :]]
            pairs.sort(key=lambda pair: -len(pair[0]) - len(pair[1]))
            for a, b in pairs[: most_comparisons(self.config.schedule, len(texts))]:
                yield from self.jury.requests(group.prompt, {"first": a, "second": b})
                yield from self.jury.requests(group.prompt, {"first": b, "second": a})

    def close(self) -> None:
        from pipeline.calls.client import run

        run(self.jury.close(), ending=True)

    async def _judge(self, group: Group) -> Judgment:
        texts = [candidate.text for candidate in group.candidates]
        distinct = list(dict.fromkeys(texts))
        votes: list[Mapping[str, Any]] = []
        standings = Standings((0.0,))  # all the same text: a tie that needs no judge
        if len(distinct) > 1 or len(texts) == 1:
            standings = await self._tournament(group.prompt, texts, distinct, votes)
        for place, text in enumerate(texts):
            if texts.index(text) != place:
                votes.append({"first": texts.index(text), "second": place, "result": 0.5, "identical": True})
        ranks = [distinct.index(text) for text in texts]
        reasons = {place: standings.abstained[rank] for place, rank in enumerate(ranks) if rank in standings.abstained}
        votes += [{"candidate": place, "abstained": reason} for place, reason in reasons.items()]
        return Judgment(group.prompt.id, self.name, tuple(standings.scores[rank] for rank in ranks), tuple(votes))

    async def _tournament(
        self, prompt: Prompt, texts: list[str], distinct: list[str], votes: list[Mapping[str, Any]]
    ) -> Standings:
        """Plays the schedule among the ``distinct`` texts; each comparison's vote is added."""
        place = [texts.index(text) for text in distinct]
        schedule = SCHEDULES[self.config.schedule](len(distinct))
        try:
            pairs = next(schedule)
            while True:
                made = await together(
                    self._compare(prompt, texts, (place[first], place[second])) for first, second in pairs
                )
                votes += [each.vote() for each in made]
                pairs = schedule.send([each.result.value for each in made])
        except StopIteration as end:
            standings: Standings = end.value
            return standings

    async def _compare(self, prompt: Prompt, texts: Sequence[str], pair: Pair) -> Comparison:
        """Both orders, of every juror; a juror one of whose orders failed abstains."""
        first, second = pair
        shown = {"first": texts[first], "second": texts[second]}
        turned = {"first": texts[second], "second": texts[first]}
        straight, swapped = await together([self.jury.ask(prompt, shown), self.jury.ask(prompt, turned)])
        orders = [
            (pooled([call.verdict for call in one]), pooled([call.verdict for call in other]))
            for one, other in zip(straight, swapped, strict=True)
        ]
        calls = [("straight", call) for own in straight for call in own]
        calls += [("swapped", call) for own in swapped for call in own]
        result = pooled([_both(*each) for each in orders], self.config.quorum)
        counted = [
            (one.value, 1.0 - other.value) for one, other in orders if one.value is not None and other.value is not None
        ]
        as_shown = fmean(one for one, _ in counted) if counted else None
        as_turned = fmean(other for _, other in counted) if counted else None
        return Comparison(first, second, result, as_shown, as_turned, tuple(calls))


def _both(straight: Verdict, swapped: Verdict) -> Verdict:
    """P(first is better), the mean of both orders; an abstention where one of them is."""
    if straight.value is None or swapped.value is None:
        return straight if straight.value is None else swapped
    return Verdict((straight.value + 1.0 - swapped.value) / 2)
