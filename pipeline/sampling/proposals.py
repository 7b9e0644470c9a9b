"""Candidates from a model that others serve: its answers are text, paid for once and kept in the ledger.

A candidate is a call of its own with a seed of its own, so that one that is given up leaves the others as they are.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.calls.request import Desk, Failure, Reply, Request
from pipeline.config import ServedModel
from pipeline.errors import JudgeError, SamplingError
from pipeline.sampling.seeds import draw_seed
from pipeline.types import Candidate, FinishReason, Group, Message, Prompt

if TYPE_CHECKING:
    from pipeline.calls.client import Client

EMPTY, FILTERED = "empty", "content_filter"
"""Why an answer is no candidate: it holds no words, as where all of them went into thinking; the provider hid it."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A candidate that was asked for and is not there."""

    prompt_id: str
    index: int
    reason: str
    """Short and countable: that of a failed call, ``empty`` or ``content_filter``."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Proposed:
    groups: tuple[Group, ...]
    """One a prompt, in order, of whatever candidates there are: n or fewer, perhaps none."""
    given_up: tuple[Missing, ...]
    """Never answered."""
    unusable: tuple[Missing, ...]
    """Answered, with nothing to judge."""


class Proposer:
    """One served model, asked through the ledger. Thread-safe.

    All prompts given are asked about at once, as far as the endpoints' ``concurrency`` allows.

    Args:
        name: of the model in the config; its candidates' ``model``.
        seed, round: as of :func:`draw_seed`.
        unanswered: share of the calls that may be given up.
    """

    def __init__(self, name: str, config: ServedModel, desk: Desk, seed: int, round: int, unanswered: float) -> None:
        self.name, self.config = name, config
        self._desk, self._seed, self._round, self._unanswered = desk, seed, round, unanswered
        self._client: Client | None = None

    def propose(self, prompts: Sequence[Prompt]) -> Proposed:
        """The model's candidates, indices from 0.

        Raises:
            SamplingError: no call can work, the budget is reached, or too many were given up: then it is an outage or
                a wrong setting, and groups without this model would outlast it. What was answered is in the ledger.
        """
        from pipeline.calls.client import run

        try:
            answers = run(self._ask(list(self.requests(prompts))))
        except JudgeError as error:
            raise SamplingError(f"model {self.name!r}: {error}") from error
        replies, given_up, unusable = iter(answers), [], []
        groups = []
        for prompt in prompts:
            candidates = []
            for index in range(self.config.n):
                answer = next(replies)
                if isinstance(answer, Failure):
                    given_up.append(Missing(prompt.id, index, answer.reason, answer.detail))
                elif isinstance(read := self._candidate(prompt, index, answer), Candidate):
                    candidates.append(read)
                else:
                    unusable.append(Missing(prompt.id, index, read))
            groups.append(Group(prompt, tuple(candidates)))
        self._insist(given_up, len(answers))
        return Proposed(tuple(groups), tuple(given_up), tuple(unusable))

    def requests(self, prompts: Sequence[Prompt]) -> Iterator[Request]:
        """Exactly what ``propose`` would ask, n a prompt; sends nothing."""
        first = self.config.endpoints[0]
        for prompt in prompts:
            messages = conversation(prompt, self.config.system)
            for index in range(self.config.n):
                fields = self._fields | {"seed": self._draw(prompt, index)} | first.extra
                yield Request(first.model, first.base_url, messages, fields, index)

    def close(self) -> None:
        from pipeline.calls.client import run

        if self._client is not None:
            run(self._client.close(), ending=True)
            self._client = None

    async def _ask(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """All answers, in order; where some raise, the first error, once what is on its way is in the ledger."""
        client = self._connected()
        results = await asyncio.gather(*map(client.ask, requests), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if not isinstance(result, BaseException)]

    def _connected(self) -> "Client":
        if self._client is None:
            from pipeline.calls.client import Client

            first, *others = self.config.endpoints
            self._client = Client(first, self._desk, self.name, others=others)
        return self._client

    @property
    def _fields(self) -> dict[str, Any]:
        limit = {} if "max_completion_tokens" in self.config.endpoints[0].extra else {
            "max_tokens": self.config.max_tokens
        }  # fmt: skip
        return {"temperature": self.config.temperature, "top_p": self.config.top_p, **limit}

    def _draw(self, prompt: Prompt, index: int) -> int:
        """31 bits, which every provider takes. The name is part of it: the seeds within a group differ."""
        return draw_seed(self._seed, self._round, f"{self.name}/{prompt.id}", index) >> 32

    def _candidate(self, prompt: Prompt, index: int, reply: Reply) -> Candidate | str:
        """The candidate, or why the answer is none. A refusal is what the model has to say: it is judged."""
        text = (reply.text or reply.refusal or "").encode(errors="replace").decode()  # no table holds half a pair
        if reply.finish_reason == FILTERED:
            return FILTERED
        if not text.strip():
            return EMPTY
        finish: FinishReason = "length" if reply.finish_reason == "length" else "stop"
        return Candidate(index, (), text, finish, self._draw(prompt, index), model=self.name)

    def _insist(self, given_up: Sequence[Missing], calls: int) -> None:
        if len(given_up) > self._unanswered * calls:
            raise SamplingError(
                f"model {self.name!r}: {len(given_up)} of {calls} calls were given up ({counted(given_up)});"
                f" limits.unanswered allows {self._unanswered:g}. Every answer is kept: mend the endpoint and run again"
            )


def conversation(prompt: Prompt, system: str | None) -> tuple[Message, ...]:
    """What a chat model is asked: the prompt's messages, or its text as the user's, under ``system`` if it has none."""
    messages = prompt.messages or (Message(role="user", content=prompt.text),)
    if system is None or any(turn["role"] == "system" for turn in messages):
        return messages
    return (Message(role="system", content=system), *messages)


def identity(config: ServedModel) -> dict[str, Any]:
    """All that its answers depend on, JSON-serialisable. Where, how fast and at what price further servers are asked is
    no part: the first one names the model, in the ledger too."""
    settings = config.model_dump(mode="json", exclude={"endpoints"})
    return settings | {"endpoint": config.endpoints[0].model_dump(mode="json", include={"model", "base_url", "extra"})}


def counted(missing: Sequence[Missing]) -> str:
    """``2 timeout, 1 empty``."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(each.reason for each in missing).most_common())


def in_ids(prompt: Prompt, candidate: Candidate, tokenizer: Any, ends: frozenset[int], longest: int) -> Candidate | str:
    """The candidate with its text in a policy's token ids, and the end-of-sequence id where it stopped by itself.

    Args:
        tokenizer: the policy's.
        ends: every id that ends a completion of the policy's.
        longest: tokens that prompt and completion may have together.

    Returns:
        The candidate, or why the policy cannot have it: ``empty``, ``too_long``, or ``special_token``, where the text
        spells one or a part of it is unknown to the vocabulary: what the trainer sees would not be what was judged.
    """
    ids = tokenizer(candidate.text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        return EMPTY
    if not (ends | set(tokenizer.all_special_ids)).isdisjoint(ids):
        return "special_token"
    if candidate.finish_reason == "stop" and ends:
        own = tokenizer.eos_token_id
        ids = [*ids, min(ends) if own is None else own]
    if len(prompt.token_ids) + len(ids) > longest:
        return "too_long"
    return replace(candidate, token_ids=tuple(ids))
