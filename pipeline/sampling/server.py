"""The policy served elsewhere, by one ``vllm serve`` or several: a Sampler over HTTP, token ids in and out.

    VLLM_SERVER_DEV_MODE=1 vllm serve CHECKPOINT --served-model-name policy \\
        --worker-extension-cls pipeline.sampling.worker_extension.CheckpointLoader

Development mode is what lets a server take the weights of the next round, from the policy's folder, which both must be
able to read. The extension is needed on a CPU, where a reload leaves tied embeddings as they were; elsewhere a server
without it is loaded by vLLM's own method. A server without development mode will do as long as it serves just the
policy that is asked for.

Whatever was done, the policy's probe is measured over the same line before a server's samples are taken: when a policy
is loaded, when a sampling begins, and when a server that was lost is back, since one that started anew serves what it
was started with. An answer counts where the server is known, or proved again, to have been one and the same from before
it was asked until after it answered.

A server that refuses, or serves another policy and takes no weights, is left out until the next policy is loaded: what
is sampled ends only where none is left.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

from pipeline.calls.client import AHEAD, run
from pipeline.calls.limits import Waits, back_off
from pipeline.calls.outcomes import Outcome
from pipeline.calls.ways import LOST, roomiest
from pipeline.config import SamplingConfig
from pipeline.errors import JudgeError, SamplingError, WeightSyncError
from pipeline.protocols import Decoding, SampleRequest
from pipeline.sampling.served import Served
from pipeline.sampling.vllm_api import Failed, VllmServer
from pipeline.types import Candidate, Group, Policy

log = logging.getLogger("ratchet.sampling")

T = TypeVar("T")
GONE = ("no_connection", "cut_off")
"""After these a server may be another process."""
STALE = Outcome("loaded_anew", "it was lost or loaded anew while it answered")


class ServerSampler:
    """A Sampler. Not for use by several threads at a time.

    Raises:
        SamplingError: a server's key is needed and missing.
    """

    def __init__(self, config: SamplingConfig, waits: Waits | None = None) -> None:
        self._config, self._waits = config, waits or Waits()
        try:
            self._servers = [VllmServer(endpoint, self._waits) for endpoint in config.endpoints]
        except JudgeError as error:
            raise SamplingError(f"sampling.endpoints: {error}") from error
        self._tries = max(endpoint.tries for endpoint in config.endpoints)
        concurrency = sum(endpoint.concurrency for endpoint in config.endpoints)
        self._ahead = asyncio.Semaphore(math.ceil(AHEAD * concurrency))
        self._in_hand = 2 * concurrency
        """Candidates that are asked for at a time: enough that no server waits for this process."""
        self._served: Served | None = None

    def load(self, policy: Policy) -> None:
        """As in Sampler. A server that cannot be reached is left aside, and one that is not fit for the policy left out
        with a warning, as long as there is another.

        Raises:
            WeightSyncError: no server gives the probe's log-probabilities, or can be made to.
            SamplingError: no server can be reached and is fit for the policy; why, for each.
        """
        self._served = None
        served = Served.read(policy, self._config)
        for server in self._servers:
            server.fatal = None
            server.forget()
        run(self._prepare(served))
        self._served = served

    def sample(self, requests: Iterable[SampleRequest], decoding: Decoding) -> Iterator[Group]:
        served = self._loaded()
        for server in self._servers:
            server.doubt()  # it may have been started anew, or loaded by others, since it was last asked
        waiting = iter(requests)
        tasks: dict[asyncio.Task[Group], int] = {}
        try:
            while True:
                while sum(tasks.values()) < self._in_hand and (more := list(islice(waiting, 1))):
                    tasks[run(_started(self._group(served, more[0], decoding)))] = len(more[0].seeds)
                if not tasks:
                    return
                for task in run(_first(tasks)):
                    del tasks[task]
                    yield task.result()
        finally:
            run(_stop(tasks), ending=True)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        served = self._loaded()

        async def score(ids: Sequence[int]) -> list[float]:
            return await self._somewhere(served, lambda server: server.score(ids))

        return run(_all(score(ids) for ids in sequences))

    def sleep(self) -> float:
        """Nothing: the memory is another machine's."""
        return 0.0

    def close(self) -> None:
        run(_all(server.close() for server in self._servers), ending=True)

    def _loaded(self) -> Served:
        if self._served is None:
            raise SamplingError("no policy is being served: load one first")
        return self._served

    async def _prepare(self, served: Served) -> None:
        """Have the servers serve the policy, all that can be reached and at least one."""
        results = await asyncio.gather(*(server.serve(served) for server in self._servers), return_exceptions=True)
        failed: list[str] = []
        for server, result in zip(self._servers, results, strict=True):
            if isinstance(result, SamplingError):
                self._leave_out(server, result)
            elif isinstance(result, Failed):
                server.fell()
                failed.append(str(result))
            elif result is not None:
                raise result
        if len(failed) == len(able := self._able()):
            left_out = [str(each.fatal) for each in self._servers if each not in able]
            raise SamplingError(f"no server of the policy can be reached or works: {'; '.join([*failed, *left_out])}")

    async def _group(self, served: Served, request: SampleRequest, decoding: Decoding) -> Group:
        room = served.room(request, decoding)

        async def candidate(index: int, seed: int) -> Candidate:
            ids, logprob = await self._somewhere(
                served, lambda server: server.complete(served, request.prompt.token_ids, decoding, room, seed)
            )
            return served.candidate(index, ids, seed, logprob)

        return Group(request.prompt, tuple(await _all(candidate(*each) for each in enumerate(request.seeds))))

    async def _somewhere(self, served: Served, ask: Callable[[VllmServer], Awaitable[T]]) -> T:
        """What the server with the most room answers; where it fails, what another does.

        Raises:
            SamplingError: ``tries`` calls failed, or no server is left that serves the policy; why, for each.
        """
        tries, why = 0, dict[str, str]()
        while True:
            async with self._ahead:
                server = roomiest(self._able())
                server.taken += 1
                try:
                    await server.serve(served)
                    life = server.life
                    answer = await ask(server)
                    await server.serve(served)  # nothing, unless it was doubted meanwhile
                    if server.life == life:
                        server.stands()
                        return answer
                    outcome = STALE
                except Failed as failed:
                    outcome = failed.outcome
                    _doubt(server, outcome)
                except SamplingError as error:  # it came back with other weights or another model, and stays so
                    self._leave_out(server, error)
                    continue
                finally:
                    server.taken -= 1
            why[server.name] = f"{server.name}: {outcome.reason}: {outcome.detail}"
            if outcome.fatal:
                self._leave_out(server, SamplingError(why[server.name]))
                continue
            others = any(not each.aside for each in self._able() if each is not server)
            tries += not (others and outcome.reason == "no_connection")
            if not outcome.again or tries >= self._tries:
                raise SamplingError("; ".join(why.values()))
            if not others:
                await asyncio.sleep(back_off(tries, self._waits.back_off, self._waits.longest_back_off))

    def _able(self) -> list[VllmServer]:
        """Those not left out. Raises SamplingError, or WeightSyncError where that is why for each, where none is."""
        if able := [server for server in self._servers if server.fatal is None]:
            return able
        reasons = [server.fatal for server in self._servers if server.fatal is not None]
        if len(reasons) == 1:
            raise reasons[0]
        kind = WeightSyncError if all(isinstance(each, WeightSyncError) for each in reasons) else SamplingError
        raise kind(f"no server of the policy is left: {'; '.join(map(str, reasons))}")

    def _leave_out(self, server: VllmServer, error: SamplingError) -> None:
        """Ask this server no more, until a policy is loaded again."""
        known, server.fatal = server.fatal, error
        if known is None and any(each.fatal is None for each in self._servers):
            log.warning("%s is left out: %s; its share goes to the other servers", server.name, error)


def _doubt(server: VllmServer, outcome: Outcome) -> None:
    if outcome.reason in LOST:
        server.fell()
        server.doubt()
    if outcome.reason in GONE:
        server.forget()


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """All results, in order. The first error ends the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _started(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(work)


async def _first(tasks: Mapping[asyncio.Task[Group], int]) -> set[asyncio.Task[Group]]:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return done


async def _stop(tasks: Iterable[asyncio.Task[Group]]) -> None:
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
