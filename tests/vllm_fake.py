"""What ``vllm serve`` says over HTTP, said by a few lines of transformers: for faults that a real one cannot be given.

It serves the checkpoint it was started with, and another when ``/collective_rpc`` tells it to. Prompt log-probabilities
are the model's own; completions are drawn by nothing but their seed, so that every server draws the same.
"""

import json
import random
import socket
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from pipeline.types import Policy
from tests.tiny import EOS, naive_logprobs

Answer = tuple[int, Any]


class VllmFake:
    """Serves from entry to exit of a ``with``, or from ``start`` to ``stop``, each time at the same address."""

    def __init__(
        self, policy: Policy, *, development: bool = True, extension: bool = True, longest: int = 256,
        script: Iterable[int | str | None] = (), latency: float = 0.0, keeps_cache: bool = False,
    ) -> None:  # fmt: skip
        self.first, self.policy = policy, policy
        self.development, self.extension, self.longest = development, extension, longest
        self.script = deque(script)
        """Of each completion asked for: its status, or why it ended after one token; None for a good one, as all are
        after it."""
        self.latency, self.keeps_cache = latency, keeps_cache
        self.model = "policy"
        """What it calls what it serves."""
        self.salt: dict[Path, str] = {}
        """By checkpoint: other letters, other draws, as other weights have them."""
        self.asked: list[str] = []
        """Paths, in order."""
        self.completions: list[dict[str, Any]] = []
        self.busy = self.most_busy = 0
        self.paused = False
        self.lock = threading.Lock()
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """It begins with what it was first started with, whatever it was given since."""
        self.policy, self.paused = self.first, False
        self._server = _Server(("127.0.0.1", self.port), self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -------------------------------------------------------------------------------------------------- answers
    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        self.asked.append(path)
        match path:
            case "/v1/models":
                return 200, {"data": [{"id": self.model, "max_model_len": self.longest}]}
            case "/v1/completions" if body["model"] != self.model:
                return 404, {"error": {"message": f"The model {body['model']} does not exist"}}
            case "/v1/completions":
                return self.complete(body)
            case _ if not self.development:
                return 404, {"detail": "Not Found"}
            case "/pause?mode=wait" | "/resume":
                self.paused = path != "/resume"
                return 200, {"status": "done"}
            case "/collective_rpc":
                return self.call(body)
            case "/reset_prefix_cache":
                return 200, {"success": not self.keeps_cache}
            case _:
                return 404, {"detail": "Not Found"}

    def call(self, body: dict[str, Any]) -> Answer:
        if body["method"] == "load_checkpoint" and self.extension:
            path = Path(body["args"][0])
        elif body["method"] == "reload_weights":
            path = Path(body["kwargs"]["weights_path"])
        else:
            return 500, {"error": {"message": f"no method {body['method']}"}}
        if not self.paused or not (path / "config.json").exists():
            return 500, {"error": {"message": f"cannot load {path}"}}
        self.policy = Policy("", path)
        return 200, {"results": [None]}

    def complete(self, body: dict[str, Any]) -> Answer:
        if body.get("prompt_logprobs") is not None:
            ids = body["prompt"]
            row = _logprobs(self.policy.path, tuple(ids))
            entries = [{str(token): {"logprob": value}} for token, value in zip(ids[1:], row, strict=True)]
            return 200, {"choices": [{"index": 0, "prompt_logprobs": [None, *entries], "token_ids": [EOS]}]}
        with self.lock:
            self.completions.append(body)
            status = self.script.popleft() if self.script else None
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            if self.latency:
                threading.Event().wait(self.latency)
        finally:
            with self.lock:
                self.busy -= 1
        if isinstance(status, int):
            return status, {"error": {"message": "a fault"}}
        draw = random.Random(f"{self.salt.get(self.policy.path, '')}{body['seed']}")
        ids = [draw.randrange(4, 33) for _ in range(draw.randint(1, body["max_tokens"]))]
        if len(ids) < body["max_tokens"]:
            ids = [*ids, EOS]
        if status is not None:
            ids = [4]
        values = [-draw.random() for _ in ids]
        return 200, {
            "choices": [
                {"index": 0, "token_ids": ids, "finish_reason": status or ("stop" if ids[-1] == EOS else "length"),
                 "logprobs": {"token_logprobs": values} if "logprobs" in body else None}
            ]
        }  # fmt: skip


@cache
def _logprobs(path: Path, ids: tuple[int, ...]) -> list[float]:
    """A checkpoint in a folder never changes, and is proved again and again."""
    (row,) = naive_logprobs(Policy("", path), [list(ids)])
    return row


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], fake: VllmFake) -> None:
        self.fake = fake
        self.lines: set[Any] = set()
        super().__init__(address, _Handler)

    def server_close(self) -> None:
        """Hang up on everyone, as a process that ends does."""
        super().server_close()
        for line in list(self.lines):
            with suppress(OSError):  # some have hung up themselves
                line.shutdown(socket.SHUT_RDWR)  # to close it is not enough: the handler still reads from it


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.lines.add(self.connection)

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", "0")))
        self._answer(json.loads(content or b"{}"))

    def _answer(self, body: Any) -> None:
        status, answer = self.server.fake.answer(self.path, body or {})
        content = json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except (OSError, ValueError):
            self.close_connection = True

    def log_message(self, *_: Any) -> None: ...
