"""Who has spent what: an account's money, and what each judge had of each model.

Money is whole billionths, so that sums are exact. ``spent`` is usage the provider reported; ``unsettled`` is the worst
case of calls of which nobody knows whether they are billed: timed out, cut off, in flight when their process was
killed; ``reserved`` is the worst case of calls in flight.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.errors import JudgeError

BILLIONTHS = 10**9


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


def open_account(database: sqlite3.Connection, name: str) -> None:
    """Before anything is booked to it: the database's triggers change accounts, and make none."""
    database.execute("INSERT OR IGNORE INTO accounts (name) VALUES (?)", (name,))


def money(database: sqlite3.Connection, account: str) -> tuple[int, int, int]:
    """Spent, unsettled, reserved; in billionths."""
    find = "SELECT spent, unsettled, reserved FROM accounts WHERE name = ?"
    return database.execute(find, (account,)).fetchone() or (0, 0, 0)


def balance(database: sqlite3.Connection, account: str) -> Balance:
    return Balance(*(amount / BILLIONTHS for amount in money(database, account)))


def uses(database: sqlite3.Connection, account: str | None) -> list[Use]:
    """By judge and model; of one account, or of all."""
    cells: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    failures: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    whose, values = "WHERE account = :account OR :account IS NULL GROUP BY judge, model", {"account": account}
    for judge, model, calls, read, written, cost in database.execute(
        f"SELECT judge, model, count(*), sum(tokens_in), sum(tokens_out), sum(spent) FROM answers {whose}", values
    ):
        cells[judge, model] += Counter(calls=calls, tokens_in=read, tokens_out=written, cost=cost)
    for judge, model, calls in database.execute(f"SELECT judge, model, sum(calls) FROM hits {whose}", values):
        cells[judge, model]["cached"] += calls
    for judge, model, reason, calls, cost in database.execute(
        f"SELECT judge, model, reason, count(*), sum(spent + unsettled) FROM attempts {whose}, reason", values
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


def budget_reached(now: Balance, account: str, budget: int, most: int) -> JudgeError:
    """What to say where ``budget`` does not hold a call of at most ``most`` (both in billionths)."""
    return JudgeError(
        f"budget reached: {account!r} has spent {now.spent:.6g}, calls of unknown outcome hold {now.unsettled:.6g} and"
        f" calls in flight {now.reserved:.6g} of {budget / BILLIONTHS:g}, and the next may cost"
        f" {most / BILLIONTHS:.6g}; all answers are kept: raise limits.budget and run again to go on"
    )
