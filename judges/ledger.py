"""What was asked and answered: SQLite, one row an answer."""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Ledger:
    def __init__(self, file: str) -> None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, raw TEXT) WITHOUT ROWID")

    def answer(self, key: str) -> dict[str, Any] | None:
        row = self._database.execute("SELECT raw FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def store(self, key: str, raw: Mapping[str, Any]) -> None:
        self._database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, json.dumps(raw)))
