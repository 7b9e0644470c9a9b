"""The local page people vote on: ``serve`` runs until interrupted.

Who may: only this machine, and only with the link. It listens on the loopback address; other names in the ``Host``
header are refused, so no web site can reach it by rebinding its own name; the token of the link is random, compared in
constant time, and exchanged for a cookie at once, so it does not stay in the address bar or the history; a POST must
come from the page itself. The page loads nothing from elsewhere and runs no script but its own, whatever a candidate
contains.
"""

import json
import logging
import secrets
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from judges.annotation.ballot import Ballot, RefusedError
from judges.annotation.queue import Plan, Queue
from judges.annotation.store import VoteStore
from judges.annotation.summary import summarise
from judges.annotation.tasks import Task
from pipeline.errors import ConfigError, DataError, StoreError

Handler = Callable[[Request], Awaitable[Response]]
HOST = "127.0.0.1"
LARGEST_REQUEST = 1 << 16
"""Bytes of a POST."""
PAGES = {
    "/": ("vote.html", "text/html"),
    "/summary": ("summary.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/vote.js": ("vote.js", "text/javascript"),
    "/difference.js": ("difference.js", "text/javascript"),
    "/summary.js": ("summary.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
REFUSED = "This page needs the link that `ratchet annotate` printed. A link is good until the command ends.\n"


def serve(
    tasks: Sequence[Task],
    store_path: Path,
    *,
    annotator: str | None = None,
    port: int = 0,
    plan: Plan | None = None,
    feedback: bool = False,
    announce: Callable[[str], None] = print,
) -> None:
    """Let people vote on ``tasks`` until SIGINT or SIGTERM; every vote is in ``store_path`` before the page goes on.

    Args:
        tasks: empty: those that the file holds already.
        annotator: votes under this name; None: the page asks for one.
        port: 0 takes a free one.
        feedback: tell annotators at once whether a calibration item was right.
        announce: called once with the link, when it works.

    Raises:
        DataError: there is nothing to vote on.
        ConfigError: the port is taken, or the name cannot be one.
        BusyError, StoreError: the file of votes cannot be used.
    """
    if not tasks and not store_path.exists():
        raise DataError(f"there is nothing to vote on: no tasks were given, and {store_path} is not there")
    with VoteStore(store_path) as store, _listening(port) as listener:
        asked = list(tasks) or list(store.records.tasks.values())
        if not asked:
            raise DataError(f"there is nothing to vote on: no tasks were given, and {store_path} holds none")
        try:
            ballot = Ballot(store, Queue(asked, plan or Plan()), annotator, feedback)
        except RefusedError as error:
            raise ConfigError(str(error)) from error
        token, port = secrets.token_urlsafe(32), listener.getsockname()[1]
        app = make_app(ballot, token, port)
        # No access log: it would hold the token. The log's own set-up is left alone.
        options = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=2
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        _Server(options, partial(announce, f"http://{HOST}:{port}/?token={token}")).run(sockets=[listener])


class _Server(uvicorn.Server):
    """One that says when it works, and that ends well at a signal: uvicorn would raise it again."""

    def __init__(self, options: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(options)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listening(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise ConfigError(f"port {port}: {error.strerror}; 0 takes a free one") from error
    return listener


def make_app(ballot: Ballot, token: str, port: int) -> Starlette:
    """The application; ``port`` names its cookie and its origin, since cookies do not tell ports apart."""
    guard = _Guard(token, port)

    def page(file: str, kind: str) -> Handler:
        content = files("judges.annotation").joinpath("page", file).read_bytes()

        async def respond(_: Request) -> Response:
            return Response(content, media_type=kind, headers=HEADERS)

        return guard.protect(respond)

    def change(act: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Handler:
        async def respond(request: Request) -> Response:
            return JSONResponse(act(await _body(request)), headers=HEADERS)

        return guard.protect(respond)

    async def who(_: Request) -> Response:
        return JSONResponse(ballot.who(), headers=HEADERS)

    async def state(request: Request) -> Response:
        return JSONResponse(ballot.state(request.query_params.get("annotator")), headers=HEADERS)

    async def summary(_: Request) -> Response:
        votes, queue = ballot.store.records.votes, ballot.queue
        figures = await run_in_threadpool(summarise, votes, queue.tasks, queue.plan.overlap)
        return JSONResponse(figures, headers=HEADERS)

    async def failed(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 507 if isinstance(error, StoreError) else 400, HEADERS)

    routes = [
        *(Route(path, page(*what)) for path, what in PAGES.items()),
        *(Route(f"/api/{each.__name__}", guard.protect(each)) for each in (who, state, summary)),
        *(Route(f"/api/{each.__name__}", change(each), methods=["POST"]) for each in (ballot.vote, ballot.undo)),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    return Starlette(routes=routes, middleware=[hosts], exception_handlers={RefusedError: failed, StoreError: failed})


class _Guard:
    """Lets in whoever has the link, once, and from then on whoever has the cookie."""

    def __init__(self, token: str, port: int) -> None:
        self.token, self.cookie = token, secrets.token_urlsafe(32)
        self.cookie_name = f"ratchet-{port}"
        self.origins = {f"http://{host}:{port}" for host in (HOST, "localhost")}

    def protect(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            given = request.query_params.get("token")
            if given is not None and request.method == "GET" and _same(given, self.token):
                clean = request.url.remove_query_params("token")
                entered = RedirectResponse(clean.path + (f"?{clean.query}" if clean.query else ""), 303, HEADERS)
                entered.set_cookie(self.cookie_name, self.cookie, httponly=True, samesite="lax")
                return entered
            if given is not None or not _same(request.cookies.get(self.cookie_name, ""), self.cookie):
                return PlainTextResponse(REFUSED, 403, HEADERS)
            if request.method == "POST" and request.headers.get("origin") not in self.origins:
                return PlainTextResponse("Votes are taken from this page alone.\n", 403, HEADERS)
            return await handler(request)

        return guarded


def _same(given: str, right: str) -> bool:
    return secrets.compare_digest(given.encode(), right.encode())


async def _body(request: Request) -> Mapping[str, Any]:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > LARGEST_REQUEST:
            raise RefusedError(f"a request has at most {LARGEST_REQUEST} bytes")
    try:
        body = json.loads(data)
    except ValueError as error:
        raise RefusedError("the request is not JSON") from error
    if not isinstance(body, dict):
        raise RefusedError("the request is not a JSON object")
    return body
