"""Paid calls: how many a second, and what the ledger adds to each."""

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from pipeline.calls.accounts import Booking
from pipeline.calls.claims import Grant
from pipeline.calls.client import Client, run
from pipeline.calls.ledger import Ledger
from pipeline.calls.request import Desk, Reply, Request
from pipeline.config import Endpoint
from report import table

SERVER = Path(__file__).parents[1] / "api_server.py"
LATENCY, CAPACITY = 0.2, 256
POSSIBLE = CAPACITY / LATENCY
SHARE, OVERHEAD = 0.95, 1.0
"""What has to be reached: of the possible calls a second; milliseconds in the ledger a call."""
WARM_UP = 2 * CAPACITY
PROMPT = "word " * 400
"""2 kB: a question and two short answers."""


Ask = Callable[[int], Awaitable[Any]]
"""Makes the call of that number."""


@dataclass(frozen=True)
class Measured:
    """One repetition."""

    calls_per_second: float
    """Between the first tenth of the answers and the last: what a long run has."""
    from_start_to_end: float
    """The same over all of them: at the start all places are empty, at the end most."""
    client_ms: float
    """CPU time of the client's process a call."""
    server_ms: float
    others: float
    """Cores that neither of the two used but somebody did: with more than a few hundredths the figures are too low."""


@contextmanager
def server() -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, str(SERVER), "--latency", str(LATENCY), "--capacity", str(CAPACITY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), psutil.Process(process.pid)
        finally:
            process.terminate()


def messages(number: int) -> tuple[dict[str, str], ...]:
    return ({"role": "system", "content": "Which is better?"}, {"role": "user", "content": f"{number} {PROMPT}"})


@contextmanager
def ours(url: str) -> Iterator[Ask]:
    """Ratchet's client: prices, a budget, every answer in the ledger."""
    endpoint = Endpoint(model="m", base_url=url, concurrency=CAPACITY, price_in=1.0, price_out=4.0)
    with tempfile.TemporaryDirectory() as folder:
        client = Client(endpoint, Desk(f"{folder}/ledger.sqlite", "bench", 1e6), "bench")

        async def ask(number: int) -> None:
            body = {"max_tokens": 100, "temperature": 0.0, "seed": 0}
            answer = await client.ask(Request("m", url, messages(number), body))
            assert isinstance(answer, Reply), answer

        yield ask
        run(client.close())


@contextmanager
def library(url: str) -> Iterator[Ask]:
    """openai's client as it comes, with nothing around it: no ledger, no limits."""
    import httpx2
    import openai

    limits = httpx2.Limits(max_connections=CAPACITY, max_keepalive_connections=CAPACITY)
    client = openai.AsyncOpenAI(api_key="none", base_url=url, http_client=openai.DefaultAsyncHttpxClient(limits=limits))

    async def ask(number: int) -> None:
        await client.chat.completions.create(
            model="m", messages=messages(number), max_tokens=100, temperature=0.0, seed=0
        )

    yield ask
    run(client.close())


@contextmanager
def sockets(url: str) -> Iterator[Ask]:
    """The least a client can do: bytes made beforehand, the reply read up to its length."""
    place = urlsplit(url)
    body = json.dumps({"model": "m", "messages": messages(0), "max_tokens": 100}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-length: {len(body)}\r\n\r\n"
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(number: int) -> None:
        reader, writer = free.pop() if free else await asyncio.open_connection(place.hostname, place.port)
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        (length,) = (line.partition(b":")[2] for line in lines if line.lower().startswith(b"content-length"))
        await reader.readexactly(int(length))
        free.append((reader, writer))

    async def close() -> None:
        for _, writer in free:
            writer.close()

    yield ask
    run(close())


CONTESTANTS = {"Ratchet": ours, "openai as it comes": library, "bare sockets": sockets}


def throughput(calls: int, repetitions: int) -> dict[str, Any]:
    """Contestants take turns; every one gets a fresh server."""
    samples: dict[str, list[Measured]] = {name: [] for name in CONTESTANTS}
    for _ in range(repetitions):
        for name, contestant in CONTESTANTS.items():
            with server() as (url, process), contestant(url) as ask:
                run(many(ask, range(-WARM_UP, 0)))
                samples[name].append(measured(ask, calls, process))
    rows = [row(name, each) for name, each in samples.items()]
    caption = (
        f"{calls:,} calls of 2 kB, {repetitions} repetitions; possible: {POSSIBLE:,.0f}. Calls a second without the"
        " first and last tenth, and with them; CPU time a call; others: cores used by neither client nor server"
    )
    columns = ["", "calls/s", "of possible", "ends too", "CPU ms", "server ms", "others", "goal"]
    table(f"Calls a second: {LATENCY * 1000:.0f} ms, {CAPACITY} at once", columns, rows, caption)
    return {
        "calls": calls, "latency": LATENCY, "capacity": CAPACITY, "goal": SHARE,
        "versions": {name: version(name) for name in ("openai", "aiohttp", "httpx2")},
        "samples": {name: [asdict(each) for each in own] for name, own in samples.items()},
    }  # fmt: skip


async def many(ask: Ask, numbers: range) -> None:
    """As a judge asks: rendered a little ahead of what the endpoint takes."""
    ahead, width = asyncio.Semaphore(2 * CAPACITY), asyncio.Semaphore(CAPACITY)

    async def one(number: int) -> None:
        async with ahead, width:
            await ask(number)

    await asyncio.gather(*(one(number) for number in numbers))


def measured(ask: Ask, calls: int, process: psutil.Process) -> Measured:
    own, answered = psutil.Process(), list[float]()

    async def timed(number: int) -> None:
        await ask(number)
        answered.append(time.perf_counter())

    begin, mine, its, all_of_it = time.perf_counter(), cpu(own), cpu(process), busy()
    run(many(timed, range(calls)))
    wall, mine, its, all_of_it = answered[-1] - begin, cpu(own) - mine, cpu(process) - its, busy() - all_of_it
    first, last = calls // 10, calls - calls // 10 - 1
    sustained = (last - first) / (answered[last] - answered[first])
    others = max(0.0, all_of_it - mine - its) / wall
    return Measured(sustained, calls / wall, 1e3 * mine / calls, 1e3 * its / calls, others)


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def busy() -> float:
    """Seconds all cores have worked."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def row(name: str, samples: list[Measured]) -> list[str]:
    rates = [each.calls_per_second for each in samples]
    share = statistics.median(rates) / POSSIBLE
    goal = f"{'[green]✓' if share >= SHARE else '[red]✗'} ≥ {SHARE:.0%}" if name == "Ratchet" else ""
    whole, client, its, others = (
        statistics.median(getattr(each, field) for each in samples)
        for field in ("from_start_to_end", "client_ms", "server_ms", "others")
    )
    spread = f"{statistics.median(rates):,.0f} \\[{min(rates):,.0f}–{max(rates):,.0f}]"
    return [
        name, spread, f"{share:.1%}", f"{whole / POSSIBLE:.1%}", f"{client:.2f}", f"{its:.2f}", f"{others:.2f}", goal
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------- ledger
def overhead(calls: int, repetitions: int) -> dict[str, Any]:
    """Milliseconds a call spends in the ledger, alone and with another process writing as fast as it can."""
    rows, results = [], {}
    for name, crowd in (("alone", 0), ("beside a second process", 1)):
        samples = [sample(calls, crowd) for _ in range(repetitions)]
        results[name] = samples
        parts = {part: statistics.median(each[part] for each in samples) for part in samples[0]}
        mark = f"{'[green]✓' if parts['mean'] < OVERHEAD else '[red]✗'} < {OVERHEAD:g} ms"
        rows.append([name, *(f"{parts[part]:.3f}" for part in parts), mark])
    caption = f"{calls:,} calls, reply of 3 kB: look up, claim under a budget, store and settle; milliseconds"
    table("Ledger: time a call", ["", *samples[0], "goal"], rows, caption)
    return {"calls": calls, "goal_ms": OVERHEAD, "samples": results}


CROWD = "import sys; sys.path[:0] = sys.argv[1:3]; import calling; calling.fill_for_ever(sys.argv[3])"
"""The second process; it gets our path, where the package ``judges`` comes before the benchmark of that name."""


def sample(calls: int, crowd: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.sqlite"
        others = [subprocess.Popen([sys.executable, "-c", CROWD, *sys.path[:2], str(file)]) for _ in range(crowd)]
        ledger = Ledger(file)
        try:
            if crowd:
                time.sleep(1.0)
            times = sorted(fill(ledger, calls, 0))
        finally:
            for each in others:
                each.kill()
                each.wait()
            ledger.close()
    return {
        "mean": statistics.fmean(times), "median": times[len(times) // 2], "p99": times[len(times) * 99 // 100],
        "longest": times[-1],
    }  # fmt: skip


def fill(ledger: Ledger, calls: int, first: int) -> list[float]:
    """Milliseconds each call takes of the event loop's thread."""
    who, raw, times = Booking("bench", "judge", "model"), json.dumps({"choices": ["word " * 600]}), []
    for number in range(first, first + calls):
        key = f"{number * 0x9E3779B97F4A7C15 % 2**64:064x}"  # spread as digests are
        begin = time.perf_counter()
        if ledger.answer(key) is None and ledger.claim(key, who, 1000, 10**15) is Grant.YOURS:
            ledger.settle(key, raw, who, (600, 600), 500)
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def fill_for_ever(file: str) -> None:
    ledger = Ledger(Path(file))
    for start in itertools.count(10**9, 1000):
        fill(ledger, 1000, start)
