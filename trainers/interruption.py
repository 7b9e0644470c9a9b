"""SIGTERM and Ctrl-C while a training runs: its step ends, its state is saved, and the process leaves."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from trainers.parallel import Share

UNHANDLED = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
PATIENT = "lets_training_save"
"""Attribute of a handler that ends the process, and does not mind to be called when a training has saved its state."""


class Interruption:
    """What signal came, if any."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.handlers: dict[int, Any] = {}
        """Those that stood before, of the signals that are noted."""

    def of_any(self, share: Share) -> int | None:
        """The first signal that any of the processes got, the same for all of them, so that they leave together."""
        return next((number for number in share.gather(self.number) if number is not None), None)

    def leave(self, number: int) -> NoReturn:
        """As the signal would have ended the process. Raises KeyboardInterrupt or SystemExit(128 + number)."""
        handler = self.handlers.get(number)
        if callable(handler) and getattr(handler, PATIENT, False):
            handler(number, None)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


@contextmanager
def noticed() -> Iterator[Interruption]:
    """Signals are noted and do nothing else, once; a second one acts at once.

    Only in the main thread, and only those that nobody else handles, or somebody patient.
    """
    found = Interruption()
    mine = {}
    for number, unhandled in UNHANDLED.items():
        handler = signal.getsignal(number)
        if handler == unhandled or getattr(handler, PATIENT, False):
            mine[number] = handler
    if threading.current_thread() is not threading.main_thread():
        mine = {}

    def restore() -> None:
        for number, handler in mine.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        found.number = number
        restore()

    found.handlers = {int(number): handler for number, handler in mine.items()}
    for number in mine:
        signal.signal(number, note)
    try:
        yield found
    finally:
        restore()
