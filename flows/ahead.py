"""Shards worked on ahead of the one that is written next, by those that ask others and would else wait for the last."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from pipeline.store import Draft

Given = TypeVar("Given")
Made = TypeVar("Made")


def ahead(
    work: Callable[[Given], Made], shards: Iterable[tuple[int, Given]], draft: Draft, at_once: int
) -> Iterator[tuple[int, Given, Made | None]]:
    """Every shard in order with what ``work`` makes of it, None where it is there already; ``at_once`` of them are
    worked on, each in a thread of its own; one alone in this one, where a timeout can interrupt it."""
    if at_once == 1:
        for number, given in shards:
            yield number, given, None if draft.has_shard(number) else work(given)
        return
    waiting: deque[tuple[int, Given, Future[Made] | None]] = deque()

    def first() -> tuple[int, Given, Made | None]:
        number, given, future = waiting.popleft()
        return number, given, None if future is None else future.result()

    pool = ThreadPoolExecutor(at_once)
    try:
        for number, given in shards:
            future = None if draft.has_shard(number) else pool.submit(copy_context().run, work, given)
            waiting.append((number, given, future))
            if len(waiting) >= at_once:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)
