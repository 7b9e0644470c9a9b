"""How long a stage may take, known to all threads that do a part of it and heeded where they wait for others' answers.

No thread can be interrupted from outside, so each looks for itself; a thread that is to know gets its maker's context.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

from pipeline.errors import OverdueError

Result = TypeVar("Result")


class _Deadline(NamedTuple):
    stage: str
    seconds: float
    ends: float
    """By the monotonic clock."""


_deadline: ContextVar[_Deadline | None] = ContextVar("deadline", default=None)


def overdue(stage: str, seconds: float) -> OverdueError:
    return OverdueError(
        f"stage {stage!r} takes longer than limits.stage_timeout = {seconds:g} seconds. What is finished is kept: set"
        " more, and run the same command again"
    )


@contextmanager
def within(seconds: float, stage: str) -> Iterator[None]:
    """The stage may take so long from here."""
    token = _deadline.set(_Deadline(stage, seconds, time.monotonic() + seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


def wait(future: Future[Result]) -> Result:
    """What comes of it. Raises OverdueError where nothing has by the end of the stage that waits, if it has one."""
    deadline = _deadline.get()
    if deadline is None:
        return future.result()
    try:
        return future.result(max(0.0, deadline.ends - time.monotonic()))
    except TimeoutError:
        if future.done():  # the error is its own
            raise
        raise overdue(deadline.stage, deadline.seconds) from None
