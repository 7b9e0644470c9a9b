"""Annotation servers in processes of their own, so that they can be killed.

Starting one takes a second, most of it imports. So one process does the imports and forks a server on request: this
module, run as a script, reads a request a line and each server prints its own link.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Self

from judges.annotation.queue import Plan
from judges.annotation.server import serve
from judges.annotation.tasks import Task

ROOT = Path(__file__).resolve().parents[3]


class Place:
    """A running server; ``url`` is the link with the token."""

    def __init__(self, store: Path, tasks: Sequence[Task], port: int = 0, **options: object) -> None:
        starter = _starter()
        assert starter.stdin is not None
        assert starter.stdout is not None
        request = {"store": str(store), "tasks": [asdict(task) for task in tasks], "port": port, **options}
        starter.stdin.write(json.dumps(request) + "\n")
        starter.stdin.flush()
        answer = json.loads(starter.stdout.readline())
        assert "url" in answer, answer
        self.pid, self.url = answer["pid"], answer["url"]
        self.root = self.url.partition("?")[0]
        self.port = int(self.root.rsplit(":", 1)[1].strip("/"))

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As Ctrl-C does."""
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        os.kill(self.pid, how)
        while self._is_running():
            time.sleep(0.01)

    def _is_running(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_running():
            self.kill()


@cache
def _starter() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, __file__], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    atexit.register(process.kill)
    return process


def _tell(answer: dict[str, Any]) -> None:
    print(json.dumps({"pid": os.getpid(), **answer}), flush=True)  # noqa: T201


def _serve(request: dict[str, Any]) -> None:
    tasks = [Task(**{**values, "conversation": tuple(values["conversation"])}) for values in request.pop("tasks")]
    plan = Plan(**request.pop("plan", {}))
    serve(tasks, Path(request.pop("store")), plan=plan, announce=lambda url: _tell({"url": url}), **request)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    for line in sys.stdin:
        if os.fork() == 0:
            try:
                _serve(json.loads(line))
            except BaseException as error:  # so that the test says what was wrong
                _tell({"error": repr(error)})
            os._exit(0)
