"""A call through every fault a server has: what is answered is kept and never sent again, the rest fails by name."""

import asyncio
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.calls.client import Client, run
from pipeline.calls.estimate import size
from pipeline.calls.ledger import opened
from pipeline.calls.limits import Bucket, Waits
from pipeline.calls.request import Failure, Reply, Request
from pipeline.config import Endpoint
from pipeline.errors import JudgeError
from tests.api_server import ApiServer, completion

from .conftest import Connect

QUICK = Waits(back_off=0.001, longest_back_off=0.01, look_again=0.02)
Make = Callable[..., Client]


@pytest.fixture
def client(connect: Connect) -> Make:
    """Clients of a server on one ledger."""

    def make(server: ApiServer | str, budget: float | None = None, waits: Waits = QUICK, **more: Any) -> Client:
        address = server if isinstance(server, str) else server.base_url
        endpoint = Endpoint(**{"model": "m", "base_url": address, "timeout": 10.0} | more)
        return connect(endpoint, waits, budget)

    return make


def asked(server: ApiServer, text: str = "hello there", sample: int = 0, **body: Any) -> Request:
    return Request("m", server.base_url, ({"role": "user", "content": text},), {"max_tokens": 20} | body, sample)


def reasons(file: str) -> Counter[str]:
    rows = sqlite3.connect(file).execute("SELECT reason, count(*) FROM attempts GROUP BY reason").fetchall()
    return Counter(dict(rows))


async def everything(client: Client, requests: list[Request]) -> list[Reply | Failure]:
    return await asyncio.gather(*(client.ask(each) for each in requests))


async def to_the_end(client: Client, requests: list[Request]) -> list[Reply | Failure | BaseException]:
    """The same, but an error does not leave the other calls behind."""
    return await asyncio.gather(*(client.ask(each) for each in requests), return_exceptions=True)


# --------------------------------------------------------------------------------------------------- answers
def test_an_answer_is_asked_for_once_by_whoever_asks(client: Make) -> None:
    with ApiServer(lambda body: "fine") as server:
        first = run(client(server).ask(asked(server)))
        again = run(client(server).ask(asked(server)))
        assert isinstance(first, Reply) and first.text == "fine"
        assert again == first
        assert len(server.calls) == 1


def test_the_body_goes_out_as_it_is(client: Make) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "verdict"}}
    with ApiServer() as server:
        run(client(server).ask(asked(server, "é 漢 \ud800", response_format=schema, odd_field=[1, None])))
        assert server.calls[0].body == {
            "model": "m", "messages": [{"role": "user", "content": "é 漢 \ud800"}], "max_tokens": 20,
            "response_format": schema, "odd_field": [1, None],
        }  # fmt: skip


def test_another_sample_is_another_call(client: Make) -> None:
    with ApiServer() as server:
        run(everything(client(server), [asked(server, sample=number) for number in range(3)]))
        assert len(server.calls) == 3


def test_the_same_asked_many_times_at_once_is_one_call(client: Make) -> None:
    with ApiServer(latency=0.05) as server:
        answers = run(everything(client(server), [asked(server)] * 20))
        assert {type(each) for each in answers} == {Reply}
        assert len(server.calls) == 1


@pytest.mark.parametrize("fault", ["prose", "wrong_schema", "cut_content", "empty", "refusal", "no_usage"])
def test_bad_content_is_an_answer_and_stays_one(client: Make, file: str, fault: str) -> None:
    with ApiServer(script=[fault]) as server:
        first = run(client(server).ask(asked(server)))
        assert isinstance(first, Reply)
        assert run(client(server).ask(asked(server))) == first
        assert len(server.calls) == 1
        assert reasons(file) == {}


# ---------------------------------------------------------------------------------------------------- faults
TRANSIENT = {
    "rate_limited": "rate_limited", "server_error": "server_error", "overloaded": "server_error",
    "error_in_200": "server_error", "empty_choices": "no_choice", "cut_json": "bad_json", "not_json": "bad_json",
    "cut_body": "cut_off", "cut_connection": "cut_off", "timeout": "timeout",
}  # fmt: skip
SHORT = 1.5
"""Seconds; longer than a busy machine takes to answer."""


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_fault_is_tried_again_and_put_on_record(client: Make, file: str, fault: str) -> None:
    with ApiServer(lambda body: "fine", script=[fault, None]) as server:
        answer = run(client(server, timeout=SHORT if fault == "timeout" else 10.0).ask(asked(server)))
        assert isinstance(answer, Reply) and answer.text == "fine"
        assert reasons(file) == {TRANSIENT[fault]: 1}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_fault_that_stays_is_a_failure_by_name_and_no_answer(client: Make, file: str, fault: str) -> None:
    with ApiServer(script=[fault] * 3) as server:
        patient = client(server, timeout=SHORT if fault == "timeout" else 10.0, tries=3)
        failure = run(patient.ask(asked(server)))
        assert isinstance(failure, Failure)
        assert failure.reason == TRANSIENT[fault]
        assert len(server.calls) == 3
        assert opened(file).answer(failure.key) is None
        assert isinstance(run(patient.ask(asked(server))), Reply)  # the server has recovered


def test_a_request_the_server_cannot_take_is_not_sent_twice(client: Make) -> None:
    with ApiServer(script=["bad_request"]) as server:
        failure = run(client(server).ask(asked(server)))
        assert isinstance(failure, Failure)
        assert failure.reason == "bad_request"
        assert "Unsupported value: 'temperature'" in failure.detail
        assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [("insufficient_quota", "exceeded your current quota"), ("unauthorised", "Incorrect API key"),
     ("forbidden", "territory not supported"), ("no_such_model", "model does not exist")],
)  # fmt: skip
def test_what_no_call_can_get_past_stops_the_judge_in_the_servers_words(client: Make, fault: str, words: str) -> None:
    with ApiServer(faults={fault: 1.0}, latency=0.01) as server:
        judge = client(server, concurrency=2)
        with pytest.raises(JudgeError, match=words):
            run(everything(judge, [asked(server, str(number)) for number in range(50)]))
        with pytest.raises(JudgeError, match=words):
            run(judge.ask(asked(server, "one more")))
        assert len(server.calls) <= 3  # two on their way and one made ready


def test_once_it_has_worked_a_403_is_about_one_text(client: Make) -> None:
    with ApiServer(script=[None, "forbidden", None]) as server:
        judge = client(server)
        answers = [run(judge.ask(asked(server, text))) for text in ("a", "b", "c")]
        assert [type(each) for each in answers] == [Reply, Failure, Reply]


def test_a_server_that_was_never_there_stops_the_judge(client: Make) -> None:
    with ApiServer() as gone:
        pass
    with pytest.raises(JudgeError, match="cannot be reached"):
        run(client(gone.base_url, tries=2).ask(asked(gone)))


def test_a_server_that_goes_away_fails_its_calls(client: Make) -> None:
    with ApiServer() as server:
        judge = client(server, tries=2)
        run(judge.ask(asked(server, "a")))
    failure = run(judge.ask(asked(server, "b")))
    assert isinstance(failure, Failure)
    assert failure.reason == "no_connection"


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_nothing_is_sent_before_the_server_said(client: Make, form: str) -> None:
    with ApiServer(script=["rate_limited"], latency=0.01) as server:
        requests = [asked(server, str(number)) for number in range(10)]
        judge = client(server, concurrency=1)
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)  # a date has whole seconds
        there = time.monotonic() + (until - datetime.now(UTC)).total_seconds()
        server.retry_after = "1.0" if form == "seconds" else format_datetime(until, usegmt=True)
        assert {type(each) for each in run(everything(judge, requests))} == {Reply}
        first, *others = [call.at for call in server.calls]
        assert min(others) >= (first + 1.0 if form == "seconds" else there) - 0.01


def test_a_storm_of_429_ends_with_every_call_answered(client: Make, file: str) -> None:
    """A server that takes four at once and refuses all others, asked by thirty-two."""
    server = ApiServer(latency=0.01)
    server.next_fault = lambda: "rate_limited" if server.busy > 4 else None  # type: ignore[method-assign]
    server.retry_after = None
    with server:
        waits = Waits(back_off=0.02, longest_back_off=0.1)
        judge = client(server, concurrency=32, waits=waits)
        answers = run(everything(judge, [asked(server, str(number)) for number in range(400)]))
    assert Counter(type(each) for each in answers) == {Reply: 400}
    assert reasons(file)["rate_limited"] > 0


def test_all_faults_together_leave_nobody_without_an_outcome(client: Make, file: str) -> None:
    faults = dict.fromkeys(["rate_limited", "server_error", "cut_json", "cut_connection", "empty_choices"], 0.08)
    with ApiServer(lambda body: body["messages"][0]["content"], faults=faults) as server:
        judge = client(server, tries=3)
        answers = run(everything(judge, [asked(server, str(number)) for number in range(300)]))
        for number, each in enumerate(answers):
            assert each.text == str(number) if isinstance(each, Reply) else each.reason in TRANSIENT.values()
        arrived = Counter(call.body["messages"][0]["content"] for call in server.answered)
        assert set(arrived.values()) == {1}
        assert len(server.calls) == 300 - sum(isinstance(each, Failure) for each in answers) + sum(
            reasons(file).values()
        )


@pytest.mark.parametrize(
    "odd",
    [{"usage": {"prompt_tokens": 10**30, "completion_tokens": 1}}, {"usage": {"prompt_tokens": True}}, {"usage": [1]},
     {"choices": [None]}, {"choices": [{"message": None}]}, {"choices": {"0": 1}}, {"error": {"message": "\ud800"}},
     {"error": "no"}, {"error": {"message": None, "code": {}}}],
)  # fmt: skip
def test_no_envelope_is_too_odd(client: Make, odd: dict[str, Any]) -> None:
    with ApiServer(lambda body: {**completion(body, "fine"), **odd}) as server:
        outcome = run(client(server, budget=1.0, tries=2, **PRICES).ask(asked(server)))
        assert isinstance(outcome, Reply) if "usage" in odd else outcome.reason in ("no_choice", "server_error")


# ------------------------------------------------------------------------------------------------------ money
PRICES = {"price_in": 100.0, "price_out": 1000.0}


def test_usage_is_paid_and_worst_cases_are_given_back(client: Make, file: str) -> None:
    with ApiServer(lambda body: "two words") as server:
        run(client(server, budget=1.0, **PRICES).ask(asked(server, "three more words")))
    balance = opened(file).balance("run")
    assert (balance.spent, balance.unsettled, balance.reserved) == (pytest.approx((3 * 100 + 2 * 1000) / 1e6), 0.0, 0.0)


def billed(server: ApiServer) -> float:
    """By the provider's own count, faults that cost it work included."""
    free = {"rate_limited", "server_error", "overloaded"}
    calls = [completion(call.body, "[[A]]")["usage"] for call in server.calls if call.fault not in free]
    return sum(call["prompt_tokens"] * 100 + call["completion_tokens"] * 1000 for call in calls) / 1e6


@pytest.mark.parametrize(
    "faults", [{}, {"cut_json": 0.2, "cut_connection": 0.2, "server_error": 0.2}], ids=["calm", "rough"]
)
def test_a_budget_is_never_passed_and_what_was_answered_is_kept(
    client: Make, file: str, faults: dict[str, float]
) -> None:
    budget = 0.5
    with ApiServer(faults=faults, latency=0.002) as server:
        requests = [asked(server, f"{number} words") for number in range(1000)]
        ends = run(to_the_end(client(server, budget=budget, concurrency=32, **PRICES), requests))
        errors = [each for each in ends if isinstance(each, BaseException)]
        assert errors and {type(each) for each in errors} == {JudgeError}
        told = r"budget reached: 'run' has spent .* of 0.5.*limits.budget"
        assert all(re.search(told, str(each)) for each in errors)
        ledger = opened(file)
        balance = ledger.balance("run")
        assert balance.spent + balance.unsettled <= budget
        assert balance.reserved == 0.0
        assert billed(server) <= budget
        answered = ledger.answered(each.key for each in requests)
        assert len(answered) == len(server.answered) > 0
        if not faults:  # less than a worst case is left
            assert budget - balance.spent < 0.05
        with pytest.raises(JudgeError, match="budget reached"):
            run(client(server, budget=budget, **PRICES).ask(asked(server, "one more")))
        assert isinstance(run(client(server, budget=budget + 1.0, **PRICES).ask(asked(server, "one more"))), Reply)


def test_a_budget_needs_prices_and_a_limit_on_replies(client: Make) -> None:
    with ApiServer() as server:
        with pytest.raises(JudgeError, match="no prices"):
            client(server, budget=1.0)
        with pytest.raises(JudgeError, match="max_tokens"):
            run(client(server, budget=1.0, **PRICES).ask(asked(server, max_tokens=None)))
        free = client(server, budget=0.0, price_in=0.0, price_out=0.0)
        assert isinstance(run(free.ask(asked(server))), Reply)


def test_a_call_of_unknown_outcome_counts_at_its_worst(client: Make, file: str) -> None:
    with ApiServer(script=["timeout", "cut_json", "server_error"]) as server:
        run(client(server, budget=1.0, timeout=SHORT, **PRICES).ask(asked(server)))
    (use,) = opened(file).uses("run")
    assert use.failures == {"timeout": 1, "bad_json": 1, "server_error": 1}
    costs = dict(sqlite3.connect(file).execute("SELECT reason, unsettled FROM attempts").fetchall())
    assert costs["timeout"] == costs["bad_json"] > 0 == costs["server_error"]


# ------------------------------------------------------------------------------------------------------- keys
def test_a_key_is_needed_abroad_and_not_at_home(client: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(JudgeError, match="'OPENAI_API_KEY' is empty"):
        client("https://api.example.org/v1")
    for address in ("http://localhost:1/v1", "http://192.168.3.4/v1", "http://[::1]:8000/v1", "http://vllm:8000/v1"):
        client(address)


def test_openais_key_is_not_shown_to_local_servers_but_a_named_one_is(
    client: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("HOME_KEY", "sk-home")
    with ApiServer() as server:
        run(client(server).ask(asked(server, "a")))
        run(client(server, api_key_env="HOME_KEY").ask(asked(server, "b")))
        assert [call.headers["authorization"] for call in server.calls] == ["Bearer none", "Bearer sk-home"]


def test_a_key_the_server_repeats_is_in_no_error_and_not_in_the_ledger(
    client: Make, file: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME_KEY", "sk-very-secret")
    monkeypatch.setitem(
        __import__("tests.api_server", fromlist=["REFUSED"]).REFUSED, "unauthorised",
        (401, "invalid_api_key", "Incorrect API key provided: sk-very-secret"),
    )  # fmt: skip
    caplog.set_level("DEBUG")
    with ApiServer(script=["unauthorised"]) as server, pytest.raises(JudgeError, match=r"provided: \[key\]") as caught:
        run(client(server, api_key_env="HOME_KEY").ask(asked(server)))
    assert "very-secret" not in str(caught.value) + caplog.text
    assert not any(b"very-secret" in part.read_bytes() for part in Path(file).parent.iterdir())


# -------------------------------------------------------------------------------------- stopping and sharing
def test_an_interrupted_call_is_booked_and_can_be_asked_again(client: Make, file: str) -> None:
    with ApiServer(script=["timeout"]) as server:
        judge = client(server, budget=1.0, timeout=60.0, **PRICES)

        async def interrupted() -> None:
            task = asyncio.ensure_future(judge.ask(asked(server)))
            waiting = asyncio.ensure_future(judge.ask(asked(server)))
            while not server.calls:
                await asyncio.sleep(0.01)
            task.cancel()
            assert isinstance(await waiting, Reply)  # the one that waited takes over

        run(interrupted())
        assert reasons(file) == {"cancelled": 1}
        assert opened(file).balance("run").reserved == 0.0
        assert opened(file).balance("run").unsettled > 0.0


def test_run_serves_several_threads_at_once(client: Make) -> None:
    with ApiServer(lambda body: body["messages"][0]["content"]) as server:
        server.gate = lambda: len(server.calls) == 8  # all at once, or never
        judge, answers = client(server), dict[int, Any]()

        def one(number: int) -> None:
            answers[number] = run(judge.ask(asked(server, str(number))))

        threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {number: answer.text for number, answer in answers.items()} == {n: str(n) for n in range(8)}


def test_no_more_calls_at_once_than_the_endpoint_allows(client: Make) -> None:
    with ApiServer(latency=0.01) as server:
        server.gate = lambda: len(server.calls) >= 7
        run(everything(client(server, concurrency=7), [asked(server, str(number)) for number in range(60)]))
        assert server.most_busy == 7


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute"])
def test_requests_and_tokens_a_minute_are_kept(client: Make, limit: str) -> None:
    """Twenty calls a second: none arrives before the time by which the rate allows it, however slow the rest is."""
    with ApiServer() as server:
        requests = [asked(server, f"{number:02d}") for number in range(40)]
        extent = size(requests[0])
        each = 1 if limit == "requests_per_minute" else extent.prompt + (extent.most_reply or 0)
        judge = client(server, **{limit: 20 * 60 * each})
        begin = time.monotonic()  # the server's clock too
        run(everything(judge, requests))
        assert len(server.calls) == 40
        for number, at in enumerate(sorted(call.at for call in server.calls)):
            assert at - begin >= number / 20 - Bucket(20.0).burst - 0.01
