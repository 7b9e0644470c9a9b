"""Several language models that are asked the same: the requests, the calls, and what they say together.

The records of evidence, as they stand in the votes of both LLM judges, under ``calls``: one a call, with

    juror      number of the endpoint in the config
    model      its model
    sample     number of the draw, 0, 1, …
    key        of the request: the raw reply is in the ledger under it
    value      what the reply says, as a number (``judges/llm/scales.py``); missing where it abstained
    label      the label the reply holds, as it is written there
    mass       where ``value`` is an expected value: the labels' probability at the verdict's token
    abstained  why there is no value: a reason of ``judges/llm/verdicts.py`` or of a failed call
"""

import asyncio
import math
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from judges.llm import tournament, verdicts
from judges.llm.questions import Template, subject
from judges.llm.scales import CHOICE_TOKENS, Scale, body, form
from judges.llm.verdicts import Verdict, read
from pipeline.calls.request import Desk, Failure, Request
from pipeline.config import JudgeEndpoint, PairwiseJudge, PointwiseJudge
from pipeline.errors import JudgeError
from pipeline.types import Judgment, Prompt

if TYPE_CHECKING:
    from pipeline.calls.client import Client

Result = TypeVar("Result")
OPERATION = {
    "api_key_env", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "tries", "price_in",
    "price_out", "batch",
}  # fmt: skip
"""An endpoint's settings that no verdict depends on."""
AHEAD = 8
"""Questions rendered at a time, in multiples of an endpoint's concurrency. All of a shard at once would keep the first
from being sent for seconds; too few, and those that wait for another try would keep the server idle."""


@dataclass(frozen=True, slots=True)
class Call:
    juror: int
    model: str
    sample: int
    key: str
    verdict: Verdict

    def vote(self) -> dict[str, Any]:
        named = {"juror": self.juror, "model": self.model, "sample": self.sample, "key": self.key}
        return named | self.verdict.vote()


class Jury:
    """Renders questions, asks all endpoints, reads what they answer. One event loop may use it at a time.

    A reply without a verdict is not asked again: it was answered, and it abstains.

    Raises:
        ConfigError: the template cannot be used.
    """

    def __init__(self, config: PointwiseJudge | PairwiseJudge, name: str, desk: Desk) -> None:
        self.config = config
        self.name = name
        self.scale = scale_of(config)
        self.template = Template(config.type, config.template)
        self._values = [_values(config, self.scale, endpoint) for endpoint in config.endpoints]
        self._bodies = [_body(config, self.scale, endpoint) for endpoint in config.endpoints]
        self._desk = desk
        self._clients: list[Client] | None = None
        self._broken: JudgeError | None = None
        self._gates = [asyncio.Semaphore(AHEAD * each.concurrency) for each in config.endpoints]

    def requests(self, prompt: Prompt, texts: Mapping[str, str]) -> Iterator[tuple[int, Request]]:
        """All that one question makes us ask, each with the number of its endpoint; ``texts`` by the template's names
        for them."""
        for juror in range(len(self.config.endpoints)):
            for sample in range(self.config.samples):
                yield juror, self._request(juror, prompt, texts, sample)

    async def ask(self, prompt: Prompt, texts: Mapping[str, str]) -> list[list[Call]]:
        """What each endpoint answers, a call a sample. Raises JudgeError where nothing can work."""
        samples = range(self.config.samples)
        return await together(
            together([self._call(juror, prompt, texts, sample) for sample in samples])
            for juror in range(len(self.config.endpoints))
        )

    async def close(self) -> None:
        for client in self._clients or []:
            await client.close()
        self._clients = None

    async def _call(self, juror: int, prompt: Prompt, texts: Mapping[str, str], sample: int) -> Call:
        if self.config.endpoints[juror].batch:  # wants all there are
            return await self._answered(juror, self._request(juror, prompt, texts, sample))
        async with self._gates[juror]:
            return await self._answered(juror, self._request(juror, prompt, texts, sample))

    async def _answered(self, juror: int, request: Request) -> Call:
        if self._broken is not None:  # what is on its way is stored; nothing more is sent
            raise self._broken
        endpoint = self.config.endpoints[juror]
        try:
            answer = await self._client(juror).ask(request)
        except JudgeError as error:
            self._broken = error
            raise
        if isinstance(answer, Failure):
            verdict = Verdict(None, abstained=answer.reason)
        else:
            verdict = read(answer, self.scale, endpoint.structured)
        return Call(juror, endpoint.model, request.sample, answer.key, verdict)

    def _client(self, juror: int) -> "Client":
        if self._clients is None:
            from pipeline.calls.client import Client

            self._clients = [Client(endpoint, self._desk, self.name) for endpoint in self.config.endpoints]
        return self._clients[juror]

    def _request(self, juror: int, prompt: Prompt, texts: Mapping[str, str], sample: int) -> Request:
        endpoint, fields = self.config.endpoints[juror], self._bodies[juror]
        messages = self.template.render(self._values[juror] | subject(prompt, texts))
        if self.config.seed is not None:
            fields = {"seed": self.config.seed + sample} | fields
        return Request(endpoint.model, endpoint.base_url, messages, fields, sample)


def identity(config: PointwiseJudge | PairwiseJudge) -> dict[str, Any]:
    """All that the judge's scores depend on, JSON-serialisable: settings, the template's text, how the verdict is
    asked for, and the versions of reading and of rating. How fast or at what price endpoints are asked is no part."""
    settings = config.model_dump(mode="json", exclude={"template": True, "endpoints": {"__all__": OPERATION}})
    scale = scale_of(config)
    return settings | {
        "template": Template(config.type, config.template).digest,
        "form": [form(scale, each.structured, _reasons(config, each)) for each in config.endpoints],
        "body": [_body(config, scale, each) for each in config.endpoints],
        "version": [verdicts.VERSION, tournament.VERSION],
    }


def given_up(judgments: Iterable[Judgment]) -> tuple[int, Counter[str]]:
    """Calls behind the judgments, and those of them that were never answered, by reason."""
    calls = [call for judgment in judgments for vote in judgment.votes for call in vote.get("calls", ())]
    reasons = (call.get("abstained") for call in calls)
    return len(calls), Counter(reason for reason in reasons if reason and reason not in verdicts.REASONS)


def scale_of(config: PointwiseJudge | PairwiseJudge) -> Scale:
    if isinstance(config, PointwiseJudge):
        return Scale.rating(config.lowest, config.highest)
    return Scale.comparison(config.ties)


def pooled(parts: Sequence[Verdict], quorum: int = 1) -> Verdict:
    """The mean of those parts that did not abstain, where they are at least ``quorum``.

    Else an abstention: for the commonest reason where all abstained, for ``no_quorum`` where some did not.
    """
    values = [part.value for part in parts if part.value is not None]
    if len(values) >= quorum:
        return Verdict(math.fsum(values) / len(values))
    reasons = Counter(part.abstained for part in parts)
    return Verdict(None, abstained="no_quorum" if values else reasons.most_common(1)[0][0])


async def together(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results, in order. Where some raise, the first error, but only when all have ended: a paid call that is on
    its way must still reach the ledger."""
    coroutines = list(work)
    if len(coroutines) == 1:  # most juries have one member, and a task costs as much as rendering a question
        return [await coroutines[0]]
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def _reasons(config: PointwiseJudge | PairwiseJudge, endpoint: JudgeEndpoint) -> bool:
    return config.reasoning and endpoint.structured != "choice"


def _values(config: PointwiseJudge | PairwiseJudge, scale: Scale, endpoint: JudgeEndpoint) -> dict[str, Any]:
    """The template's variables that are the same for all groups."""
    reasoning = _reasons(config, endpoint)
    values = {"rubric": config.rubric, "reasoning": reasoning, "form": form(scale, endpoint.structured, reasoning)}
    if isinstance(config, PointwiseJudge):
        return values | {"lowest": config.lowest, "highest": config.highest}
    return values | {"ties": config.ties}


def _body(config: PointwiseJudge | PairwiseJudge, scale: Scale, endpoint: JudgeEndpoint) -> dict[str, Any]:
    """All fields but the seed; ``extra`` has the last word."""
    limit = CHOICE_TOKENS if endpoint.structured == "choice" else config.max_tokens
    fields = {"temperature": config.temperature, "max_tokens": limit}
    if "max_completion_tokens" in endpoint.extra:  # OpenAI's reasoning models take this name, and not both
        del fields["max_tokens"]
    asked = body(scale, endpoint.structured, _reasons(config, endpoint), endpoint.logprobs)
    return fields | asked | endpoint.extra
