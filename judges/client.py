"""Asks one endpoint, through the ledger."""

import asyncio
import ipaddress
import json
import os
import random
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from judges.ledger import Ledger
from judges.request import Desk, Failure, Reply, Request
from pipeline.config import Endpoint
from pipeline.errors import JudgeError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Result = TypeVar("Result")


class Client:
    def __init__(self, endpoint: Endpoint, desk: Desk) -> None:
        self._endpoint = endpoint
        self._ledger = Ledger(desk.ledger)
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._api = self._connect()

    def _connect(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI, DefaultAioHttpClient

        key = os.environ.get(self._endpoint.api_key_env)
        if not key and not is_local(self._endpoint.base_url):
            raise JudgeError(
                f"{self._endpoint.base_url} needs a key: the environment variable {self._endpoint.api_key_env!r} is"
                " empty; set it, or name another as api_key_env"
            )
        return AsyncOpenAI(
            api_key=key or "none", base_url=self._endpoint.base_url, timeout=self._endpoint.timeout, max_retries=0,
            http_client=DefaultAioHttpClient(),
        )  # fmt: skip

    async def ask(self, request: Request) -> Reply | Failure:
        """The answer from the ledger, else from the endpoint.

        Raises:
            JudgeError: nothing can work: no quota, a key that is refused, no such model.
        """
        found = self._ledger.answer(request.key)
        if found is not None:
            return Reply(request.key, found)
        failure = Failure(request.key, "no_try")
        for attempt in range(self._endpoint.tries):
            if attempt:
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(60.0, 0.5 * 2**attempt))
            async with self._slots:
                outcome = await self._once(request)
            if isinstance(outcome, Reply):
                self._ledger.store(request.key, outcome.raw)
                return outcome
            failure = outcome
            if failure.reason == "bad_request":
                break
        return failure

    async def _once(self, request: Request) -> Reply | Failure:
        import openai

        try:
            raw = await self._api.chat.completions.with_raw_response.create(
                model=request.model,
                messages=request.messages,
                extra_body=request.body,  # type: ignore[arg-type]
            )
            body = json.loads(raw.http_response.content)
        except openai.APITimeoutError:
            return Failure(request.key, "timeout")
        except openai.APIConnectionError as error:
            return Failure(request.key, "connection", str(error))
        except openai.APIStatusError as error:
            if error.status_code in (401, 403, 404) or error.code == "insufficient_quota":
                raise JudgeError(f"{self._endpoint.base_url}: {error.message}") from None
            reason = {400: "bad_request", 429: "rate_limited"}.get(error.status_code, "server_error")
            return Failure(request.key, reason, error.message)
        except ValueError:
            return Failure(request.key, "bad_json")
        if not isinstance(body, dict) or not body.get("choices"):
            return Failure(request.key, "no_choice")
        return Reply(request.key, body)

    async def close(self) -> None:
        await self._api.close()


def is_local(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


_loop: asyncio.AbstractEventLoop | None = None
_starting = threading.Lock()


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The coroutine's result, computed on the process's one background event loop; callable from any thread."""
    global _loop
    with _starting:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="judges", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(coroutine, _loop).result()
