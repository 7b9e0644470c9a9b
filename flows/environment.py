"""What Prefect and the Hugging Face libraries must hear before they are imported: be quiet, phone nobody, do not hang.

Every value is a default: whatever the user has set stands.
"""

import os
import sys
import threading
from pathlib import Path

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
}


def prepare() -> None:
    """Set the defaults. Call before the first import of Prefect or transformers."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    home.mkdir(parents=True, exist_ok=True)  # Prefect warns of a memo file it cannot write where its home is missing


def leave_soon() -> None:
    """End the process in a few seconds whatever it does then.

    Ctrl-C in a terminal also ends Prefect's temporary server, and Prefect would go on trying to reach it for minutes.
    The store needs no good-bye.
    """

    def leave() -> None:
        sys.stderr.write(f"{INTERRUPTED}\n")
        sys.stderr.flush()
        os._exit(130)

    timer = threading.Timer(LAST_WORDS, leave)
    timer.daemon = True
    timer.start()


def use_threads(count: int | None) -> None:
    """Limit torch to ``count`` CPU threads here and in the processes started from here; None changes nothing."""
    if count is not None:
        import torch

        os.environ["OMP_NUM_THREADS"] = str(count)
        torch.set_num_threads(count)
