"""A paid API that costs nothing: a real local HTTP server that speaks chat completions, with faults on demand.

    with ApiServer(lambda body: "[[A]]", faults={"server_error": 0.1, "rate_limited": 0.1}) as server:
        Endpoint(model="m", base_url=server.base_url)

``reply`` gets the request's body and gives the text, or a whole ``message``, or a whole completion (a mapping with
``choices``). Faults come from ``script`` first (one an arriving call, None is no fault), then by probability.
``server.calls`` is every call that arrived, in order, with what became of it; lines of batches are calls too. It runs
on a thread of its own; as a script, in a process of its own, for benchmarks.
"""

import argparse
import asyncio
import json
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

Body = dict[str, Any]
ReplyTo = Callable[[Body], str | Mapping[str, Any]]

STATUS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
          429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip
REFUSED = {
    "rate_limited": (429, "rate_limit_exceeded", "Rate limit reached for requests"),
    "insufficient_quota": (429, "insufficient_quota", "You exceeded your current quota, please check your plan"),
    "server_error": (500, "server_error", "The server had an error while processing your request"),
    "overloaded": (503, "overloaded", "The engine is currently overloaded"),
    "bad_request": (400, "invalid_value", "Unsupported value: 'temperature'"),
    "unauthorised": (401, "invalid_api_key", "Incorrect API key provided"),
    "forbidden": (403, "unsupported_country", "Country, region, or territory not supported"),
    "no_such_model": (404, "model_not_found", "The model does not exist or you do not have access to it"),
}
"""Faults that are an error status: status, code, message."""
SPOILT = {
    "prose": "Both answers have their merits, and I would rather not choose.",
    "wrong_schema": '{"colour": "red"}',
    "cut_content": '{"reasons": "the first is',
    "empty": "",
}
"""Faults that are a perfect completion with bad content."""
BATCH_FAULTS = ("failed", "expired", "create_cut", "create_refused", "cut_file")
"""Of a batch as a whole: refused on validation; out of time halfway; created, but its maker never hears of it; not
created, with status 500; its output comes broken once."""
FAULTS = (*REFUSED, *SPOILT, "refusal", "empty_choices", "error_in_200", "cut_json", "cut_body", "cut_connection",
          "timeout", "not_json", "no_usage")  # fmt: skip


@dataclass(slots=True)
class Call:
    body: Body
    headers: Mapping[str, str]
    fault: str | None
    at: float
    """The server's clock, seconds."""
    answered: bool = False
    """A whole completion was sent and the caller was still there."""


@dataclass(slots=True)
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Promise more bytes than come, then hang up."""
    whole: bool = False
    """A chat completion, well formed."""


def completion(body: Body, content: str | Mapping[str, Any], usage: bool = True) -> Body:
    """A chat completion; tokens are counted as words."""
    if isinstance(content, Mapping) and "choices" in content:
        return dict(content)
    message = {"content": content} if isinstance(content, str) else dict(content)
    made: Body = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": body.get("model"),
        "choices": [{"index": 0, "message": {"role": "assistant", "refusal": None, **message}, "finish_reason": "stop",
                     "logprobs": None}],
    }  # fmt: skip
    if usage:
        read = sum(len(str(message["content"]).split()) for message in body.get("messages", []))
        written = len(str(message.get("content") or "").split())
        made["usage"] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return made


class ApiServer:
    """Serves from entry to exit of a ``with``; ``base_url`` is what an Endpoint takes."""

    def __init__(
        self, reply: ReplyTo = lambda body: "[[A]]", *, faults: Mapping[str, float] | None = None,
        script: Iterable[str | None] = (), retry_after: str | None = "0", latency: float = 0.0,
        capacity: int | None = None, seed: int = 0, batch_script: Iterable[str | None] = (), batch_polls: int = 1,
    ) -> None:  # fmt: skip
        self.reply, self.faults, self.script = reply, dict(faults or {}), deque(script)
        self.retry_after, self.latency, self.capacity = retry_after, latency, capacity
        self.calls: list[Call] = []
        self.batch_script, self.batch_polls = deque(batch_script), batch_polls
        self.batches: dict[str, Body] = {}
        """By id, as the provider shows them."""
        self.files: dict[str, bytes] = {}
        self.random = random.Random(seed)
        self.busy, self.most_busy = 0, 0
        self.gate: Callable[[], bool] | None = None
        """Nobody is answered before this holds: for tests that need several calls to be on their way at once."""
        self.waiting: deque[Callable[[], None]] = deque()
        self.connections: set[asyncio.Transport] = set()
        self.base_url = ""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="api-server", daemon=True)
        self._ready = threading.Event()
        asked = {*self.faults, *self.script, *self.batch_script} - {None}
        if unknown := asked - {*FAULTS, *BATCH_FAULTS}:
            raise ValueError(f"faults {unknown}; there are {FAULTS} and {BATCH_FAULTS}")

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    @property
    def answered(self) -> list[Call]:
        return [call for call in self.calls if call.answered]

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(
            self.loop.create_server(lambda: Connection(self), "127.0.0.1", 0, backlog=1024)
        )
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        self.loop.run_forever()
        server.close()
        for connection in self.connections:
            connection.abort()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def next_fault(self) -> str | None:
        if self.script:
            return self.script.popleft()
        draw = self.random.random()
        for kind, probability in self.faults.items():
            if (draw := draw - probability) < 0:
                return kind
        return None

    @property
    def full(self) -> bool:
        return self.capacity is not None and self.busy >= self.capacity

    def admit(self, work: Callable[[], None], arrived: float | None = None) -> None:
        """Do ``work`` when ``latency`` seconds have gone by since it arrived, or since a place was free for it."""
        if self.full:
            self.waiting.append(work)
            return
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        self.loop.call_at((arrived or self.loop.time()) + self.latency, self._finish, work)

    def _finish(self, work: Callable[[], None]) -> None:
        if self.gate is not None and not self.gate():
            self.loop.call_later(0.005, self._finish, work)
            return
        self.busy -= 1
        work()
        if self.waiting:
            self.admit(self.waiting.popleft())

    def create_batch(self, asked: Body) -> tuple[Body, str | None]:
        """The batch, and its fault. Its lines are answered when it has been looked at ``batch_polls`` times."""
        fault = self.batch_script.popleft() if self.batch_script else None
        made: Body = {
            "id": f"batch_{len(self.batches)}", "object": "batch", "status": "in_progress", "created_at": 0,
            "endpoint": asked["endpoint"], "completion_window": "24h", "input_file_id": asked["input_file_id"],
            "metadata": asked.get("metadata"), "polls": 0, "fault": fault,
        }  # fmt: skip
        if fault != "create_refused":
            self.batches[made["id"]] = made
        return made, fault

    def look(self, batch: Body) -> Body:
        batch["polls"] += 1
        if batch["status"] == "in_progress" and batch["polls"] > self.batch_polls:
            self.work_off(batch)
        return batch

    def work_off(self, batch: Body) -> None:
        if batch["fault"] == "failed":
            batch["status"] = "failed"
            batch["errors"] = {
                "object": "list",
                "data": [{"code": "invalid_json_line", "message": "line 1 is no JSON"}],
            }
            return
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        batch["status"] = "expired" if batch["fault"] == "expired" else "completed"
        good, bad = [], []
        for number, line in enumerate(lines):
            if batch["status"] == "expired" and number >= len(lines) // 2:
                bad.append({**line, "response": None, "error": {"code": "batch_expired", "message": "out of time"}})
                continue
            call = Call(line["body"], {}, self.next_fault(), self.loop.time())
            self.calls.append(call)
            response = self.respond(call) or Response(500, b"{}")
            call.answered = response.whole
            try:
                body = json.loads(response.body)
            except ValueError:
                response, body = Response(500), {"error": {"message": "cut"}}
            answer = {"status_code": response.status, "body": body}
            (good if response.status == 200 else bad).append(
                {"id": "1", "custom_id": line["custom_id"], "response": answer, "error": None}
            )
        batch["request_counts"] = {"total": len(lines), "completed": len(good), "failed": len(bad)}
        for name, made in (("output_file_id", good), ("error_file_id", bad)):
            if made:
                batch[name] = f"{batch['id']}_{name}"
                self.files[batch[name]] = "".join(json.dumps(line) + "\n" for line in made).encode()

    def respond(self, call: Call) -> Response | None:
        """What to send; None: nothing, ever."""
        fault = call.fault
        if fault in REFUSED:
            status, code, message = REFUSED[fault]
            headers = {"retry-after": self.retry_after} if status == 429 and self.retry_after is not None else {}
            error = {"message": message, "type": code, "code": code, "param": None}
            return Response(status, json.dumps({"error": error}).encode(), headers)
        if fault == "timeout":
            return None
        if fault == "not_json":
            return Response(200, b"<html>Bad Gateway</html>", {"content-type": "text/html"})
        if fault == "error_in_200":
            return Response(200, b'{"error": {"message": "Provider returned error", "code": 502}}')
        if fault == "empty_choices":
            return Response(200, json.dumps({**completion(call.body, ""), "choices": []}).encode())
        if fault == "refusal":
            content: Any = {"content": None, "refusal": "I cannot help with that."}
        else:
            content = SPOILT[fault] if fault in SPOILT else self.reply(call.body)
        body = json.dumps(completion(call.body, content, usage=fault != "no_usage")).encode()
        if fault == "cut_json":
            return Response(200, body[: len(body) // 2])
        if fault in ("cut_body", "cut_connection"):
            return Response(200, body[: len(body) // 2] if fault == "cut_body" else b"", cut=True)
        return Response(200, body, whole=True)


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, one request at a time, as clients send them."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.buffer = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.add(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.server.connections.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            size = int(headers.get("content-length", "0"))
            if len(self.buffer) < end + 4 + size:
                return
            payload, self.buffer = self.buffer[end + 4 : end + 4 + size], self.buffer[end + 4 + size :]
            method, path, _ = head[0].split(" ")
            self.route(method, path, headers, payload)

    def route(self, method: str, path: str, headers: Mapping[str, str], payload: bytes) -> None:
        if (method, path) == ("POST", "/v1/chat/completions"):
            call = Call(json.loads(payload), headers, self.server.next_fault(), self.server.loop.time())
            self.server.calls.append(call)
            response = self.server.respond(call)  # this work is part of the latency
            self.server.admit(lambda: self.complete(call, response), call.at)
        else:
            self.send(self.manage(method, path.partition("?")[0].removeprefix("/v1"), payload))

    def manage(self, method: str, path: str, payload: bytes) -> Response:
        """Files and batches."""
        server, name = self.server, path.split("/")[2] if path.count("/") > 1 else ""
        if (method, path) == ("POST", "/files"):
            boundary = payload.split(b"\r\n", 1)[0]
            parts = [part for part in payload.split(boundary) if b'filename="' in part]
            file = f"file_{len(server.files)}"
            server.files[file] = parts[0].split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
            shown: Body = {
                "id": file,
                "object": "file",
                "bytes": 1,
                "created_at": 0,
                "filename": "f",
                "purpose": "batch",
            }
        elif (method, path) == ("POST", "/batches"):
            shown, fault = server.create_batch(json.loads(payload))
            if fault == "create_refused":
                return Response(500, b'{"error": {"message": "try again"}}')
            if fault == "create_cut":
                return Response(cut=True)
        elif (method, path) == ("GET", "/batches"):
            shown = {"object": "list", "data": list(server.batches.values())[::-1], "has_more": False}
        elif method == "GET" and name in server.batches:
            shown = server.look(server.batches[name])
        elif method == "GET" and name in server.files:
            content = server.files[name]
            owner = server.batches[name.rpartition("_output")[0] or name.rpartition("_error")[0]]
            if owner["fault"] == "cut_file":
                owner["fault"], content = None, content[: len(content) // 2]
            return Response(200, content)
        else:
            return Response(404, b'{"error": {"message": "no such path"}}')
        return Response(200, json.dumps(shown).encode())

    def complete(self, call: Call, response: Response | None) -> None:
        if response is not None and not self.transport.is_closing():
            call.answered = response.whole
            self.send(response)

    def send(self, response: Response) -> None:
        if response.cut and not response.body:
            self.transport.abort()
            return
        size = len(response.body) + (100 if response.cut else 0)
        headers = {"content-type": "application/json", "content-length": str(size), **response.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        start = f"HTTP/1.1 {response.status} {STATUS[response.status]}\r\n{lines}\r\n"
        self.transport.write(start.encode() + response.body)
        if response.cut:
            self.transport.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--capacity", type=int, default=256)
    options = parser.parse_args()
    with ApiServer(latency=options.latency, capacity=options.capacity) as server:
        print(server.base_url, flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
