"""Requests through the Batch API: half the price, answers within a day.

What is asked within a short while goes as one file. A batch is in the ledger, with its claims, before anything is sent,
and its id is stored before it is looked at. The provider keeps our tag for it too, so that it is found again where the
process died between the two. Whoever wants one of its keys later waits for it, and pays nothing.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import openai

from pipeline.calls import limits
from pipeline.calls.accounts import Booking
from pipeline.calls.batch_file import line_of, of_line, portions, read_lines
from pipeline.calls.claims import Grant
from pipeline.calls.estimate import price
from pipeline.calls.keys import secret
from pipeline.calls.ledger import Ledger
from pipeline.calls.open_batches import BatchOutcome, OpenBatch
from pipeline.calls.outcomes import QUOTA, Outcome, showable
from pipeline.calls.request import Failure, Reply
from pipeline.config import Endpoint
from pipeline.errors import JudgeError

if TYPE_CHECKING:
    from openai.types import Batch

log = logging.getLogger("ratchet.judges")

TAG = "ratchet"
"""Name of the metadata field that holds our tag."""
ENDED = {"completed", "failed", "expired", "cancelled"}
LISTED = 1000
"""Latest batches to look through for a lost one."""
AT_ONCE = 1000
"""Outcomes booked in one transaction."""


@dataclass(slots=True)
class Wanted:
    line: bytes
    """Of the batch's file."""
    most: int
    """Worst case, in billionths."""
    answer: "asyncio.Future[Reply | Failure]"
    tries: int = 0


class Batches:
    """One client's batches. Made and used on one event loop."""

    def __init__(
        self, endpoint: Endpoint, ledger: Ledger, booking: Booking, budget: int | None, waits: limits.Waits
    ) -> None:
        self._endpoint, self._ledger, self._open, self._booking = endpoint, ledger, ledger.batches, booking
        self._budget, self._waits, self._secret = budget, waits, secret(endpoint)
        self._place = f"{endpoint.base_url.rstrip('/')} {endpoint.model}"
        self._gathered: dict[str, Wanted] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rounds: set[asyncio.Task[None]] = set()
        self._api = openai.AsyncOpenAI(
            api_key=self._secret or "none", base_url=endpoint.base_url, timeout=endpoint.timeout,
            max_retries=endpoint.tries, http_client=openai.DefaultAioHttpClient(),
        )  # fmt: skip

    async def ask(self, key: str, content: bytes, most: int) -> Reply | Failure:
        """``content`` is the request's body, ``most`` its worst case in billionths.

        Raises:
            JudgeError: the Batch API cannot be used, or the budget does not hold the call. A batch that is on its way
                stays in the ledger, and the next run goes on with it.
        """
        loop = asyncio.get_running_loop()
        wanted = self._gathered[key] = Wanted(line_of(key, content), most, loop.create_future())
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(self._waits.gather, self._go)
        return await wanted.answer

    async def close(self) -> None:
        for each in self._rounds:
            each.cancel()
        await self._api.close()

    # ------------------------------------------------------------------------------------------------- a round
    def _go(self) -> None:
        gathered, self._gathered, self._timer = self._gathered, {}, None
        task = asyncio.ensure_future(self._round(gathered))
        self._rounds.add(task)
        task.add_done_callback(self._rounds.discard)

    async def _round(self, wanted: dict[str, Wanted]) -> None:
        """Each of ``wanted`` ends answered or failed, or all with the error that stops us."""
        try:
            while wanted:
                batches = self._batches(wanted)
                done = await asyncio.gather(*(self._finish(*each) for each in batches), return_exceptions=True)
                for each in done:
                    if isinstance(each, BaseException):
                        raise each
                failed = {key: outcome for each in done if isinstance(each, dict) for key, outcome in each.items()}
                self._hand_out(wanted, failed)
                if wanted:
                    await asyncio.sleep(self._pause(wanted) if failed else self._waits.look_again)
        except BaseException as error:
            stopped = error if isinstance(error, JudgeError) else JudgeError(f"batch at {self._place}: {error!r}")
            for waiting in wanted.values():
                if not waiting.answer.done():
                    waiting.answer.set_exception(stopped)
            if not isinstance(error, JudgeError):
                raise

    def _pause(self, wanted: Mapping[str, Wanted]) -> float:
        tries = max(each.tries for each in wanted.values())
        return limits.back_off(max(1, tries), self._waits.back_off, self._waits.longest_back_off)

    def _batches(self, wanted: dict[str, Wanted]) -> list[tuple[OpenBatch, bytes]]:
        """The open batches that hold some of ``wanted``, and new ones, with their files, for the rest."""
        open_ones: dict[int, tuple[OpenBatch, bytes]] = {}
        loose: dict[str, bytes] = {}
        for key, each in wanted.items():
            if (batch := self._open.of(key)) is None:
                loose[key] = each.line
            else:
                open_ones[batch.id] = (batch, b"")
        made = [self._made(keys, wanted) for keys in portions(loose)]
        return [*open_ones.values(), *(each for each in made if each is not None)]

    def _made(self, keys: Sequence[str], wanted: dict[str, Wanted]) -> tuple[OpenBatch, bytes] | None:
        """A new batch with what the budget holds of ``keys``; what it will never hold leaves ``wanted``."""
        part = {key: wanted[key] for key in keys}
        amounts = {key: each.most for key, each in part.items()}
        batch, grants = self._open.open(self._place, uuid.uuid4().hex, amounts, self._booking, self._budget)
        for key, grant in grants.items():
            if grant is Grant.NEVER:
                error = self._ledger.budget_reached(self._booking.account, self._budget or 0, part[key].most)
                wanted.pop(key).answer.set_exception(error)
        lines = b"".join(part[key].line for key, grant in grants.items() if grant is Grant.YOURS)
        if not lines:
            self._open.close(batch.id)
            return None
        return batch, lines

    def _hand_out(self, wanted: dict[str, Wanted], failed: Mapping[str, Outcome]) -> None:
        for key, each in list(wanted.items()):
            if each.answer.done():  # whoever asked has gone
                del wanted[key]
            elif (stored := self._ledger.answer(key)) is not None:
                wanted.pop(key).answer.set_result(Reply(key, json.loads(stored)))
            elif (outcome := failed.get(key)) is not None:
                each.tries += 1
                if not outcome.again or each.tries >= self._endpoint.tries:
                    wanted.pop(key).answer.set_result(
                        Failure(key, outcome.reason, showable(outcome.detail, self._secret))
                    )

    # -------------------------------------------------------------------------------------------- one batch
    async def _finish(self, batch: OpenBatch, lines: bytes) -> dict[str, Outcome]:
        """Sees a batch to its end, sends it first where that is ours to do, and books it; what failed, by key."""
        with self._explained():
            remote = batch.remote or await (self._send(batch, lines) if lines else self._adopt(batch))
            if remote is None:
                return {}
            try:
                ended = await self._ended(remote)
            except openai.NotFoundError as error:
                outcomes = dict.fromkeys(self._open.keys(batch.id), Outcome("batch_gone", str(error), billed=True))
            else:
                outcomes = await self._outcomes(batch.id, ended)
        self._book(batch.id, outcomes)
        for outcome in outcomes.values():
            if outcome.fatal:
                raise JudgeError(f"{self._place}: {showable(outcome.detail, self._secret)}")
        return {key: outcome for key, outcome in outcomes.items() if outcome.text is None}

    async def _send(self, batch: OpenBatch, lines: bytes) -> str:
        """The provider's id. Where it cannot be learnt, the next to want the batch looks for its tag."""
        try:
            file = await self._api.files.create(file=("requests.jsonl", lines), purpose="batch")
            remote = await self._create(batch, file.id)
            self._open.sent(batch.id, remote)
            return remote
        finally:
            self._open.not_sending(batch.id)

    async def _create(self, batch: OpenBatch, file: str) -> str:
        once = self._api.with_options(max_retries=0)
        for attempt in range(1, self._endpoint.tries + 1):
            try:
                made = await once.batches.create(
                    input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h",
                    metadata={TAG: batch.tag},
                )  # fmt: skip
                return made.id
            except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
                if attempt == self._endpoint.tries or error.code in QUOTA:
                    raise
            await asyncio.sleep(limits.back_off(attempt, self._waits.back_off, self._waits.longest_back_off))
            if (found := await self._find(batch.tag)) is not None:  # it was created, and only the reply was lost
                return found
        raise AssertionError("the last attempt returns or raises")

    async def _adopt(self, batch: OpenBatch) -> str | None:
        """A batch whose id nobody stored: None while its maker is still at it, or where it was never created."""
        if batch.owner_lives:
            return None
        if (remote := await self._find(batch.tag)) is None:
            self._open.close(batch.id)
        else:
            self._open.sent(batch.id, remote)
        return remote

    async def _find(self, tag: str) -> str | None:
        seen = 0
        async for each in self._api.batches.list(limit=100):
            if (each.metadata or {}).get(TAG) == tag:
                return each.id
            if (seen := seen + 1) >= LISTED:
                break
        return None

    async def _ended(self, remote: str) -> "Batch":
        while True:
            try:
                batch = await self._api.batches.retrieve(remote)
                if batch.status in ENDED:
                    return batch
            except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
                log.warning("batch %s: %s; looking again", remote, type(error).__name__)
            await asyncio.sleep(self._waits.poll)

    async def _outcomes(self, number: int, batch: "Batch") -> dict[str, Outcome]:
        """By key, of all that the ledger still waits for in it."""
        outcomes = {}
        completed = batch.request_counts.completed if batch.request_counts is not None else 0
        for file, least in ((batch.output_file_id, completed), (batch.error_file_id, 0)):
            for line in await self._lines(file, least) if file else []:
                outcomes[str(line.get("custom_id"))] = of_line(line)
        errors = (batch.errors.data if batch.errors else None) or []
        detail = "; ".join(f"{each.code}: {each.message}" for each in errors)
        absent = Outcome(f"batch_{batch.status}", detail, fatal=any(each.code in QUOTA for each in errors))
        return {key: outcomes.get(key, absent) for key in self._open.keys(number)}

    async def _lines(self, file: str, least: int) -> list[dict[str, Any]]:
        """At least ``least``. Fetched again where it came broken: what it holds is paid for."""
        for attempt in range(1, self._endpoint.tries + 1):
            try:
                text = (await self._api.files.content(file)).text
                lines = read_lines(text)
            except ValueError:
                lines = []
            if lines and len(lines) >= least:
                return lines
            await asyncio.sleep(limits.back_off(attempt, self._waits.back_off, self._waits.longest_back_off))
        raise JudgeError(f"{self._place}: the batch's file {file} cannot be read; its batch is kept for another run")

    def _book(self, number: int, outcomes: Mapping[str, Outcome]) -> None:
        booked = [
            BatchOutcome(
                key, each.text, each.tokens, price(self._endpoint, *each.tokens) if each.tokens else None,
                each.reason, showable(each.detail, self._secret), each.billed,
            )
            for key, each in outcomes.items()
        ]  # fmt: skip
        for start in range(0, len(booked), AT_ONCE):
            self._open.settle(number, booked[start : start + AT_ONCE])
        self._open.close(number)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except openai.OpenAIError as error:
            raise JudgeError(f"{self._place}: the Batch API: {showable(str(error), self._secret)}") from None
