"""A Hugging Face Hub on this machine: a real local HTTP server that the real client takes for the Hub.

    with HubServer() as hub:
        hub.fault("PUT /lfs/", "cut")            # the next upload loses its connection halfway
        subprocess.run([...], env={**os.environ, **hub.environment})

What it answers is in ``hub_protocol``; it knows no Xet, so the client's is off. ``requests`` is every request in order.

A fault is for the next requests whose "METHOD /path" its pattern is found in: an HTTP status; ``cut``: half of the
request is read, and the connection reset; ``lost``: the request is carried out, and the connection reset; ``slow``: a
second goes by first; ``hold``: half is read, ``held`` is set, and no answer ever comes. A function is called first.
"""

import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.hub_protocol import WRITE, Answer, Hub, Request, respond

What = int | str | Callable[[], object]


@dataclass
class Fault:
    pattern: str
    what: What
    times: int
    headers: Mapping[str, str]
    says: str
    after: int
    """Requests that it lets pass first."""


class HubServer(Hub):
    """Serves from entry to exit of a ``with``."""

    def __init__(self, page_size: int = 1000) -> None:
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        super().__init__(f"http://127.0.0.1:{self._server.server_address[1]}", page_size)
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.held = threading.Event()
        self.lock = threading.RLock()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What a client's process needs, beside a cache of its own in HF_HOME."""
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": WRITE, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # fmt: skip

    def fault(
        self, pattern: str, what: What, times: int = 1, headers: Mapping[str, str] | None = None, says: str = "",
        after: int = 0,
    ) -> None:  # fmt: skip
        assert not isinstance(what, str) or what in ("cut", "lost", "slow", "hold"), what
        self.faults.append(Fault(pattern, what, times, headers or {}, says, after))

    def asked(self, pattern: str) -> list[Request]:
        return [request for request in self.requests if re.search(pattern, str(request))]

    def next_fault(self, request: Request) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, str(request)):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    wbufsize = 1 << 16  # head and body leave together: apart, the second waits 40 ms for the first one's receipt

    def log_message(self, format: str, *args: object) -> None:
        pass

    def serve(self) -> None:
        assert isinstance(self.server, Server)
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, time.monotonic())
        fault = hub.next_fault(request)
        what = request.fault = fault.what if fault else None
        with hub.lock:
            hub.requests.append(request)
        size = int(request.headers.get("content-length", "0"))
        request.body = self.rfile.read(size // 2 if what in ("cut", "hold") else size)
        if what == "hold":
            hub.held.set()
            self.rfile.read(size)  # until the client is gone
        if what in ("cut", "hold"):
            self.reset()
            return
        if what == "slow":
            time.sleep(1.0)
        if callable(what):
            what()
        if isinstance(what, int):
            assert fault is not None
            answer = Answer(what, {"error": fault.says} if fault.says else b"", fault.headers)
        else:
            with hub.lock:
                answer = respond(hub, request)
        if what == "lost":
            self.reset()
            return
        self.send(answer, request)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def send(self, answer: Answer, request: Request) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        request.status = answer.status

    def reset(self) -> None:
        """As a connection breaks: without a goodbye."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
