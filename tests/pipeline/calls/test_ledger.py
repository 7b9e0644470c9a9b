"""Answers are kept once, money adds up, claims end with their process and not before."""

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.calls.accounts import Balance, Booking
from pipeline.calls.claims import Grant
from pipeline.calls.ledger import Ledger, opened
from pipeline.calls.open_batches import BatchOutcome
from pipeline.errors import JudgeError

ROOT = Path(__file__).resolve().parents[3]
WHO = Booking("run", "judge", "model")
MONEY = 10**9


def key(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "ledger.sqlite"


def sums(file: Path) -> tuple[int, int]:
    """What all accounts have reserved, and what all claims hold."""
    database = sqlite3.connect(file)
    (reserved,) = database.execute("SELECT coalesce(sum(reserved), 0) FROM accounts").fetchone()
    (held,) = database.execute("SELECT coalesce(sum(amount), 0) FROM claims").fetchone()
    return reserved, held


def test_an_answer_is_kept_as_it_came_and_the_first_stays(file: Path) -> None:
    ledger = Ledger(file)
    raw = '{"choices": [ ],  "odd":"\\u00e9"}'
    assert ledger.claim(key(1), WHO, 0, None) is Grant.YOURS
    ledger.settle(key(1), raw, WHO, (10, 5), 0)
    ledger.settle(key(1), "{}", WHO, (10, 5), 0)
    assert ledger.answer(key(1)) == raw
    assert ledger.answer(key(2)) is None
    assert ledger.answered([key(1), key(2)]) == {key(1)}
    assert Ledger(file).answer(key(1)) == raw


def test_a_failure_is_no_answer_but_is_on_record(file: Path) -> None:
    ledger = Ledger(file)
    ledger.claim(key(1), WHO, 7, None)
    ledger.fail(key(1), "timeout", "none in 1 s", WHO, unknown=True)
    assert ledger.answer(key(1)) is None
    assert ledger.claim(key(1), WHO, 7, None) is Grant.YOURS
    rows = sqlite3.connect(file).execute("SELECT reason, detail, unsettled FROM attempts").fetchall()
    assert rows == [("timeout", "none in 1 s", 7)]


def test_only_one_gets_a_key_until_it_is_through(file: Path) -> None:
    one, two = Ledger(file), Ledger(file)
    assert one.claim(key(1), WHO, 5, None) is Grant.YOURS
    assert two.claim(key(1), WHO, 5, None) is Grant.ELSEWHERE
    one.settle(key(1), "{}", WHO, (1, 1), 5)
    assert two.claim(key(1), WHO, 5, None) is Grant.ANSWERED
    one.claim(key(2), WHO, 5, None)
    one.fail(key(2), "server_error", "", WHO)
    assert two.claim(key(2), WHO, 5, None) is Grant.YOURS


def test_a_stranger_cannot_end_a_claim(file: Path) -> None:
    one, two = Ledger(file), Ledger(file)
    one.claim(key(1), WHO, 5, None)
    two.fail(key(1), "timeout", "", WHO, unknown=True)
    assert two.claim(key(1), WHO, 5, None) is Grant.ELSEWHERE
    assert sums(file) == (5, 5)


def test_a_budget_is_not_passed_and_what_others_leave_is_used(file: Path) -> None:
    ledger = Ledger(file)
    assert ledger.claim(key(1), WHO, 60, 100) is Grant.YOURS
    assert ledger.claim(key(2), WHO, 60, 100) is Grant.LATER
    assert ledger.claim(key(2), WHO, 101, 100) is Grant.NEVER
    ledger.settle(key(1), "{}", WHO, (1, 1), 40)
    assert ledger.claim(key(2), WHO, 60, 100) is Grant.YOURS
    ledger.fail(key(2), "timeout", "", WHO, unknown=True)  # it may be billed
    assert ledger.claim(key(3), WHO, 1, 100) is Grant.NEVER
    assert ledger.claim(key(3), WHO, 1, 101) is Grant.YOURS
    assert ledger.claim(key(4), Booking("another run", "", "m"), 100, 100) is Grant.YOURS
    assert ledger.balance("run") == Balance(40 / MONEY, 60 / MONEY, 1 / MONEY)
    assert ledger.balance("nobody") == Balance(0.0, 0.0, 0.0)
    message = str(ledger.budget_reached("run", 101, 5))
    assert all(part in message for part in ("4e-08", "6e-08", "1e-09", "1.01e-07", "limits.budget"))


ACTIONS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["claim", "settle", "fail", "lose"]), st.integers(0, 60)), max_size=40
)


@settings(max_examples=60)
@given(ACTIONS)
def test_whatever_happens_money_adds_up_and_stays_within_the_budget(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[int, str, int]]
) -> None:
    file = tmp_path_factory.mktemp("ledger") / "l.sqlite"
    ledger, budget, claimed, costs, lost = Ledger(file), 100, dict[int, int](), 0, 0
    for number, action, amount in actions:
        if action == "claim":
            if ledger.claim(key(number), WHO, amount, budget) is Grant.YOURS:
                claimed[number] = amount
        elif number in claimed:
            most = claimed.pop(number)
            if action == "settle":
                costs += min(amount, most)
                ledger.settle(key(number), "{}", WHO, (1, 1), min(amount, most))
            else:
                lost += most * (action == "lose")
                ledger.fail(key(number), "why", "", WHO, unknown=action == "lose")
        balance = [round(part * MONEY) for part in (ledger.balance("run").spent, ledger.balance("run").unsettled)]
        assert balance == [costs, lost]
        assert sums(file) == (sum(claimed.values()),) * 2
        assert costs + lost + sum(claimed.values()) <= budget
    ledger.close()


def test_uses_count_calls_tokens_money_and_failures_by_reason(file: Path) -> None:
    ledger = Ledger(file)
    for number in range(3):
        ledger.claim(key(number), WHO, 100, None)
        ledger.settle(key(number), "{}", WHO, (10, 2), 50)
    ledger.claim(key(9), WHO, 100, None)
    ledger.fail(key(9), "timeout", "", WHO, unknown=True)
    ledger.fail(key(9), "bad_json", "", WHO, spent=7)
    ledger.fail(key(9), "timeout", "", Booking("other run", "judge", "model"))
    ledger.hit(WHO)
    (use,) = ledger.uses("run")
    assert (use.judge, use.model, use.calls, use.cached, use.tokens_in, use.tokens_out) == (
        "judge",
        "model",
        3,
        1,
        30,
        6,
    )
    assert use.cost == pytest.approx((150 + 100 + 7) / MONEY)
    assert use.failures == {"timeout": 1, "bad_json": 1}
    (all_together,) = Ledger(file).uses()
    assert all_together.failures == {"timeout": 2, "bad_json": 1}
    assert all_together.cached == 1


# ------------------------------------------------------------------------------------------- other processes
CLAIM = """
import sys, time
from pathlib import Path
from pipeline.calls.accounts import Booking
from pipeline.calls.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
print(ledger.claim(sys.argv[2], Booking("run", "judge", "model"), 30, 100).value, flush=True)
time.sleep(60)
"""


@pytest.fixture
def claimer(file: Path) -> Callable[[str], "subprocess.Popen[str]"]:
    def start(name: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", CLAIM, str(file), name]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "yours\n"
        return process

    return start


def test_a_claim_lives_as_long_as_its_process(file: Path, claimer: Callable[[str], "subprocess.Popen[str]"]) -> None:
    process = claimer(key(1))
    try:
        ledger = Ledger(file)
        os.kill(process.pid, signal.SIGSTOP)  # slow is not dead
        assert Ledger(file).claim(key(1), WHO, 1, None) is Grant.ELSEWHERE
        assert ledger.balance("run").reserved == 30 / MONEY
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        next_start = Ledger(file)
        assert next_start.balance("run") == Balance(0.0, 30 / MONEY, 0.0)  # it was in flight: the provider may bill it
        assert next_start.claim(key(1), WHO, 70, 100) is Grant.YOURS
        (use,) = next_start.uses("run")
        assert use.failures == {"killed": 1}
    finally:
        process.kill()
        process.communicate()


def test_another_process_with_the_same_number_is_not_the_owner(file: Path) -> None:
    dead = Ledger(file)
    dead.claim(key(1), WHO, 5, None)
    with sqlite3.connect(file) as database:
        database.execute("UPDATE owners SET started = started - 100")
    assert Ledger(file).claim(key(1), WHO, 5, None) is Grant.YOURS


def test_a_process_of_another_host_is_dead_when_it_has_been_silent(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.calls.ledger.SIGNS", 0.0)
    monkeypatch.setattr("pipeline.calls.ledger.BURIALS", 0.0)
    far = Ledger(file)
    far.claim(key(1), WHO, 5, None)
    with sqlite3.connect(file) as database:
        database.execute("UPDATE owners SET host = 'elsewhere', pid = 1, seen = seen - 3600")
    far.bury_the_dead()  # where it runs, it shows itself
    assert Ledger(file).claim(key(1), WHO, 5, None) is Grant.ELSEWHERE
    with sqlite3.connect(file) as database:
        database.execute("UPDATE owners SET seen = seen - 3600 WHERE host = 'elsewhere'")
    assert Ledger(file).claim(key(1), WHO, 5, None) is Grant.YOURS


RACE = """
import sys
from pathlib import Path
from pipeline.calls.accounts import Booking
from pipeline.calls.claims import Grant
from pipeline.calls.ledger import Ledger
ledger, who, mine = Ledger(Path(sys.argv[1])), Booking("run", "judge", "model"), 0
for number in range(200):
    name = f"{number:064x}"
    if ledger.claim(name, who, 3, 1000) is Grant.YOURS:
        mine += 1
        ledger.settle(name, "{}", who, (1, 1), 2)
print(mine)
"""


def test_processes_that_race_for_keys_pay_each_once(file: Path) -> None:
    command = [sys.executable, "-c", RACE, str(file)]
    racers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    mine = [int(racer.communicate()[0]) for racer in racers]
    ledger = Ledger(file)
    assert sum(mine) == 200 == len(ledger.answered(key(number) for number in range(200)))
    assert ledger.balance("run") == Balance(400 / MONEY, 0.0, 0.0)


# ---------------------------------------------------------------------------------------------------- batches
def test_a_batch_and_its_claims_outlive_their_process(file: Path) -> None:
    first = Ledger(file)
    batch, grants = first.batches.open("place", "tag", {key(1): 10, key(2): 10, key(3): 90}, WHO, 100)
    assert grants == {key(1): Grant.YOURS, key(2): Grant.YOURS, key(3): Grant.LATER}
    first.batches.sent(batch.id, "batch_7")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE owners SET started = started - 100")
    later = Ledger(file)
    found = later.batches.of(key(1))
    assert found is not None and (found.id, found.remote, found.owner_lives) == (batch.id, "batch_7", False)
    assert later.batches.of(key(3)) is None
    assert later.claim(key(1), WHO, 1, None) is Grant.ELSEWHERE
    outcomes = [BatchOutcome(key(1), "{}", (1, 1), 4), BatchOutcome(key(2), None, None, None, "cut", "", billed=True)]
    for ledger in (later, first):  # both bring them
        ledger.batches.settle(batch.id, outcomes)
        ledger.batches.close(batch.id)
    assert later.balance("run") == Balance(4 / MONEY, 10 / MONEY, 0.0)
    assert later.batches.of(key(1)) is None


# ------------------------------------------------------------------------------------------------------ files
def test_a_file_that_is_no_ledger_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database\n" * 100)
    with pytest.raises(JudgeError, match="notes.txt.*not a database"):
        Ledger(tmp_path / "notes.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(JudgeError, match="file/l.sqlite"):
        Ledger(tmp_path / "file" / "l.sqlite")


def test_a_ledger_of_another_format_is_refused(file: Path) -> None:
    Ledger(file).close()
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(JudgeError, match="format 9; allowed: 1"):
        Ledger(file)


def test_one_process_has_one_ledger_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert opened("l.sqlite") is opened(str(tmp_path / "x" / ".." / "l.sqlite"))


def test_the_log_is_moved_into_the_file_as_it_grows(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.calls.database.CHECKPOINT_AFTER", 20)
    ledger = Ledger(file)
    until = time.monotonic() + 30.0
    for number in itertools.count():
        ledger.claim(key(number), WHO, 0, None)
        ledger.settle(key(number), json.dumps("x" * 4000), WHO, (1, 1), 0)
        if file.stat().st_size > 100 * 4000:
            break
        assert time.monotonic() < until, "no checkpoint"
