"""The files of a batch: JSON, a line a call; what is sent, in portions the provider takes, and what is read. Pure."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.calls.outcomes import Outcome, of_body, of_status

MOST_LINES = 50_000
MOST_BYTES = 180 * 10**6
"""Of a batch's file; OpenAI allows 200 MB."""


def line_of(key: str, content: bytes) -> bytes:
    """The line that asks for ``content``, a request's body, under its key."""
    return b'{"custom_id":"%s","method":"POST","url":"/v1/chat/completions","body":%s}\n' % (key.encode(), content)


def portions(lines: Mapping[str, bytes]) -> Iterator[list[str]]:
    """The keys of ``lines``, in order, as many at a time as one file may hold."""
    keys: list[str] = []
    size = 0
    for key, line in lines.items():
        if keys and (len(keys) == MOST_LINES or size + len(line) > MOST_BYTES):
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += len(line)
    if keys:
        yield keys


def read_lines(text: str) -> list[dict[str, Any]]:
    """Of an output or error file. Raises ValueError where it came broken."""
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def of_line(line: Mapping[str, Any]) -> Outcome:
    """Of a line of an output or error file."""
    response = line.get("response")
    if isinstance(response, dict) and response.get("body") is not None:
        status, body = response.get("status_code"), response["body"]
        return of_body(json.dumps(body)) if status == 200 else of_status(int(status or 500), body, works=False)
    error = line.get("error") or {}
    return Outcome(str(error.get("code") or "batch_error"), str(error.get("message") or ""))
