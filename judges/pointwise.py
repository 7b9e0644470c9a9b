"""A language model that rates each candidate alone.

A score is the mean over the jury of each model's mean over its samples, in units of the scale: the expected value over
the labels' probabilities where the endpoint gives them, else the label.

Votes: one a candidate, in candidate order, with

    calls      one record a call, as ``judges/llm/jury.py`` says: every raw number
    same_as    only where an earlier candidate has the same text: its index; it was asked once, and ``calls`` is empty
    abstained  only where the score is None: why
"""

from collections.abc import Iterator, Sequence
from typing import Any

from judges.llm.jury import Call, Jury, pooled, together
from judges.llm.verdicts import Verdict
from pipeline import config as knobs
from pipeline.calls.request import Desk, Request
from pipeline.types import Group, Judgment


class PointwiseJudge:
    """Thread-safe. All groups given are asked about at once, as far as the endpoints' ``concurrency`` allows."""

    def __init__(self, config: knobs.PointwiseJudge, name: str, desk: Desk) -> None:
        """Raises ConfigError where the template cannot be used."""
        self.name = name
        self.jury = Jury(config, name, desk)

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        from pipeline.calls.client import run

        return run(together(self._judge(group) for group in groups))

    def calls(self, groups: Sequence[Group]) -> Iterator[tuple[int, Request]]:
        """Exactly what ``judge`` would ask, each with the number of its endpoint in the config; sends nothing."""
        for group in groups:
            for text in dict.fromkeys(candidate.text for candidate in group.candidates):
                yield from self.jury.requests(group.prompt, {"candidate": text})

    def close(self) -> None:
        from pipeline.calls.client import run

        run(self.jury.close(), ending=True)

    async def _judge(self, group: Group) -> Judgment:
        texts = [candidate.text for candidate in group.candidates]
        distinct = list(dict.fromkeys(texts))
        asked = await together(self.jury.ask(group.prompt, {"candidate": text}) for text in distinct)
        calls = dict(zip(distinct, asked, strict=True))
        ratings = {text: self._rating(calls[text]) for text in distinct}
        votes = tuple(
            _vote(calls[text], ratings[text], None if texts.index(text) == place else texts.index(text))
            for place, text in enumerate(texts)
        )
        return Judgment(group.prompt.id, self.name, tuple(ratings[text].value for text in texts), votes)

    def _rating(self, calls: list[list[Call]]) -> Verdict:
        jurors = [pooled([call.verdict for call in own]) for own in calls]
        return pooled(jurors, self.jury.config.quorum)


def _vote(calls: list[list[Call]], rating: Verdict, same_as: int | None) -> dict[str, Any]:
    vote: dict[str, Any] = {"calls": [] if same_as is not None else [call.vote() for own in calls for call in own]}
    if same_as is not None:
        vote["same_as"] = same_as
    return vote | ({} if rating.abstained is None else {"abstained": rating.abstained})
