"""Whose call it is to make: a key is claimed, with the money it may cost, before anything is sent.

One statement, so one transaction, checks that the account's money and the call's worst case stay within the budget, and
makes the key its owner's. An owner is a process; a claim outlives it only until somebody opens the ledger or wants the
key, and is never taken from a process that lives. A batch's claims stay until the batch has ended.
"""

import socket
import sqlite3
import time
from enum import Enum

import psutil

from pipeline.calls.accounts import Booking, money

SILENCE = 15 * 60.0
"""Seconds. Processes of another host, or container, cannot be looked at: one that has not shown itself for so long is
taken for dead."""
CLOCK_ERROR = 2.0
"""Seconds by which the start time of one process may seem to differ: it is computed from the clock, which is set."""
CLAIM = """
INSERT INTO claims SELECT :key, :owner, :batch, :account, :judge, :model, :amount, :at
WHERE NOT EXISTS (SELECT 1 FROM answers WHERE key = :key)
  AND (:budget IS NULL OR :amount = 0
       OR (SELECT spent + unsettled + reserved FROM accounts WHERE name = :account) + :amount <= :budget)
ON CONFLICT DO NOTHING
"""


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


def claim(
    database: sqlite3.Connection, key: str, owner: int, booking: Booking, amount: int, budget: int | None,
    batch: int | None = None,
) -> Grant:  # fmt: skip
    """Makes ``key`` the owner's and reserves ``amount`` billionths of an account that exists."""
    values = {
        "key": bytes.fromhex(key), "owner": owner, "batch": batch, "account": booking.account, "judge": booking.judge,
        "model": booking.model, "amount": amount, "at": time.time(), "budget": budget,
    }  # fmt: skip
    if database.execute(CLAIM, values).rowcount == 1:
        return Grant.YOURS
    if database.execute("SELECT 1 FROM answers WHERE key = :key", values).fetchone():
        return Grant.ANSWERED
    if database.execute("SELECT 1 FROM claims WHERE key = :key", values).fetchone():
        return Grant.ELSEWHERE
    spent, unsettled, _ = money(database, booking.account)
    return Grant.NEVER if budget is not None and spent + unsettled + amount > budget else Grant.LATER


def release(database: sqlite3.Connection, key: str, owner: int) -> int:
    """Ends the owner's own claim; what it had reserved."""
    row = database.execute(
        "DELETE FROM claims WHERE key = ? AND owner = ? AND batch IS NULL RETURNING amount", (bytes.fromhex(key), owner)
    ).fetchone()
    return 0 if row is None else int(row[0])


def register(database: sqlite3.Connection) -> int:
    """This process as an owner."""
    me = psutil.Process()
    row = database.execute(
        "INSERT INTO owners (host, pid, started, seen) VALUES (?, ?, ?, ?) RETURNING id",
        (socket.gethostname(), me.pid, me.create_time(), time.time()),
    ).fetchone()
    return int(row[0])


def show(database: sqlite3.Connection, owner: int) -> None:
    """A sign of life, for other hosts."""
    database.execute("UPDATE owners SET seen = ? WHERE id = ?", (time.time(), owner))


def sign_off(database: sqlite3.Connection, owner: int) -> None:
    """An owner that still has claims or batches stays, so that their end can be seen."""
    database.execute(
        "DELETE FROM owners WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM claims WHERE owner = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM batches WHERE owner = ?1)",
        (owner,),
    )


def bury_the_dead(database: sqlite3.Connection) -> None:
    """Ends the claims of processes that are gone. Their calls were in flight and may be billed: unsettled."""
    now = time.time()
    for owner, *process in database.execute("SELECT id, host, pid, started, seen FROM owners").fetchall():
        if lives(*process):
            continue
        dead = " FROM claims WHERE owner = ? AND batch IS NULL"
        database.execute(
            "INSERT INTO attempts SELECT key, account, judge, model, 'killed', 'its process died', 0, amount, ?" + dead,
            (now, owner),
        )
        database.execute(f"DELETE{dead}", (owner,))
        sign_off(database, owner)


def lives(host: str, pid: int, started: float, seen: float) -> bool:
    """Whether the process that started then, and no later one with its number, is there. A zombie is not."""
    if host != socket.gethostname():
        return time.time() < seen + SILENCE
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < CLOCK_ERROR and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
