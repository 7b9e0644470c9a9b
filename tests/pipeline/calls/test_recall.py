"""Looking back at paid calls: what was asked, answered and paid, without touching the ledger."""

import sqlite3
from pathlib import Path

import pytest

from pipeline.calls.accounts import Booking
from pipeline.calls.ledger import Ledger
from pipeline.calls.recall import recall
from pipeline.errors import JudgeError

WHO = Booking("run", "judge", "model")
RAW = '{"choices": [{"message": {"content": "[[7]]"}}], "usage": {"prompt_tokens": 12}}'


def key(number: int) -> str:
    return f"{number:064x}"


def test_an_answer_is_told_with_its_price_its_payer_and_the_tries_before_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for reason in ("timeout", "timeout", "server_error"):
        ledger.claim(key(1), WHO, 10, None)
        ledger.fail(key(1), reason, "detail", WHO)
    ledger.claim(key(1), WHO, 10, None)
    ledger.settle(key(1), RAW, WHO, (12, 3), 5_000_000)
    found = recall(tmp_path / "ledger.sqlite", [key(1), key(1), key(2)])
    assert list(found.calls) == [key(1)]
    call = found.calls[key(1)]
    assert (call.model, call.judge, call.account) == ("model", "judge", "run")
    assert (call.tokens_in, call.tokens_out, call.cost, call.text) == (12, 3, 0.005, "[[7]]")
    assert call.raw["usage"] == {"prompt_tokens": 12}
    assert call.tries == {"timeout": 2, "server_error": 1}
    assert found.unanswered == {}


def test_a_call_that_was_given_up_is_told_with_its_tries(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.claim(key(1), WHO, 10, None)
    ledger.fail(key(1), "bad_request", "no", WHO)
    found = recall(tmp_path / "ledger.sqlite", [key(1)])
    assert (dict(found.calls), found.unanswered) == ({}, {key(1): {"bad_request": 1}})


def test_no_ledger_is_made_by_looking(tmp_path: Path) -> None:
    assert recall(tmp_path / "ledger.sqlite", [key(1)]).calls == {}
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, and long enough to be read as the header of one" * 20)
    with pytest.raises(JudgeError, match="text"):
        recall(tmp_path / "text", [key(1)])
    sqlite3.connect(tmp_path / "other").execute("PRAGMA user_version = 99").close()
    with pytest.raises(JudgeError, match="format 99"):
        recall(tmp_path / "other", [key(1)])
