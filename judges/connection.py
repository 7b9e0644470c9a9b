"""The way of ``openai.AsyncOpenAI`` to an endpoint: aiohttp under it, and a key only where it belongs.

The client's time goes into its own Python: with httpx2's transport a call takes 2.7 ms of it, with openai's aiohttp
transport 1.0, and with this one, which skips redirects, cookies and merging of addresses and headers, half of that.
"""

import ipaddress
import os
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import openai

from pipeline.config import Endpoint
from pipeline.errors import JudgeError

KEEP_ALIVE = 4.0
"""Seconds an idle connection is kept: uvicorn, and so ``vllm serve``, hangs up after 5, on what was just sent too."""
CONNECT = 30.0
"""Seconds a connection may take to be made, within the call's own time-out."""

TELLTALES = [
    f"X-Stainless-{what}"
    for what in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
]  # fmt: skip
"""Headers that tell about this machine and nothing about the call."""
WANTED = {b"content-type", b"retry-after", b"x-request-id"}
"""Headers of a reply that anybody reads; httpx2 decodes them all whenever one is looked at."""


def connect(endpoint: Endpoint) -> openai.AsyncOpenAI:
    """A client that tries once and never logs or stores its key.

    Raises:
        JudgeError: the endpoint is not local, and the variable that should hold its key is empty.
    """
    headers: dict[str, Any] = dict.fromkeys(TELLTALES, openai.Omit())
    return openai.AsyncOpenAI(
        api_key=secret(endpoint) or "none", base_url=endpoint.base_url, max_retries=0, timeout=endpoint.timeout,
        http_client=Http(endpoint.base_url), default_headers=headers,
    )  # fmt: skip


def secret(endpoint: Endpoint) -> str:
    """The key; empty where none is needed. A local server gets one only where the config names a variable for it:
    OpenAI's own is not for everyone on the network."""
    local = is_local(endpoint.base_url)
    if local and endpoint.api_key_env == Endpoint.model_fields["api_key_env"].default:
        return ""
    key = os.environ.get(endpoint.api_key_env, "")
    if not key and not local:
        raise JudgeError(
            f"{endpoint.base_url} needs a key and the environment variable {endpoint.api_key_env!r} is empty;"
            " set it, or name another with api_key_env"
        )
    return key


def is_local(base_url: str) -> bool:
    """Whether the address is of this machine or a private network: no name with a dot, or a private number."""
    host = urlsplit(base_url).hostname or ""
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return number.is_private or number.is_loopback


class Http(httpx2.AsyncClient):
    """What openai's client sends its requests with. Bound to the event loop of the first one."""

    def __init__(self, base_url: str) -> None:
        super().__init__(trust_env=False)
        self._path = f"{base_url.rstrip('/')}/chat/completions"
        self._address = httpx2.URL(self._path)
        self._session: aiohttp.ClientSession | None = None

    def build_request(self, method: str, url: httpx2.URL | str, **options: Any) -> httpx2.Request:
        address = self._address if url == self._path else httpx2.URL(url)
        kept = {name: options[name] for name in ("content", "headers", "params") if options.get(name) is not None}
        request = httpx2.Request(method, address, **kept)
        request.headers.encoding = "ascii"
        return request

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        if self._session is None:
            self._session = self._open()
        try:
            async with self._session.request(
                request.method, str(request.url), headers=request.headers, data=request.content, allow_redirects=False
            ) as answer:
                body = await answer.read()
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        except TimeoutError as error:
            raise httpx2.ReadTimeout("no answer in time", request=request) from error
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.ReadError(str(error) or type(error).__name__, request=request) from error
        headers = [(name, value) for name, value in answer.raw_headers if name.lower() in WANTED]
        response = httpx2.Response(answer.status, headers=headers, content=body, request=request)
        response.headers.encoding = "latin-1"
        return response

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
        await super().aclose()

    def _open(self) -> aiohttp.ClientSession:
        secure = self._address.scheme == "https"
        proxy = None if proxy_bypass(self._address.host) else getproxies().get(self._address.scheme)
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE, ssl=httpx2.create_ssl_context() if secure else False
        )
        return aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT),
            cookie_jar=aiohttp.DummyCookieJar(), proxy=proxy,
        )  # fmt: skip
