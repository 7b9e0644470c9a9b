"""Work that waits for others, done side by side: three models that answer within a day each take one day, not three."""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from rich.markup import escape

from flows import environment
from flows.console import Console
from pipeline.errors import OverdueError

Made = TypeVar("Made")


def side_by_side(
    work: Mapping[str, Callable[[], Made]], console: Console, here: Collection[str] = ()
) -> dict[str, Made]:
    """What each of ``work`` makes, by name, in the order given, whichever ends first.

    Each is done in a thread of its own; those in ``here`` one after another in this one, because they share this
    machine. All of them end, whatever becomes of the others: what was asked for is paid for, and is kept. One that
    fails is told at once, since the others may take a day. They have this thread's context, and so its deadline.

    Raises:
        Exception: what failed; of several the first in the order given, with what else others say as its notes.
    """
    made: dict[str, Made] = {}
    failed: dict[str, Exception] = {}

    def do(name: str) -> None:
        try:
            made[name] = work[name]()
        except Exception as error:
            failed[name] = error
            if len(work) > 1 and not isinstance(error, OverdueError):  # the others have no time left either
                console.say(f"  [red]✗[/] {escape(f'{name}: {error}')}; the others go on")

    apart = [name for name in work if name not in here]
    # Prefect's own answer to SIGTERM is an exception, which would wait here for all threads.
    with environment.in_charge(), ThreadPoolExecutor(max(1, len(apart)), thread_name_prefix="beside") as pool:
        waiting = [pool.submit(copy_context().run, partial(do, name)) for name in apart]
        for name in work:
            if name in here:
                do(name)
        for each in waiting:
            each.result()
    errors = list({str(failed[name]): failed[name] for name in work if name in failed}.values())
    for error in errors[1:]:
        errors[0].add_note(f"and {error}")
    if errors:
        raise errors[0]
    return {name: made[name] for name in work}
