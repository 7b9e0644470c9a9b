"""The way of ``openai.AsyncOpenAI`` to an endpoint: aiohttp under it, and a key only where it belongs.

The client's time goes into its own Python: with httpx2's transport a call takes 2.7 ms of it, with openai's aiohttp
transport 1.0, and with this one, which skips redirects, cookies and merging of addresses and headers, half of that. A
place is held from the first byte out to the last one in; all the rest is done before and after, while others are on
their way, because what is done with a place is time the server waits.
"""

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import openai
import yarl
from multidict import CIMultiDict

from pipeline.calls.keys import secret
from pipeline.calls.limits import Lane, retry_after
from pipeline.calls.outcomes import CROWDED
from pipeline.config import Endpoint

KEEP_ALIVE = 4.0
"""Seconds an idle connection is kept: uvicorn, and so ``vllm serve``, hangs up after 5, on what was just sent too."""
CONNECT = 30.0
"""Seconds a connection may take to be made, within the call's own time-out."""

TELLTALES = [
    f"X-Stainless-{what}"
    for what in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
]  # fmt: skip
"""Headers that tell about this machine and nothing about the call."""
WANTED = {b"content-type", b"x-request-id"}
"""Headers of a reply that anybody reads; httpx2 decodes them all whenever one is looked at."""


def connect(endpoint: Endpoint, lane: Lane) -> "Api":
    """A client that tries once, within the endpoint's time-out, and has a place in ``lane`` just while it does.

    Raises:
        JudgeError: the endpoint is not local, and the variable that should hold its key is empty.
    """
    headers: dict[str, Any] = dict.fromkeys(TELLTALES, openai.Omit())
    return Api(
        api_key=secret(endpoint) or "none", base_url=endpoint.base_url, max_retries=0, timeout=endpoint.timeout,
        http_client=Http(endpoint, lane), default_headers=headers,
    )  # fmt: skip


class Api(openai.AsyncOpenAI):
    """openai's client, which works out options, address and headers for the first call and not again: all calls of a
    judge have the same. That is half of the time it takes itself. The method it overrides is not public: should it go,
    every call is worked out anew, and nothing else changes."""

    _pattern: Any = None
    """The first call's options."""

    async def complete(self, path: str, content: bytes) -> httpx2.Response:
        """Raises what openai's client raises where the status is not 200."""
        if self._pattern is None:
            return await self.post(path, cast_to=httpx2.Response, content=content)
        return await self.request(httpx2.Response, self._pattern.model_copy(update={"content": content}))

    def _build_request(self, options: Any, *, retries_taken: int = 0) -> httpx2.Request:
        if self._pattern is not None:
            assert isinstance(self._client, Http)
            return self._client.another(options.content)
        request = super()._build_request(options, retries_taken=retries_taken)
        self._pattern = options
        return request


class Http(httpx2.AsyncClient):
    """What openai's client sends its requests with. Bound to the event loop of the first one."""

    def __init__(self, endpoint: Endpoint, lane: Lane) -> None:
        super().__init__(trust_env=False)
        self._lane, self._seconds = lane, endpoint.timeout
        self._path = f"{endpoint.base_url.rstrip('/')}/chat/completions"
        self._address, self._target = httpx2.URL(self._path), yarl.URL(self._path)
        self._headers_of_all: CIMultiDict[str] = CIMultiDict()
        self._session: aiohttp.ClientSession | None = None

    def build_request(self, method: str, url: httpx2.URL | str, **options: Any) -> httpx2.Request:
        assert url == self._path, "this way leads to chat completions only"
        self._headers_of_all = CIMultiDict(options["headers"])
        return self.another(options["content"])

    def another(self, content: bytes) -> httpx2.Request:
        """A request that differs from the ones before in its body only."""
        return httpx2.Request("POST", self._address, content=content)

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        session = self._session = self._session or open_session(self._path)
        await self._lane.enter()
        try:
            async with (
                asyncio.timeout(self._seconds),
                session.request(
                    request.method,
                    self._target,
                    headers=self._headers_of_all,
                    data=request.content,
                    allow_redirects=False,
                ) as answer,
            ):
                body = await answer.read()
            heed(self._lane, answer)
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        except TimeoutError as error:
            raise httpx2.ReadTimeout("no answer in time", request=request) from error
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.ReadError(str(error) or type(error).__name__, request=request) from error
        finally:
            self._lane.leave()
        # Whoever got the place goes first: two turns of the loop are its waking and its sending, and what is left to do
        # with this reply keeps no server waiting.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        headers = [(name, value) for name, value in answer.raw_headers if name.lower() in WANTED]
        response = httpx2.Response(answer.status, headers=headers, content=body, request=request)
        response.headers.encoding = "latin-1"
        return response

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
        await super().aclose()


def heed(lane: Lane, answer: aiohttp.ClientResponse) -> None:
    """What the server says about its load; before the place goes on, so that nothing is sent against its will."""
    if answer.status in CROWDED:
        lane.refused()
    elif answer.status == 200:
        lane.went_well()
    if answer.status != 200 and (pause := retry_after(answer.headers.get("retry-after"))) is not None:
        lane.pause(pause)


def open_session(base_url: str, connected: Callable[[], None] | None = None) -> aiohttp.ClientSession:
    """Connections to one server, on the running event loop, through the proxy that the environment names for it.
    ``connected`` hears of each that is made."""
    address = urlsplit(base_url)
    proxy = None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)
    connector = aiohttp.TCPConnector(
        limit=0, keepalive_timeout=KEEP_ALIVE, ssl=httpx2.create_ssl_context() if address.scheme == "https" else False
    )
    trace = aiohttp.TraceConfig()
    if connected is not None:
        hear = connected

        async def told(*_: object) -> None:
            hear()

        trace.on_connection_create_end.append(told)
    return aiohttp.ClientSession(
        connector=connector, trace_configs=[trace], timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT),
        cookie_jar=aiohttp.DummyCookieJar(), proxy=proxy,
    )  # fmt: skip
