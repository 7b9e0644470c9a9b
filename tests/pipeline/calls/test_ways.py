"""Several servers of one model: where calls go, and what becomes of them when one of the servers does not work."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.calls.client import Client, run
from pipeline.calls.limits import Lane, Waits
from pipeline.calls.request import Failure, Reply, Request
from pipeline.calls.ways import Way, roomiest
from pipeline.config import Endpoint
from pipeline.errors import JudgeError
from tests.api_server import ApiServer

from .conftest import Connect

QUICK = Waits(back_off=0.001, longest_back_off=0.01, look_again=0.02)
Make = Callable[..., Client]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def way(clock: Clock, concurrency: int = 4) -> Way:
    return Way(Endpoint(model="m"), Lane(concurrency, clock), Waits(back_off=1.0, longest_back_off=8.0), clock)


# --------------------------------------------------------------------------------------------------- choosing
def test_the_way_with_the_most_room_is_taken() -> None:
    clock = Clock()
    narrow, wide = way(clock, 2), way(clock, 6)
    taken = Counter[str]()
    for _ in range(8):
        chosen = roomiest([narrow, wide])
        chosen.taken += 1
        taken["narrow" if chosen is narrow else "wide"] += 1
    assert taken == {"narrow": 2, "wide": 6}


def test_a_server_that_fell_is_left_alone_for_longer_each_time_and_trusted_when_it_answers() -> None:
    clock = Clock()
    bad, good = way(clock, 8), way(clock, 1)
    pauses = []
    for _ in range(6):
        for _ in range(5):
            bad.fell()  # all that were on their way to it
        assert roomiest([bad, good]) is good
        pauses.append(bad.aside)
        clock.now += bad.aside
        assert roomiest([bad, good]) is bad
    for pause, ceiling in zip(pauses, [1, 2, 4, 8, 8, 8], strict=True):
        assert ceiling / 2 <= pause <= ceiling
    bad.fell()
    bad.stands()
    assert bad.aside == 0.0


def test_a_server_that_asks_for_a_pause_gets_it_and_where_all_do_the_first_to_be_back_is_taken() -> None:
    clock = Clock()
    one, other = way(clock), way(clock)
    one.lane.pause(30.0)
    assert roomiest([one, other]) is other
    other.lane.pause(10.0)
    assert roomiest([one, other]) is other
    clock.now += 11.0
    other.lane.pause(60.0)
    assert roomiest([one, other]) is one


# --------------------------------------------------------------------------------------------------- calling
@pytest.fixture
def client(connect: Connect) -> Make:
    def make(*addresses: str, budget: float | None = None, **more: Any) -> Client:
        first, *others = [
            Endpoint(**{"model": f"m{number}", "base_url": address, "timeout": 10.0, "concurrency": 2} | more)
            for number, address in enumerate(addresses)
        ]
        return connect(first, QUICK, budget, "proposer", others)

    return make


def nowhere() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def requests(count: int) -> list[Request]:
    """As a caller makes them who knows nothing of the other servers."""
    return [
        Request("m0", "http://first/v1", ({"role": "user", "content": f"{number}"},), {"max_tokens": 5})
        for number in range(count)
    ]


async def everything(client: Client, asked: list[Request]) -> list[Reply | Failure | BaseException]:
    return await asyncio.gather(*(client.ask(each) for each in asked), return_exceptions=True)


def texts(answers: list[Reply | Failure | BaseException]) -> list[str]:
    assert all(isinstance(each, Reply) for each in answers), answers
    return [each.text for each in answers if isinstance(each, Reply)]


def echo(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


def test_servers_share_the_calls_and_each_is_asked_by_its_own_name(client: Make) -> None:
    with ApiServer(echo, latency=0.01) as one, ApiServer(echo, latency=0.01) as other:
        assert texts(run(everything(client(one.base_url, other.base_url), requests(40)))) == [
            str(number) for number in range(40)
        ]
        assert len(one.calls) + len(other.calls) == 40
        assert min(len(one.calls), len(other.calls)) >= 10
        assert max(one.most_busy, other.most_busy) <= 2
        assert {call.body["model"] for call in one.calls} == {"m0"}
        assert {call.body["model"] for call in other.calls} == {"m1"}


def test_an_answer_is_found_again_whoever_gave_it(client: Make) -> None:
    with ApiServer(echo, latency=0.01) as one, ApiServer(echo, latency=0.01) as other:
        run(everything(client(one.base_url, other.base_url), requests(20)))
        asked = len(one.calls) + len(other.calls)
        run(everything(client(one.base_url), requests(20)))
        assert len(one.calls) + len(other.calls) == asked == 20


@pytest.mark.parametrize("order", [1, -1])
def test_a_server_that_is_down_loses_its_share_to_the_others(client: Make, order: int) -> None:
    with ApiServer(echo) as server:
        addresses = [server.base_url, nowhere()][::order]
        assert len(texts(run(everything(client(*addresses, tries=1), requests(30))))) == 30
        assert len(server.calls) == 30


@pytest.mark.parametrize("fault", ["unauthorised", "no_such_model", "insufficient_quota"])
def test_a_server_that_refuses_everything_is_asked_no_more(client: Make, fault: str) -> None:
    with ApiServer(echo, faults={fault: 1.0}, latency=0.01) as bad, ApiServer(echo, latency=0.01) as good:
        assert len(texts(run(everything(client(bad.base_url, good.base_url), requests(30))))) == 30
        assert len(good.calls) == 30
        assert len(bad.calls) <= 3  # those that were prepared when the first was refused


def test_a_server_that_fails_now_and_then_is_asked_again(client: Make) -> None:
    faults = {"server_error": 0.3, "cut_body": 0.2, "rate_limited": 0.2}
    with ApiServer(echo, faults=faults) as bad, ApiServer(echo) as good:
        assert len(texts(run(everything(client(bad.base_url, good.base_url), requests(60))))) == 60
        assert len(bad.answered) > 0 and len(good.answered) > 0


def test_where_no_server_was_ever_there_the_error_names_the_address(client: Make) -> None:
    one, other = nowhere(), nowhere()
    (error,) = run(everything(client(one, other, tries=2), requests(1)))
    assert isinstance(error, JudgeError)
    assert "cannot be reached" in str(error) and "127.0.0.1" in str(error)


def test_where_all_refuse_the_error_is_a_servers_own(client: Make) -> None:
    with ApiServer(faults={"unauthorised": 1.0}) as one, ApiServer(faults={"no_such_model": 1.0}) as other:
        errors = run(everything(client(one.base_url, other.base_url), requests(4)))
        assert all(isinstance(error, JudgeError) for error in errors)


def test_a_budget_needs_the_prices_of_every_server(client: Make) -> None:
    with pytest.raises(JudgeError, match="has no prices"):
        client(nowhere(), nowhere(), budget=1.0)
