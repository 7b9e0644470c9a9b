"""Batches on their way, as the ledger knows them: their claims are nobody's, and outlive whoever sent them."""

import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.calls.accounts import Booking, open_account
from pipeline.calls.claims import Grant, claim, lives
from pipeline.calls.database import Database, note, store


@dataclass(frozen=True, slots=True)
class OpenBatch:
    id: int
    tag: str
    """Our name for it, which the provider keeps too: it finds a batch whose id was lost."""
    remote: str | None
    """The provider's id; None until it is known."""
    owner_lives: bool
    """Somebody is about to send it."""


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


class OpenBatches:
    def __init__(self, database: Database, owner: int) -> None:
        self._database, self._owner = database, owner
        self._sending: set[int] = set()
        """Those this process is about to send."""

    def open(
        self, place: str, tag: str, wanted: Mapping[str, int], booking: Booking, budget: int | None
    ) -> tuple[OpenBatch, dict[str, Grant]]:
        """A new batch at ``place`` (address and model) with claims on those of ``wanted`` (key to amount) that are
        granted, before anything is sent; and what became of each."""
        with self._database.step() as database:
            open_account(database, booking.account)
            row = database.execute(
                "INSERT INTO batches (place, tag, owner, at) VALUES (?, ?, ?, ?) RETURNING id",
                (place, tag, self._owner, time.time()),
            ).fetchone()
            number = int(row[0])
            grants = {
                key: claim(database, key, self._owner, booking, amount, budget, number)
                for key, amount in wanted.items()
            }
        self._sending.add(number)
        return OpenBatch(number, tag, None, owner_lives=True), grants

    def sent(self, batch: int, remote: str) -> None:
        with self._database.step() as database:
            database.execute("UPDATE batches SET remote = ? WHERE id = ?", (remote, batch))

    def not_sending(self, batch: int) -> None:
        """Whatever became of it, this process no longer tries to send it."""
        self._sending.discard(batch)

    def of(self, key: str) -> OpenBatch | None:
        """The batch that ``key`` is in."""
        with self._database.reading() as database:
            row = database.execute(
                "SELECT batches.id, tag, remote, batches.owner, host, pid, started, seen FROM claims"
                " JOIN batches ON batches.id = claims.batch JOIN owners ON owners.id = batches.owner WHERE key = ?",
                (bytes.fromhex(key),),
            ).fetchone()
        if row is None:
            return None
        number, tag, remote, owner, *process = row
        return OpenBatch(number, tag, remote, number in self._sending if owner == self._owner else lives(*process))

    def keys(self, batch: int) -> set[str]:
        """Those of a batch that have no outcome yet."""
        with self._database.reading() as database:
            return {row[0].hex() for row in database.execute("SELECT key FROM claims WHERE batch = ?", (batch,))}

    def settle(self, batch: int, outcomes: Iterable[BatchOutcome]) -> None:
        """Books outcomes, each once however many processes bring it."""
        with self._database.step() as database:
            for outcome in outcomes:
                _settle(database, batch, outcome)

    def close(self, batch: int) -> None:
        """Forgets a batch; claims it still has end and cost nothing."""
        self._sending.discard(batch)
        with self._database.step() as database:
            database.execute("DELETE FROM claims WHERE batch = ?", (batch,))
            database.execute("DELETE FROM batches WHERE id = ?", (batch,))


def _settle(database: sqlite3.Connection, batch: int, outcome: BatchOutcome) -> None:
    row = database.execute(
        "DELETE FROM claims WHERE key = ? AND batch = ? RETURNING account, judge, model, amount",
        (bytes.fromhex(outcome.key), batch),
    ).fetchone()
    if row is None:
        return
    booking, amount = Booking(*row[:3]), int(row[3])
    if outcome.raw is not None:
        cost = amount if outcome.cost is None else outcome.cost
        store(database, outcome.key, outcome.raw, booking, outcome.tokens or (0, 0), cost)
    else:
        unsettled = amount if outcome.billed and outcome.cost is None else 0
        note(database, outcome.key, booking, outcome.reason, outcome.detail, outcome.cost or 0, unsettled)
