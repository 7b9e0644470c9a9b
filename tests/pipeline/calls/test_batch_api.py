"""Batches: one file, half the price, and whatever dies, nothing is paid twice."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.calls.batch_file import MOST_LINES, of_line, portions
from pipeline.calls.client import Client, run
from pipeline.calls.ledger import opened
from pipeline.calls.limits import Waits
from pipeline.calls.request import Failure, Reply, Request
from pipeline.config import Endpoint
from pipeline.errors import JudgeError
from tests.api_server import ApiServer

from .conftest import Connect

ROOT = Path(__file__).resolve().parents[3]
QUICK = Waits(back_off=0.001, longest_back_off=0.01, look_again=0.02, gather=0.05, poll=0.02)
PRICES = {"price_in": 100.0, "price_out": 1000.0}
Make = Callable[..., Client]


@pytest.fixture
def client(connect: Connect) -> Make:
    def make(server: ApiServer, budget: float | None = None, **more: Any) -> Client:
        endpoint = Endpoint(**{"model": "m", "base_url": server.base_url, "batch": True, "timeout": 5.0} | more)
        return connect(endpoint, QUICK, budget)

    return make


def requests(server: ApiServer, count: int) -> list[Request]:
    return [
        Request("m", server.base_url, ({"role": "user", "content": f"number {each}"},), {"max_tokens": 20})
        for each in range(count)
    ]


async def everything(client: Client, asked: list[Request]) -> list[Reply | Failure]:
    return await asyncio.gather(*(client.ask(each) for each in asked))


async def to_the_end(client: Client, asked: list[Request]) -> list[Reply | Failure | BaseException]:
    """The same, but an error does not leave the other calls behind."""
    return await asyncio.gather(*(client.ask(each) for each in asked), return_exceptions=True)


def kinds(answers: list[Reply | Failure]) -> dict[str, int]:
    return dict(Counter("answered" if isinstance(each, Reply) else each.reason for each in answers))


def sent_once(server: ApiServer) -> bool:
    """Whether no request that was answered was ever sent again."""
    return set(Counter(call.body["messages"][0]["content"] for call in server.answered).values()) == {1}


def test_what_is_asked_together_is_one_batch_at_half_the_price(client: Make, file: str) -> None:
    with ApiServer(lambda body: body["messages"][0]["content"]) as server:
        answers = run(everything(client(server, **PRICES), requests(server, 20)))
        assert [each.text for each in answers if isinstance(each, Reply)] == [f"number {each}" for each in range(20)]
        assert len(server.batches) == 1
        assert opened(file).balance("run").spent == pytest.approx(20 * (2 * 100 + 2 * 1000) / 1e6 / 2)
        assert opened(file).balance("run").reserved == 0.0
        run(everything(client(server, **PRICES), requests(server, 20)))
        assert len(server.calls) == 20


def test_a_batch_speaks_the_key_and_the_whole_body(client: Make) -> None:
    with ApiServer() as server:
        (asked,) = requests(server, 1)
        run(client(server).ask(asked))
        line = json.loads(server.files["file_0"])
        body = {"model": "m", "messages": list(asked.messages), "max_tokens": 20}
        assert line == {"custom_id": asked.key, "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.mark.parametrize("fault", ["expired", "failed", "create_cut", "create_refused", "cut_file"])
def test_a_batch_that_goes_wrong_is_mended_and_nothing_is_paid_twice(client: Make, fault: str) -> None:
    with ApiServer(batch_script=[fault]) as server:
        answers = run(everything(client(server), requests(server, 10)))
        assert kinds(answers) == {"answered": 10}
        assert sent_once(server)
        assert len(server.batches) == {"expired": 2, "failed": 2}.get(fault, 1)


def test_lines_that_fail_are_asked_again_within_the_tries(client: Make) -> None:
    with ApiServer(script=["server_error", "cut_json", "bad_request", "empty_choices", None, "refusal"]) as server:
        answers = run(everything(client(server), requests(server, 6)))
        assert kinds(answers) == {"answered": 5, "bad_request": 1}
        assert sent_once(server)
    with ApiServer(faults={"server_error": 1.0}) as server:
        assert kinds(run(everything(client(server, tries=2), requests(server, 3)))) == {"server_error": 3}
        assert len(server.calls) == 6


def test_a_batch_without_quota_stops_the_judge(client: Make) -> None:
    with ApiServer(faults={"insufficient_quota": 1.0}) as server, pytest.raises(JudgeError, match="current quota"):
        run(everything(client(server), requests(server, 3)))


def test_a_provider_without_a_batch_api_stops_the_judge(client: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with ApiServer() as server, pytest.raises(JudgeError, match="Batch API.*404"):
        run(client(server, base_url=server.base_url.replace("/v1", "/v2")).ask(requests(server, 1)[0]))


def test_batches_stay_within_the_budget_and_use_what_comes_back(client: Make, file: str) -> None:
    with ApiServer() as server:
        ends = run(to_the_end(client(server, budget=0.1, **PRICES), requests(server, 200)))
        errors = [each for each in ends if isinstance(each, BaseException)]
        assert errors and all(isinstance(each, JudgeError) and "budget reached" in str(each) for each in errors)
        balance = opened(file).balance("run")
        assert balance.spent + balance.unsettled + balance.reserved <= 0.1
        assert len(opened(file).answered(each.key for each in requests(server, 200))) == len(server.calls) > 20
        assert len(server.batches) > 1  # what worst cases had held was used for more


RUN = """
import asyncio, sys
from pipeline.calls.client import Client, run
from pipeline.calls.limits import Waits
from pipeline.calls.request import Desk, Request
from pipeline.config import Endpoint
file, url, pause = sys.argv[1:]
waits = Waits(back_off=0.001, longest_back_off=0.01, look_again=0.02, gather=0.05, poll=0.02)
client = Client(Endpoint(model="m", base_url=url, batch=True), Desk(file, "run"), "judge", waits)
ask = [Request("m", url, ({"role": "user", "content": f"number {n}"},), {"max_tokens": 20}) for n in range(10)]
if pause == "before_id":
    client._ledger.batches.sent = lambda *_: (print("now", flush=True), __import__("time").sleep(60))
async def main():
    done = asyncio.gather(*(client.ask(each) for each in ask))
    while pause == "polling" and not client._ledger._database._connection.execute(
        "SELECT 1 FROM batches WHERE remote IS NOT NULL").fetchone():
        await asyncio.sleep(0.01)
    if pause == "polling":
        print("now", flush=True)
    print(*(reply.text for reply in await done), flush=True)
run(main())
"""


@pytest.mark.parametrize(("moment", "batch"), [("before_id", True), ("polling", True), ("polling", False)])
def test_a_killed_run_finds_its_batch_again_and_pays_nothing_twice(
    client: Make, file: str, moment: str, batch: bool
) -> None:
    """Also where the endpoint is no longer asked in batches: this one is."""
    with ApiServer(batch_polls=10**9) as server:
        command = [sys.executable, "-c", RUN, file, server.base_url, moment]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "now\n"
            os.kill(process.pid, signal.SIGKILL)
        assert len(server.batches) == 1
        server.batch_polls = 0
        answers = run(everything(client(server, batch=batch), requests(server, 12)))  # two more than before
        assert kinds(answers) == {"answered": 12}
        assert len(server.batches) == 1 + batch
        assert len(server.calls) == 12


def test_two_processes_share_a_batch(client: Make, file: str) -> None:
    with ApiServer(batch_polls=10**9) as server:
        command = [sys.executable, "-c", RUN, file, server.base_url, "polling"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "now\n"

            async def both() -> list[Reply | Failure]:
                ours = asyncio.ensure_future(everything(client(server), requests(server, 10)))
                await asyncio.sleep(0.2)
                server.batch_polls = 0
                return await ours

            assert kinds(run(both())) == {"answered": 10}
            assert process.stdout.readline() == " ".join(["[[A]]"] * 10) + "\n"
        assert len(server.calls) == 10


def test_a_batch_the_provider_forgot_is_asked_anew(client: Make, file: str) -> None:
    with ApiServer(batch_polls=10**9) as server:

        async def forget() -> list[Reply | Failure]:
            ours = asyncio.ensure_future(everything(client(server), requests(server, 3)))
            while not server.batches:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            server.batch_polls = 0
            server.batches["batch_0"] = server.batches.pop("batch_0") | {"id": "gone"}
            server.batches = {"other": server.batches["batch_0"]}
            return await ours

        assert kinds(run(forget())) == {"answered": 3}
    (use,) = opened(file).uses("run")
    assert use.failures == {"batch_gone": 3}


def test_a_file_holds_no_more_than_the_provider_takes() -> None:
    many = {str(each): b"x" for each in range(2 * MOST_LINES + 1)}
    assert [len(keys) for keys in portions(many)] == [MOST_LINES, MOST_LINES, 1]
    large = {str(each): b"x" * 100 * 10**6 for each in range(3)}
    assert [len(keys) for keys in portions(large)] == [1, 1, 1]


@pytest.mark.parametrize(
    "line", [{}, {"response": None, "error": None}, {"response": {}}, {"response": {"body": None}}]
)
def test_a_line_that_says_nothing_is_a_failure(line: dict[str, Any]) -> None:
    assert of_line(line).reason == "batch_error"
