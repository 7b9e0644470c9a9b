"""What libraries must hear before they are imported: be quiet, phone nobody, do not hang, keep memory to use it again.

Every value is a default: whatever the user has set stands.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

INTERRUPTED = "interrupted; the same command goes on from here"
LAST_WORDS = 5.0
"""Seconds that Prefect gets to note an interruption."""

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # its log goes to its server; our console says what matters
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "MIMALLOC_ALLOW_THP": "1",  # pyarrow: memory in large pages, and kept, or pairing takes half as long again
    "MIMALLOC_PURGE_DELAY": "-1",
}


_ours: dict[int, Callable[[int, FrameType | None], NoReturn]] = {}
"""Handlers that :func:`leave_on_signals` installed."""


def prepare() -> None:
    """Set the defaults. Call before the first import of Prefect or transformers."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    home.mkdir(parents=True, exist_ok=True)  # Prefect warns of a memo file it cannot write where its home is missing


def leave_at_once() -> None:
    """End the process at once on Ctrl-C and on SIGTERM. Call from the main thread; ignored signals stay so.

    Nothing is raised: an import that is interrupted may swallow that, or make another error of it. A training ends its
    step and saves its state first.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        leave(128 + number)

    vars(interrupt)["lets_training_save"] = True  # see trainers.interruption
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a script
            signal.signal(number, interrupt)


def leave_on_signals() -> None:
    """As :func:`leave_at_once`, but in order, for what runs in Prefect's flows.

    Prefect's temporary server gets the terminal's Ctrl-C too, and Prefect would go on trying to reach it for minutes;
    then there is nobody to take leave of. A server of the user's gets a few seconds to hear of it. A training ends its
    step and saves its state first; a second signal does not wait for that.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        if _temporary_server() is not None:
            leave(128 + number)
        timer = threading.Timer(LAST_WORDS, leave, [128 + number])
        timer.daemon = True
        timer.start()
        raise SystemExit(128 + number)

    vars(interrupt)["lets_training_save"] = True  # see trainers.interruption
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
            _ours[number] = interrupt


@contextmanager
def in_charge() -> Iterator[None]:
    """Within a flow Prefect handles SIGTERM, and would first try to reach its server, which the same signal may have
    ended. Here our handlers stand again, if :func:`leave_on_signals` was called."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    others = {number: signal.getsignal(number) for number in _ours}
    for number, handler in _ours.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, other in others.items():
            signal.signal(number, other)


@contextmanager
def leaving() -> Iterator[None]:
    """What a signal raised, of :func:`leave_on_signals` or of a training that has saved its state, ends the process."""
    try:
        yield
    except SystemExit as left:
        leave(int(left.code or 1))


def leave(code: int) -> NoReturn:
    """End this process, the engine and Prefect's temporary server at once. The store is always whole."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar may have hidden it
    os.write(2, f"{show_cursor}\n{INTERRUPTED}\n".encode())  # the handler may have come in the middle of a write
    os._exit(code)


def _temporary_server() -> psutil.Process | None:
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any("prefect.server" in part for part in child.cmdline()):
                return child
    return None


def use_threads(count: int | None) -> None:
    """Limit torch to ``count`` CPU threads here and in the processes started from here; None changes nothing."""
    if count is not None:
        import torch

        os.environ["OMP_NUM_THREADS"] = str(count)
        torch.set_num_threads(count)
