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

from judges.accounts import Booking, money

LONGEST_CLAIM = 2 * 24 * 3600.0
"""Seconds. Processes of another host cannot be looked at: a claim of theirs older than this is taken for dead."""
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
        "INSERT INTO owners (host, pid, started) VALUES (?, ?, ?) RETURNING id",
        (socket.gethostname(), me.pid, me.create_time()),
    ).fetchone()
    return int(row[0])


def sign_off(database: sqlite3.Connection, owner: int) -> None:
    """An owner that still has claims or batches stays, so that their end can be seen."""
    database.execute(
        "DELETE FROM owners WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM claims WHERE owner = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM batches WHERE owner = ?1)",
        (owner,),
    )


def bury_the_dead(database: sqlite3.Connection) -> None:
    """Ends the claims of processes that are gone. Their calls were in flight and may be billed: unsettled."""
    now, host = time.time(), socket.gethostname()
    for owner, its_host, pid, started in database.execute("SELECT id, host, pid, started FROM owners").fetchall():
        if its_host == host and lives(pid, started):
            continue
        made_before = now + 1.0 if its_host == host else now - LONGEST_CLAIM
        dead = "FROM claims WHERE owner = ? AND batch IS NULL AND at < ?"
        database.execute(
            "INSERT INTO attempts SELECT key, account, judge, model, 'killed', 'its process died', 0, amount, ?"
            f" {dead}",
            (now, owner, made_before),
        )
        database.execute(f"DELETE {dead}", (owner, made_before))
        if its_host == host:
            sign_off(database, owner)


def lives(pid: int, started: float) -> bool:
    """Whether the process that started then, and no later one with its number, is there. A zombie is not."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < CLOCK_ERROR and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
