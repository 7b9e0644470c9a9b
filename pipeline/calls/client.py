"""Asks one model, through the ledger: nothing that was answered is sent again, and no budget is passed."""

import asyncio
import atexit
import gc
import json
import logging
import math
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.calls import limits
from pipeline.calls.accounts import BILLIONTHS
from pipeline.calls.claims import Grant
from pipeline.calls.estimate import price, size
from pipeline.calls.ledger import opened
from pipeline.calls.outcomes import Outcome, of_body, of_status, showable
from pipeline.calls.request import Desk, Failure, Reply, Request
from pipeline.calls.ways import LOST, Server, roomiest
from pipeline.config import Endpoint
from pipeline.deadline import wait
from pipeline.errors import JudgeError

if TYPE_CHECKING:
    from pipeline.calls.batch_api import Batches

log = logging.getLogger("ratchet.judges")

Result = TypeVar("Result")
AHEAD = 1.5
"""Calls being prepared, on their way or being booked, for each place to be on its way: the server is never to wait."""


class Client:
    """All of a judge's calls to one model. Made for :func:`run`'s event loop and no other.

    A request's body is sent as it is: the endpoint's ``extra`` fields are the judge's to put there, because they
    belong to the key. ``others`` are further servers of the same model, under whatever name they have it: requests
    name the first, each try goes to the server with the most room, and one that is down loses its share to the others.

    Raises:
        JudgeError: a key is needed and missing; a budget is set and an endpoint has no prices.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        desk: Desk,
        judge: str = "",
        waits: limits.Waits | None = None,
        others: Sequence[Endpoint] = (),
    ) -> None:
        endpoints = (endpoint, *others)
        for each in endpoints:
            if desk.budget is not None and each.price_in is None:
                raise JudgeError(
                    f"budget {desk.budget:g}: {each.model} at {each.base_url} has no prices; set price_in and"
                    " price_out (0 where it costs nothing)"
                )
        assert not (others and any(each.batch for each in endpoints)), "a batch lies on one server"
        self._endpoint, self._desk, self._waits = endpoint, desk, waits or limits.Waits()
        self._servers = [Server(each, desk.account, judge, self._waits) for each in endpoints]
        self._tries = max(each.tries for each in endpoints)
        self._ledger = opened(desk.ledger)
        self._ahead = asyncio.Semaphore(math.ceil(AHEAD * sum(each.concurrency for each in endpoints)))
        self._booking = self._servers[0].booking
        self._budget = None if desk.budget is None else round(desk.budget * BILLIONTHS)
        self._told = False
        self._batches: Batches | None = None
        _open.add(self)

    async def ask(self, request: Request) -> Reply | Failure:
        """The answer: from the ledger, from a call on its way, or from the endpoint. A failed call is a Failure.

        Raises:
            JudgeError: no call can work any more: the key or the model is refused, the quota is gone, the endpoint
                was never there (of several: each of them), or the budget is reached. What was answered is in the
                ledger.
        """
        key = request.key
        while (stored := self._ledger.answer(key)) is None:
            twin = self._ledger.asking.get(key)
            if twin is None:
                return await self._lead(key, request)
            outcome = await asyncio.shield(twin)
            if isinstance(outcome, Failure):
                return outcome
        self._ledger.hit(self._booking)
        return Reply(key, json.loads(stored))

    async def close(self) -> None:
        """Hang up. What is on its way must have ended."""
        _open.discard(self)
        if self._batches is not None:
            await self._batches.close()
        for server in self._servers:
            await server.api.close()

    async def _lead(self, key: str, request: Request) -> Reply | Failure:
        """Ask, while others of this process that want the same wait for us."""
        asking = self._ledger.asking[key] = asyncio.get_running_loop().create_future()
        outcome: Reply | Failure | None = None
        try:
            outcome = await self._try(key, request)
            return outcome
        finally:
            del self._ledger.asking[key]
            asking.set_result(outcome)

    async def _try(self, key: str, request: Request) -> Reply | Failure:
        """Up to ``tries`` calls. Waiting for others is no try, nor is knocking at one door where another is open."""
        extent = size(request)
        if extent.most_reply is None and self._budget is not None:
            raise JudgeError(
                f"a budget needs a limit on each reply; {self._endpoint.model} is asked without max_tokens"
            )
        most = max(price(each.endpoint, extent.most_prompt, extent.most_reply or 0) for each in self._servers)
        tokens = extent.prompt + (extent.most_reply or 0)
        content = self._written(request)
        if self._endpoint.batch:
            return await self._by_batch().ask(key, content[self._endpoint.model], most)
        tries = 0
        while True:
            async with self._ahead:
                server = self._next()
                server.taken += 1
                try:
                    grant = await self._ledger.claim_soon(key, server.booking, most, self._budget)
                    sent = content[server.endpoint.model]
                    outcome = await self._send(server, key, sent, tokens, most) if grant is Grant.YOURS else None
                finally:
                    server.taken -= 1
            if grant is Grant.ELSEWHERE and self._in_an_orphaned_batch(key):
                return await self._by_batch().ask(key, content[self._endpoint.model], most)
            if outcome is None:
                if (stored := await self._elsewhere(grant, key, most)) is not None:
                    return Reply(key, json.loads(stored))
                continue
            if outcome.raw is not None:
                return Reply(key, outcome.raw)
            others = self._others_stand(server, outcome)
            tries += not (others and (outcome.fatal or outcome.reason == "no_connection"))
            if not outcome.again or tries >= self._tries:
                return self._given_up(key, outcome)
            if not others:
                await asyncio.sleep(limits.back_off(tries, self._waits.back_off, self._waits.longest_back_off))

    def _written(self, request: Request) -> Mapping[str, bytes]:
        """The request's bytes, by the name that servers have for the model."""
        names = {each.endpoint.model for each in self._servers}
        rest = {"messages": request.messages, **request.body}
        return {name: json.dumps({"model": name, **rest}).encode() for name in names}

    def _next(self) -> Server:
        """Where the next call goes. Raises JudgeError where there is nowhere to go any more."""
        able = [server for server in self._servers if server.fatal is None]
        if not able:
            assert self._servers[0].fatal is not None
            raise self._servers[0].fatal
        return roomiest(able)

    def _others_stand(self, server: Server, outcome: Outcome) -> bool:
        """After a call that failed: whether it is its server's fault, and another can be asked at once."""
        if outcome.reason in LOST:
            server.fell()
        elif not outcome.fatal:
            return False
        return any(each.fatal is None and not each.aside for each in self._servers if each is not server)

    def _in_an_orphaned_batch(self, key: str) -> bool:
        """Begun when the endpoint was asked in batches, by a process that is gone: paid for, and nobody else looks."""
        batch = self._ledger.batches.of(key)
        return batch is not None and not batch.owner_lives

    def _by_batch(self) -> "Batches":
        if self._batches is None:
            from pipeline.calls.batch_api import Batches

            self._batches = Batches(self._endpoint, self._ledger, self._booking, self._budget, self._waits)
        return self._batches

    async def _elsewhere(self, grant: Grant, key: str, most: int) -> str | None:
        """What somebody else was answered; None when it is time to look again."""
        if grant is Grant.ANSWERED:
            return self._ledger.answer(key)
        if grant is Grant.NEVER:
            raise self._ledger.budget_reached(self._desk.account, self._budget or 0, most)
        if grant is Grant.ELSEWHERE and not self._told:
            self._told = True
            log.warning("another process is asking %s the same; waiting for its answers", self._endpoint.model)
        await asyncio.sleep(self._waits.look_again)
        self._ledger.bury_the_dead()
        return None

    async def _send(self, server: Server, key: str, content: bytes, tokens: int, most: int) -> Outcome:
        """One try, from claim to settlement. Raises JudgeError where it shows that no call can work any more."""
        sent = False
        try:
            await server.lane.turn(tokens)
            sent = True
            outcome = await self._exchange(server, content)
        except BaseException as error:
            self._ledger.fail(key, "cancelled", type(error).__name__, server.booking, unknown=sent)
            raise
        cost = price(server.endpoint, *outcome.tokens) if outcome.tokens is not None else most
        if outcome.text is not None:
            server.stands()
            await self._ledger.settle_soon(key, outcome.text, server.booking, outcome.tokens or (0, 0), cost)
        elif outcome.tokens is not None:
            self._ledger.fail(key, outcome.reason, outcome.detail, server.booking, spent=cost)
        else:
            self._ledger.fail(key, outcome.reason, outcome.detail, server.booking, unknown=outcome.billed)
        if outcome.fatal:
            self._out_of_order(server, f"{server.endpoint.model} at {server.endpoint.base_url}: {outcome.detail}")
        return outcome

    def _out_of_order(self, server: Server, why: str) -> None:
        """Ask this server no more. Raises JudgeError where it was the last one."""
        known, server.fatal = server.fatal, JudgeError(why)
        if all(each.fatal is not None for each in self._servers):
            raise server.fatal
        if known is None:
            log.warning("%s; its share goes to the other servers", why)

    async def _exchange(self, server: Server, content: bytes) -> Outcome:
        import httpx2
        import openai

        try:
            response = await server.api.complete(server.path, content)
            outcome = of_body(response.content.decode(errors="replace"))
        except openai.APITimeoutError:
            outcome = Outcome("timeout", f"none in {server.endpoint.timeout:g} s", billed=True)
        except openai.APIConnectionError as error:
            absent = isinstance(error.__cause__, httpx2.ConnectError)
            outcome = Outcome("no_connection" if absent else "cut_off", str(error.__cause__), billed=not absent)
        except openai.APIStatusError as error:
            outcome = of_status(error.status_code, error.body, server.lane.has_answered)
        return replace(outcome, detail=showable(outcome.detail, server.secret)) if outcome.detail else outcome

    def _given_up(self, key: str, outcome: Outcome) -> Failure:
        if outcome.reason == "no_connection" and not any(each.lane.has_answered for each in self._servers):
            error = JudgeError(f"{self._endpoint.base_url} cannot be reached: {outcome.detail}")
            for each in self._servers:
                each.fatal = error
            raise error
        return Failure(key, outcome.reason, outcome.detail)


_open: set[Client] = set()
YOUNG = 20_000
"""Objects before the garbage collector looks. A call makes a thousand, all gone by reference counts, so that with
Python's default of 700 a sixth of a call's time goes into looking at what thousands of waiting calls hold."""
_loops: dict[int, asyncio.AbstractEventLoop] = {}
_starting = threading.Lock()


def run(coroutine: Coroutine[Any, Any, Result], ending: bool = False) -> Result:
    """The coroutine's result, computed on the process's one background event loop; callable from any thread but its
    own. Where the caller is interrupted, or its stage has no time left and is not ``ending`` anyway, the coroutine is
    cancelled and has ended when this raises."""
    loop = _loop()
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result() if ending else wait(future)
    except BaseException:
        if future.cancel():
            asyncio.run_coroutine_threadsafe(_cancelled(), loop).result()
        raise


def _loop() -> asyncio.AbstractEventLoop:
    """By process: a forked child has the variable, but not the thread."""
    with _starting:
        if os.getpid() not in _loops:
            _loops[os.getpid()] = loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="judges", daemon=True).start()
            atexit.register(_hang_up, os.getpid())
            gc.set_threshold(max(YOUNG, gc.get_threshold()[0]), *gc.get_threshold()[1:])
        return _loops[os.getpid()]


def _hang_up(process: int) -> None:
    """Judges have no last call, so their clients are closed when the process ends; not by a forked child."""
    if process == os.getpid():
        for client in list(_open):
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(client.close(), _loops[process]).result(timeout=1.0)


async def _cancelled() -> None:
    """Calls that are being cancelled have booked their end."""
    ending = [task for task in asyncio.all_tasks() if task.cancelling()]
    if ending:
        await asyncio.wait(ending, timeout=5.0)
