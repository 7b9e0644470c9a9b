"""What was asked, answered and paid: one SQLite file, shared by all runs of a workspace.

An answer is a row under its request's key, the provider's JSON as it came, written before anything reads it: what was
answered is never paid for again, by any run, and reading it differently is free. A failure is never an answer: it is a
row in ``attempts``, for the audit.

Invariants, which hold whatever is killed when:
  * every step is one transaction, and an account's money is the sum of its rows (``pipeline/calls/database.py``);
  * spent + unsettled + reserved passes no budget it was claimed under, as long as no call costs more than its claim;
  * of several processes that want one key, one sends it and the others wait (``pipeline/calls/claims.py``).
"""

import asyncio
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.calls import accounts, claims
from pipeline.calls.accounts import Balance, Booking, Use
from pipeline.calls.claims import Grant
from pipeline.calls.database import Database, note, store
from pipeline.calls.open_batches import OpenBatches
from pipeline.errors import JudgeError

__all__ = ["Balance", "Booking", "Grant", "Ledger", "Use", "opened"]

if TYPE_CHECKING:
    from pipeline.calls.request import Failure, Reply

Result = TypeVar("Result")
BURIALS, SIGNS = 1.0, 30.0
"""Seconds between two looks at who has died, and between two signs of our own life."""
HITS = 100
"""Free answers counted in memory before they are written down."""


class Ledger:
    """One per file and process: see :func:`opened`. Any thread may use it."""

    def __init__(self, file: Path) -> None:
        """Raises JudgeError where the file is no ledger, or cannot be written."""
        self.asking: dict[str, asyncio.Future[Reply | Failure | None]] = {}
        """What this process is asking now, so that it asks nothing twice at once. None: the asker gave up."""
        self._database = Database(file)
        self._pending: list[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = []
        self._hits: Counter[Booking] = Counter()
        self._accounts: set[str] = set()
        self._buried = self._shown = time.monotonic()
        with self._database.step() as database:
            self._owner = claims.register(database)
            claims.bury_the_dead(database)
        self.batches = OpenBatches(self._database, self._owner)

    def close(self) -> None:
        self._write_hits()
        with self._database.step() as database:
            claims.sign_off(database, self._owner)
        self._database.close()

    def answer(self, key: str) -> str | None:
        """The raw JSON under ``key``."""
        with self._database.reading() as database:
            row = database.execute("SELECT raw FROM answers WHERE key = ?", (bytes.fromhex(key),)).fetchone()
        return None if row is None else str(row[0])

    def answered(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` that have an answer."""
        find = "SELECT 1 FROM answers WHERE key = ?"
        with self._database.reading() as database:
            return {key for key in keys if database.execute(find, (bytes.fromhex(key),)).fetchone()}

    # -------------------------------------------------------------------------------------------------- a call
    def claim(self, key: str, booking: Booking, amount: int, budget: int | None) -> Grant:
        """Makes ``key`` this process's own and reserves ``amount`` billionths, where the budget holds it."""
        self._open_account(booking.account)
        with self._database.reading() as database:  # its one statement is a transaction of its own
            return claims.claim(database, key, self._owner, booking, amount, budget)

    async def claim_soon(self, key: str, booking: Booking, amount: int, budget: int | None) -> Grant:
        """:meth:`claim`, in one transaction with whatever else this turn of the event loop writes."""
        self._open_account(booking.account)
        claimed = self._soon(lambda database: claims.claim(database, key, self._owner, booking, amount, budget))
        try:
            return await claimed
        except asyncio.CancelledError:
            self._soon(lambda database: claims.release(database, key, self._owner))
            raise

    async def settle_soon(self, key: str, raw: str, booking: Booking, tokens: tuple[int, int], cost: int) -> None:
        """:meth:`settle`, in one transaction with whatever else this turn of the event loop writes. It is written also
        where the caller is cancelled meanwhile."""

        def settle(database: sqlite3.Connection) -> None:
            claims.release(database, key, self._owner)
            store(database, key, raw, booking, tokens, cost)

        await self._soon(settle)

    def _soon(self, work: Callable[[sqlite3.Connection], Result]) -> "asyncio.Future[Result]":
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()
        self._pending.append((work, done))
        if len(self._pending) == 1:
            loop.call_soon(self._write_pending)
        return done

    def _write_pending(self) -> None:
        """One transaction for all: a commit costs more than what is written in it."""
        pending, self._pending = self._pending, []
        try:
            with self._database.step() as database:
                results = [work(database) for work, _ in pending]
                self._show(database)
        except Exception as error:  # whatever it is, nobody may wait for ever
            for _, done in pending:
                if not done.cancelled():
                    done.set_exception(error)
        else:
            for (_, done), result in zip(pending, results, strict=True):
                if not done.cancelled():
                    done.set_result(result)

    def settle(self, key: str, raw: str, booking: Booking, tokens: tuple[int, int], cost: int) -> None:
        """Stores an answer and books what it cost; its claim ends."""
        self._open_account(booking.account)
        with self._database.step() as database:
            claims.release(database, key, self._owner)
            store(database, key, raw, booking, tokens, cost)

    def fail(self, key: str, reason: str, detail: str, booking: Booking, spent: int = 0, unknown: bool = False) -> None:
        """Notes a try that gave no answer; its claim ends. ``unknown``: it may be billed, so its worst case counts."""
        self._open_account(booking.account)
        with self._database.step() as database:
            amount = claims.release(database, key, self._owner)
            note(database, key, booking, reason, detail, spent, amount if unknown else 0)

    def _open_account(self, name: str) -> None:
        if name not in self._accounts:
            with self._database.step() as database:
                accounts.open_account(database, name)
            self._accounts.add(name)

    def bury_the_dead(self) -> None:
        """Ends the claims of processes that are gone, if nobody looked a moment ago."""
        if time.monotonic() >= self._buried + BURIALS:
            self._buried = time.monotonic()
            with self._database.step() as database:
                self._show(database)
                claims.bury_the_dead(database)

    def _show(self, database: sqlite3.Connection) -> None:
        if time.monotonic() >= self._shown + SIGNS:
            self._shown = time.monotonic()
            claims.show(database, self._owner)

    # ------------------------------------------------------------------------------------------------ accounts
    def hit(self, booking: Booking) -> None:
        """Counts an answer that was free. Written now and then: a kill may lose some of these counts."""
        with self._database.lock:
            self._hits[booking] += 1
            if self._hits[booking] >= HITS:
                self._write_hits()

    def _write_hits(self) -> None:
        with self._database.step() as database:
            database.executemany(
                "INSERT INTO hits VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET calls = calls + excluded.calls",
                [(who.account, who.judge, who.model, calls) for who, calls in self._hits.items()],
            )
            self._hits.clear()

    def balance(self, account: str) -> Balance:
        with self._database.reading() as database:
            return accounts.balance(database, account)

    def uses(self, account: str | None = None) -> list[Use]:
        """What each judge had of each model, by name; of one account, or of all."""
        self._write_hits()
        with self._database.reading() as database:
            return accounts.uses(database, account)

    def budget_reached(self, account: str, budget: int, most: int) -> JudgeError:
        return accounts.budget_reached(self.balance(account), account, budget, most)


_ledgers: dict[tuple[int, Path], Ledger] = {}
_opening = threading.Lock()


def opened(file: str) -> Ledger:
    """This process's ledger in ``file``; a forked child gets its own, because SQLite's connections are no heirlooms."""
    where = (os.getpid(), Path(file).resolve())
    with _opening:
        if where not in _ledgers:
            _ledgers[where] = Ledger(where[1])
        return _ledgers[where]
