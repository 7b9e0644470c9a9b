"""What was asked, answered and paid: one SQLite file, shared by all runs of a workspace.

An answer is a row under its request's key, the provider's JSON as it came, written before anything reads it: what was
answered is never paid for again, by any run, and reading it differently is free. A failure is never an answer: it is a
row in ``attempts``, for the audit.

Money is whole billionths, so that sums are exact. An account has ``spent`` (usage the provider reported), ``unsettled``
(calls of which nobody knows whether they are billed: timed out, cut off, in flight when their process was killed;
counted at their worst case) and ``reserved`` (calls in flight). A call is *claimed* before it is sent: one transaction
checks that the three and the call's worst case stay within the budget, and makes its key this process's own.

Invariants, which hold whatever is killed when:
  * every step is one transaction; an account's ``reserved`` is the sum of its claims;
  * ``spent + unsettled + reserved`` passes no budget it was claimed under, as long as no call costs more than claimed;
  * of several processes that want one key, one sends it and the others wait for its answer;
  * a claim outlives its process only until somebody opens the ledger or wants its key, and is never taken from a
    process that lives; a batch's claims are nobody's, and stay until the batch has ended.
"""

import os
import socket
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from judges.database import Database
from pipeline.errors import JudgeError

if TYPE_CHECKING:
    import asyncio

    from judges.request import Failure, Reply

BILLIONTHS = 10**9
LONGEST_CLAIM = 2 * 24 * 3600.0
"""Seconds. Processes of another host cannot be looked at: a claim of theirs older than this is taken for dead."""
CLOCK_ERROR = 2.0
"""Seconds by which the start time of one process may seem to differ: it is computed from the clock, which is set."""


class Grant(Enum):
    """What became of a claim."""

    YOURS = "yours"
    ANSWERED = "answered"
    """By somebody else, meanwhile."""
    ELSEWHERE = "elsewhere"
    """Another process, or a batch, is at it."""
    LATER = "later"
    """The budget would hold it if less were in flight."""
    NEVER = "never"
    """The budget does not hold it."""


@dataclass(frozen=True, slots=True)
class Booking:
    """Whose call it is."""

    account: str
    judge: str
    model: str


@dataclass(frozen=True, slots=True)
class Balance:
    """An account, in money."""

    spent: float
    unsettled: float
    reserved: float


@dataclass(frozen=True, slots=True)
class Use:
    """What one judge had of one model, over all of an account's time."""

    judge: str
    model: str
    calls: int
    """Answered by the provider."""
    cached: int
    """Answered by the ledger."""
    tokens_in: int
    tokens_out: int
    cost: float
    """Money: spent and unsettled."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Tries that gave no answer, by reason."""


@dataclass(frozen=True, slots=True)
class OpenBatch:
    id: int
    tag: str
    """Our name for it, which the provider keeps too: it finds a batch whose id was lost."""
    remote: str | None
    """The provider's id; None until it is known."""
    owner_lives: bool


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    key: str
    raw: str | None
    """The answer; None: a failure."""
    tokens: tuple[int, int] | None
    cost: int | None
    """In billionths; None: the provider did not say, so it is what was claimed."""
    reason: str = ""
    detail: str = ""
    billed: bool = False


class Ledger:
    """One per file and process: see :func:`opened`. Any thread may use it."""

    def __init__(self, file: Path) -> None:
        self.asking: dict[str, asyncio.Future[Reply | Failure | None]] = {}
        """What this process is asking now, so that it asks nothing twice at once. None: the asker gave up."""
        self.sending: set[int] = set()
        """Batches this process is about to send."""
        self._database = Database(file)
        self._hits: Counter[Booking] = Counter()
        self._buried = -1.0
        me = psutil.Process()
        with self._database.step() as database:
            row = database.execute(
                "INSERT INTO owners (host, pid, started) VALUES (?, ?, ?) RETURNING id",
                (socket.gethostname(), me.pid, me.create_time()),
            ).fetchone()
        self._owner = int(row[0])
        self.bury_the_dead()

    def close(self) -> None:
        self._write_hits()
        with self._database.step() as database:
            database.execute(
                "DELETE FROM owners WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM claims WHERE owner = ?1)"
                " AND NOT EXISTS (SELECT 1 FROM batches WHERE owner = ?1)",
                (self._owner,),
            )
        self._database.close()

    # ------------------------------------------------------------------------------------------------- answers
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

    def hit(self, booking: Booking) -> None:
        """Counts an answer that was free. Written now and then: a kill may lose some of these counts."""
        with self._database.lock:
            self._hits[booking] += 1
            if self._hits[booking] >= 100:
                self._write_hits()

    def _write_hits(self) -> None:
        with self._database.step() as database:
            database.executemany(
                "INSERT INTO hits VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET calls = calls + excluded.calls",
                [(who.account, who.judge, who.model, calls) for who, calls in self._hits.items()],
            )
            self._hits.clear()

    # -------------------------------------------------------------------------------------------------- claims
    def claim(self, key: str, booking: Booking, amount: int, budget: int | None) -> Grant:
        """Makes ``key`` this process's own and reserves ``amount`` billionths, where the budget holds it."""
        with self._database.step() as database:
            return self._claim(database, key, booking, amount, budget, None)

    def _claim(
        self, database: sqlite3.Connection, key: str, booking: Booking, amount: int, budget: int | None,
        batch: int | None,
    ) -> Grant:  # fmt: skip
        name = bytes.fromhex(key)
        if database.execute("SELECT 1 FROM answers WHERE key = ?", (name,)).fetchone():
            return Grant.ANSWERED
        if database.execute("SELECT 1 FROM claims WHERE key = ?", (name,)).fetchone():
            return Grant.ELSEWHERE
        if budget is not None and amount:
            spent, unsettled, reserved = _account(database, booking.account)
            if spent + unsettled + amount > budget:
                return Grant.NEVER
            if spent + unsettled + reserved + amount > budget:
                return Grant.LATER
        database.execute(
            "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (name, self._owner, batch, booking.account, booking.judge, booking.model, amount, time.time()),
        )
        _book(database, booking.account, reserved=amount)
        return Grant.YOURS

    def settle(self, key: str, raw: str, booking: Booking, tokens: tuple[int, int], cost: int) -> None:
        """Stores an answer and books what it cost; its claim ends."""
        with self._database.step() as database:
            self._release(database, bytes.fromhex(key))
            _store(database, key, raw, booking, tokens, cost)

    def fail(self, key: str, reason: str, detail: str, booking: Booking, spent: int = 0, unknown: bool = False) -> None:
        """Notes a try that gave no answer; its claim ends. ``unknown``: it may be billed, so its worst case counts."""
        with self._database.step() as database:
            amount = self._release(database, bytes.fromhex(key))
            unsettled = amount if unknown else 0
            _note(database, bytes.fromhex(key), booking, reason, detail, spent + unsettled)
            _book(database, booking.account, spent=spent, unsettled=unsettled)

    def _release(self, database: sqlite3.Connection, key: bytes) -> int:
        """Ends our own claim; what it had reserved."""
        row = database.execute(
            "DELETE FROM claims WHERE key = ? AND owner = ? AND batch IS NULL RETURNING account, amount",
            (key, self._owner),
        ).fetchone()
        if row is None:
            return 0
        _book(database, row[0], reserved=-row[1])
        return int(row[1])

    def bury_the_dead(self) -> None:
        """Ends the claims of processes that are gone. Their calls were in flight and may be billed: unsettled."""
        if time.monotonic() < self._buried + 1.0:
            return
        self._buried = time.monotonic()
        with self._database.step() as database:
            dead = self._dead(database)
            for owner, made_before in dead.items():
                claims = database.execute(
                    "DELETE FROM claims WHERE owner = ? AND batch IS NULL AND at < ?"
                    " RETURNING key, account, judge, model, amount",
                    (owner, made_before),
                ).fetchall()
                for key, account, judge, model, amount in claims:
                    _note(database, key, Booking(account, judge, model), "killed", "its process died", amount)
                    _book(database, account, reserved=-amount, unsettled=amount)

    def _dead(self, database: sqlite3.Connection) -> dict[int, float]:
        """Owners that are gone, and until when a claim of theirs must have been made to be dead as well."""
        host, dead = socket.gethostname(), {}
        for owner, its_host, pid, started in database.execute("SELECT id, host, pid, started FROM owners").fetchall():
            if its_host != host:
                dead[owner] = time.time() - LONGEST_CLAIM
            elif not _lives(pid, started):
                dead[owner] = float("inf")
        return dead

    # ------------------------------------------------------------------------------------------------- batches
    def open_batch(
        self, place: str, tag: str, wanted: Mapping[str, int], booking: Booking, budget: int | None
    ) -> tuple[OpenBatch, dict[str, Grant]]:
        """A new batch at ``place`` (address and model) with claims on those of ``wanted`` (key to amount) that are
        granted, before anything is sent; and what became of each."""
        with self._database.step() as database:
            row = database.execute(
                "INSERT INTO batches (place, tag, owner, at) VALUES (?, ?, ?, ?) RETURNING id",
                (place, tag, self._owner, time.time()),
            ).fetchone()
            grants = {
                key: self._claim(database, key, booking, amount, budget, int(row[0])) for key, amount in wanted.items()
            }
            self.sending.add(int(row[0]))
        return OpenBatch(int(row[0]), tag, None, owner_lives=True), grants

    def batch_sent(self, batch: int, remote: str) -> None:
        with self._database.step() as database:
            database.execute("UPDATE batches SET remote = ? WHERE id = ?", (remote, batch))

    def batch_of(self, key: str) -> OpenBatch | None:
        """The open batch that ``key`` is in."""
        with self._database.reading() as database:
            row = database.execute(
                "SELECT batches.id, tag, remote, batches.owner, host, pid, started FROM claims"
                " JOIN batches ON batches.id = claims.batch JOIN owners ON owners.id = batches.owner WHERE key = ?",
                (bytes.fromhex(key),),
            ).fetchone()
        if row is None:
            return None
        number, tag, remote, owner, host, pid, started = row
        if owner == self._owner:
            return OpenBatch(number, tag, remote, owner_lives=number in self.sending)
        return OpenBatch(number, tag, remote, owner_lives=host != socket.gethostname() or _lives(pid, started))

    def batch_keys(self, batch: int) -> set[str]:
        """Keys of an open batch that have no outcome yet."""
        with self._database.reading() as database:
            return {row[0].hex() for row in database.execute("SELECT key FROM claims WHERE batch = ?", (batch,))}

    def settle_batch(self, batch: int, outcomes: Iterable[BatchOutcome]) -> None:
        """Books outcomes of a batch, each once however many processes bring it."""
        with self._database.step() as database:
            for outcome in outcomes:
                row = database.execute(
                    "DELETE FROM claims WHERE key = ? AND batch = ? RETURNING account, judge, model, amount",
                    (bytes.fromhex(outcome.key), batch),
                ).fetchone()
                if row is None:
                    continue
                booking, amount = Booking(*row[:3]), int(row[3])
                _book(database, booking.account, reserved=-amount)
                if outcome.raw is not None:
                    cost = amount if outcome.cost is None else outcome.cost
                    _store(database, outcome.key, outcome.raw, booking, outcome.tokens or (0, 0), cost)
                    continue
                unsettled = amount if outcome.billed and outcome.cost is None else 0
                cost = outcome.cost or 0
                name = bytes.fromhex(outcome.key)
                _note(database, name, booking, outcome.reason, outcome.detail, cost + unsettled)
                _book(database, booking.account, spent=cost, unsettled=unsettled)

    def close_batch(self, batch: int) -> None:
        """Forgets a batch; claims it still has end and cost nothing."""
        self.sending.discard(batch)
        with self._database.step() as database:
            for account, amount in database.execute(
                "DELETE FROM claims WHERE batch = ? RETURNING account, amount", (batch,)
            ).fetchall():
                _book(database, account, reserved=-amount)
            database.execute("DELETE FROM batches WHERE id = ?", (batch,))

    # ------------------------------------------------------------------------------------------------ accounts
    def balance(self, account: str) -> Balance:
        with self._database.reading() as database:
            return Balance(*(amount / BILLIONTHS for amount in _account(database, account)))

    def budget_error(self, account: str, budget: int, most: int) -> JudgeError:
        """What to say where ``budget`` does not hold a call of at ``most`` (billionths)."""
        balance = self.balance(account)
        return JudgeError(
            f"budget reached: {account!r} has spent {balance.spent:.6g}, calls of unknown outcome hold"
            f" {balance.unsettled:.6g} and calls in flight {balance.reserved:.6g} of {budget / BILLIONTHS:g}, and the"
            f" next may cost {most / BILLIONTHS:.6g}; all answers are kept: raise limits.budget and run again to go on"
        )

    def uses(self, account: str | None = None) -> list[Use]:
        """What each judge had of each model, by name; of one account, or of all."""
        if self._hits:
            self._write_hits()
        cells: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        failures: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        whose = "WHERE account = :account OR :account IS NULL GROUP BY judge, model"
        with self._database.reading() as database:
            for judge, model, calls, read, written, cost in database.execute(
                f"SELECT judge, model, count(*), sum(tokens_in), sum(tokens_out), sum(cost) FROM answers {whose}",
                {"account": account},
            ):
                cells[judge, model] += Counter(calls=calls, tokens_in=read, tokens_out=written, cost=cost)
            for judge, model, calls in database.execute(
                f"SELECT judge, model, sum(calls) FROM hits {whose}", {"account": account}
            ):
                cells[judge, model]["cached"] += calls
            for judge, model, reason, calls, cost in database.execute(
                f"SELECT judge, model, reason, count(*), sum(cost) FROM attempts {whose}, reason", {"account": account}
            ):
                cells[judge, model]["cost"] += cost
                failures[judge, model][reason] += calls
        return [
            Use(
                *where, cell["calls"], cell["cached"], cell["tokens_in"], cell["tokens_out"],
                cell["cost"] / BILLIONTHS, dict(failures[where]),
            )
            for where, cell in sorted(cells.items())
        ]  # fmt: skip


def _account(database: sqlite3.Connection, name: str) -> tuple[int, int, int]:
    """Spent, unsettled, reserved."""
    find = "SELECT spent, unsettled, reserved FROM accounts WHERE name = ?"
    return database.execute(find, (name,)).fetchone() or (0, 0, 0)


def _book(database: sqlite3.Connection, name: str, spent: int = 0, unsettled: int = 0, reserved: int = 0) -> None:
    if spent or unsettled or reserved:
        database.execute(
            "INSERT INTO accounts VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET spent = spent + excluded.spent,"
            " unsettled = unsettled + excluded.unsettled, reserved = reserved + excluded.reserved",
            (name, spent, unsettled, reserved),
        )


def _store(
    database: sqlite3.Connection, key: str, raw: str, booking: Booking, tokens: tuple[int, int], cost: int
) -> None:
    database.execute(
        "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (bytes.fromhex(key), raw, booking.account, booking.judge, booking.model, *tokens, cost, time.time()),
    )
    _book(database, booking.account, spent=cost)


def _note(database: sqlite3.Connection, key: bytes, booking: Booking, reason: str, detail: str, cost: int) -> None:
    database.execute(
        "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (key, booking.account, booking.judge, booking.model, reason, detail, cost, time.time()),
    )


def _lives(pid: int, started: float) -> bool:
    """Whether the process that started then, and no later one with its number, is there. A zombie is not."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < CLOCK_ERROR and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_ledgers: dict[tuple[int, Path], Ledger] = {}
_opening = threading.Lock()


def opened(file: str) -> Ledger:
    """This process's ledger in ``file``; a forked child gets its own, because SQLite's connections are no heirlooms."""
    where = (os.getpid(), Path(file).resolve())
    with _opening:
        if where not in _ledgers:
            _ledgers[where] = Ledger(where[1])
        return _ledgers[where]
