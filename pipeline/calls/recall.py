"""Looking back at paid calls, by key, without taking part: the ledger is opened for reading, and never made."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.calls.accounts import BILLIONTHS
from pipeline.calls.database import FORMAT
from pipeline.calls.request import Reply
from pipeline.errors import JudgeError


@dataclass(frozen=True, slots=True)
class PaidCall:
    """An answer as the ledger has it."""

    key: str
    model: str
    judge: str
    """Who asked."""
    account: str
    """Who paid: the run that asked first."""
    at: str
    """UTC, ISO 8601."""
    tokens_in: int
    tokens_out: int
    cost: float
    """Money."""
    text: str
    """The reply's text."""
    raw: Mapping[str, Any]
    """The provider's JSON."""
    tries: Mapping[str, int] = field(default_factory=dict)
    """Tries that gave no answer before it came, by reason."""


@dataclass(frozen=True, slots=True)
class Remembered:
    calls: Mapping[str, PaidCall]
    """By key."""
    unanswered: Mapping[str, Mapping[str, int]]
    """Keys that were asked and never answered: their tries by reason."""


def recall(file: Path, keys: Iterable[str]) -> Remembered:
    """What the ledger in ``file`` knows of ``keys``; nothing where there is no such file.

    Raises:
        JudgeError: the file is no ledger, or one of another format.
    """
    wanted = list(dict.fromkeys(keys))
    if not file.is_file():
        return Remembered({}, {})
    calls: dict[str, PaidCall] = {}
    unanswered: dict[str, Mapping[str, int]] = {}
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=60.0)) as database:
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if found != FORMAT:
                raise JudgeError(f"ledger {file} has format {found}; allowed: {FORMAT}")
            tries = _tries(database, wanted)
            for key in wanted:
                if (call := _call(database, key, tries.get(key, {}))) is not None:
                    calls[key] = call
                elif key in tries:
                    unanswered[key] = tries[key]
    except sqlite3.DatabaseError as error:
        raise JudgeError(f"ledger {file}: {error}") from None
    return Remembered(calls, unanswered)


def _call(database: sqlite3.Connection, key: str, tries: Mapping[str, int]) -> PaidCall | None:
    find = "SELECT model, judge, account, at, tokens_in, tokens_out, spent, raw FROM answers WHERE key = ?"
    row = database.execute(find, (bytes.fromhex(key),)).fetchone()
    if row is None:
        return None
    model, judge, account, at, tokens_in, tokens_out, spent, text = row
    raw = json.loads(text)
    when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    reply = Reply(key, raw).text
    return PaidCall(key, model, judge, account, when, tokens_in, tokens_out, spent / BILLIONTHS, reply, raw, tries)


def _tries(database: sqlite3.Connection, keys: Iterable[str]) -> dict[str, dict[str, int]]:
    """In one pass, since attempts have no index: by key, failed tries by reason."""
    wanted = {bytes.fromhex(key): key for key in keys}
    found: dict[str, dict[str, int]] = {}
    if wanted:
        for key, reason, count in database.execute("SELECT key, reason, count(*) FROM attempts GROUP BY key, reason"):
            if key in wanted:
                found.setdefault(wanted[key], {})[reason] = count
    return found
