"""The ledger's file: SQLite in WAL mode, used by several processes and threads at once.

A step is one transaction, on the caller's thread: 20 to 60 µs, far less than handing it to another thread would take.

In WAL mode with ``synchronous = NORMAL`` a commit is a write(2) to the log without an fsync. Killing the process, even
with -9, loses nothing of it: the pages are the kernel's by then. A power cut may lose the last commits, whole ones from
the end only, and never corrupts the file (sqlite.org/wal.html, "Performance considerations").
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pipeline.calls.accounts import Booking
from pipeline.errors import JudgeError

FORMAT = 1
"""Raised when SCHEMA changes what it means."""
SCHEMA = """
CREATE TABLE answers (
    key BLOB NOT NULL UNIQUE, raw TEXT NOT NULL, account TEXT NOT NULL, judge TEXT NOT NULL, model TEXT NOT NULL,
    tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, spent INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE attempts (
    key BLOB NOT NULL, account TEXT NOT NULL, judge TEXT NOT NULL, model TEXT NOT NULL, reason TEXT NOT NULL,
    detail TEXT NOT NULL, spent INTEGER NOT NULL, unsettled INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE hits (
    account TEXT, judge TEXT, model TEXT, calls INTEGER NOT NULL, PRIMARY KEY (account, judge, model)) WITHOUT ROWID;
CREATE TABLE claims (
    key BLOB PRIMARY KEY, owner INTEGER NOT NULL, batch INTEGER, account TEXT NOT NULL, judge TEXT NOT NULL,
    model TEXT NOT NULL, amount INTEGER NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX claims_by_batch ON claims (batch) WHERE batch IS NOT NULL;
CREATE TABLE owners (
    id INTEGER PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, started REAL NOT NULL, seen REAL NOT NULL);
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, place TEXT NOT NULL, tag TEXT NOT NULL, remote TEXT, owner INTEGER NOT NULL,
    at REAL NOT NULL);
CREATE TABLE accounts (
    name TEXT PRIMARY KEY, spent INTEGER NOT NULL DEFAULT 0, unsettled INTEGER NOT NULL DEFAULT 0,
    reserved INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
"""
TRIGGERS = {
    "answers INSERT": "spent = spent + new.spent",
    "attempts INSERT": "spent = spent + new.spent, unsettled = unsettled + new.unsettled",
    "claims INSERT": "reserved = reserved + new.amount",
    "claims DELETE": "reserved = reserved - old.amount",
}
"""What a row does to its account: an account's money is the sum of its rows by construction."""
CHECKPOINT_AFTER = 1000
"""Transactions between two checkpoints: a few megabytes of log."""
PATIENCE = 60.0
"""Seconds to wait for another process's transaction, which takes less than a millisecond unless it is stopped."""


class Database:
    """Raises JudgeError where the file is no ledger, cannot be written, or is of another Ratchet's format."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lock = threading.RLock()
        self._steps = 0
        self._checkpointing = False
        with self._explained():
            file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(file, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            _become_wal(self._connection)
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("PRAGMA wal_autocheckpoint = 0")  # it would stall the caller with two fsyncs
        with self.step() as connection:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found == 0:
                for statement in (*filter(str.strip, SCHEMA.split(";")), *map(_trigger, TRIGGERS)):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            elif found != FORMAT:
                raise JudgeError(f"ledger {file} has format {found}; allowed: {FORMAT}; name another file")

    @contextmanager
    def step(self) -> Iterator[sqlite3.Connection]:
        """One transaction, taken for writing from the start: what it reads stays true until it is written."""
        with self.lock, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            self._steps += 1
            if self._steps % CHECKPOINT_AFTER == 0 and not self._checkpointing:
                self._checkpointing = True
                threading.Thread(target=self._checkpoint, name="ledger-checkpoint", daemon=True).start()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self.lock, self._explained():
            yield self._connection

    def close(self) -> None:
        with self.lock:
            self._connection.close()

    def _checkpoint(self) -> None:
        """Moves the log into the file, on a connection of its own; PASSIVE waits for nobody and blocks nobody."""
        try:
            with suppress(sqlite3.Error), closing(sqlite3.connect(self.file)) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            self._checkpointing = False

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise JudgeError(f"ledger {self.file}: {error}; it must be a SQLite file on a local disk") from None


def _trigger(event: str) -> str:
    table, change = event.split()
    row = "old" if change == "DELETE" else "new"
    return (
        f"CREATE TRIGGER {table}_{change} AFTER {change} ON {table} BEGIN"
        f" UPDATE accounts SET {TRIGGERS[event]} WHERE name = {row}.account; END"
    )


def _become_wal(connection: sqlite3.Connection) -> None:
    """The change of mode takes an exclusive lock and does not wait for it, so that processes may collide here."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def store(
    database: sqlite3.Connection, key: str, raw: str, booking: Booking, tokens: tuple[int, int], spent: int
) -> None:
    """Writes an answer. One that came a second time was paid for all the same."""
    written = database.execute(
        "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (bytes.fromhex(key), raw, booking.account, booking.judge, booking.model, *tokens, spent, time.time()),
    )
    if written.rowcount == 0:
        note(database, key, booking, "answered_twice", "", spent, 0)


def note(
    database: sqlite3.Connection, key: str, booking: Booking, reason: str, detail: str, spent: int, unsettled: int
) -> None:
    """Writes a try that gave no answer."""
    database.execute(
        "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            bytes.fromhex(key),
            booking.account,
            booking.judge,
            booking.model,
            reason,
            detail,
            spent,
            unsettled,
            time.time(),
        ),
    )
