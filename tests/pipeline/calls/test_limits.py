"""Rates that hold in every window, a width that yields, a gate that opens when it should."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calls.limits import LONGEST_PAUSE, Bucket, Lane, back_off, lane, retry_after
from pipeline.config import Endpoint

RATES = st.floats(0.1, 100.0)


@given(
    rate=RATES,
    takings=st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.1, 50.0)), min_size=1, max_size=40),
    window=st.floats(0.5, 60.0),
)
def test_no_window_holds_more_than_the_rate_allows(
    rate: float, takings: list[tuple[float, float]], window: float
) -> None:
    bucket, now, starts = Bucket(rate), 0.0, []
    for gap, amount in takings:
        now += gap
        starts.append((now + bucket.take(now, amount), amount))
    largest = max(amount for _, amount in starts)
    for begin, _ in starts:
        inside = sum(amount for start, amount in starts if begin <= start <= begin + window)
        assert inside <= (rate * (window + bucket.burst) + largest) * (1 + 1e-9)


@given(rate=RATES, count=st.integers(1, 100))
def test_a_busy_bucket_wastes_nothing_of_its_rate(rate: float, count: int) -> None:
    bucket = Bucket(rate)
    waits = [bucket.take(0.0, 1.0) for _ in range(count)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(max(0.0, (count - 1) / rate - bucket.burst))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("0", 0.0), ("1.5", 1.5), ("90", 90.0), ("-3", 0.0), ("soon", None), ("", None), ("nan", None), ("inf", None),
     (None, None)],
)  # fmt: skip
def test_retry_after_is_read(header: str | None, seconds: float | None) -> None:
    assert retry_after(header) == seconds


@given(st.integers(0, 10**6))
def test_retry_after_as_a_date_is_read(ahead: int) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after(format_datetime(now + timedelta(seconds=ahead), usegmt=True), now) == ahead
    assert retry_after(format_datetime(now - timedelta(seconds=ahead), usegmt=True), now) == 0.0


@given(st.integers(1, 2000))
def test_backing_off_grows_and_is_bounded(attempt: int) -> None:
    wait, ceiling = back_off(attempt, 0.5, 60.0), min(60.0, 0.5 * 2.0 ** min(attempt - 1, 60))
    assert ceiling / 2 <= wait <= ceiling


def test_never_more_at_once_than_the_width_and_everybody_gets_a_place() -> None:
    async def crowd() -> tuple[int, int]:
        narrow, busy, most, done = Lane(5), 0, 0, 0

        async def one() -> None:
            nonlocal busy, most, done
            await narrow.enter()
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(0)
            busy -= 1
            done += 1
            narrow.leave()

        await asyncio.gather(*(one() for _ in range(200)))
        return most, done

    assert asyncio.run(crowd()) == (5, 200)


def test_places_of_cancelled_calls_come_back() -> None:
    async def crowd() -> int:
        narrow, done = Lane(3), 0

        async def one() -> None:
            nonlocal done
            await narrow.enter()
            try:
                await asyncio.sleep(0.001)
                done += 1
            finally:
                narrow.leave()

        tasks = [asyncio.ensure_future(one()) for _ in range(60)]
        await asyncio.sleep(0.002)
        for task in tasks[:30]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(one() for _ in range(10)))
        return done

    assert asyncio.run(crowd()) >= 40


def test_the_width_settles_where_one_call_in_eleven_is_refused() -> None:
    narrow, refused = Lane(256), 0
    for number in range(20_000):
        if narrow.width > 40:  # a server that takes 40 at once
            narrow.refused()
            refused += number >= 10_000
        else:
            narrow.went_well()
    assert 39 <= narrow.width <= 41
    assert refused / 10_000 == pytest.approx(1 / 11, abs=0.01)


def test_chance_refusals_cost_no_width() -> None:
    narrow = Lane(256)
    for number in range(10_000):
        (narrow.refused if number % 20 == 0 else narrow.went_well)()
    assert narrow.width > 250


def test_a_closed_gate_holds_everybody_until_it_opens() -> None:
    async def wait() -> float:
        gated = Lane(4)
        gated.pause(0.05)
        begin = asyncio.get_running_loop().time()

        await asyncio.gather(*(gated.enter() for _ in range(4)))
        return asyncio.get_running_loop().time() - begin

    assert asyncio.run(wait()) >= 0.05


def test_no_server_can_stop_us_for_ever() -> None:
    now = 100.0
    gated = Lane(1, clock=lambda: now)
    gated.pause(1e12)
    assert gated._closed_until == now + LONGEST_PAUSE


def test_judges_of_one_address_model_and_key_share_the_strictest_limits() -> None:
    one = lane(Endpoint(model="shared", concurrency=8, requests_per_minute=600))
    two = lane(Endpoint(model="shared", concurrency=4, requests_per_minute=6000, tokens_per_minute=60))
    assert one is two
    assert (one.most, one.width) == (4, 4.0)
    assert one.requests is not None and one.requests.rate == 10.0
    assert one.tokens is not None and one.tokens.rate == 1.0
    assert lane(Endpoint(model="other")) is not one
    assert lane(Endpoint(model="shared", api_key_env="OTHER_KEY")) is not one
