"""How hard an endpoint may be asked: rates, a width that yields to refusals, and a gate the server can close.

One :class:`Lane` an address, model and key, shared by all judges of the process, because the provider counts them
together.
"""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import Endpoint

LONGEST_PAUSE = 24 * 3600.0
"""Seconds; a server that asks for more is not waited for any longer than this."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds between one thing and the next."""

    back_off: float = 0.5
    """Before a second try; twice that before a third, and so on."""
    longest_back_off: float = 60.0
    look_again: float = 0.5
    """At a key another process is asking, or a budget that others' calls fill."""
    gather: float = 1.0
    """Quiet time after which what was asked becomes a batch."""
    poll: float = 15.0
    """Between two looks at a batch."""


class Bucket:
    """A token bucket, kept as the time by which all that was taken will have flowed in (the "virtual scheduling" form
    of the generic cell rate algorithm, ITU-T I.371).

    Invariant: what is taken with starts in any window of t seconds is at most ``rate · (t + burst)`` plus one taking.
    """

    def __init__(self, rate: float, burst: float = 1.0) -> None:
        """``rate`` in units a second; ``burst`` in seconds of it."""
        self.rate, self.burst = rate, burst
        self._settled = -math.inf

    def take(self, now: float, amount: float) -> float:
        """Takes ``amount`` and gives the seconds to wait before using it; a large one runs into debt."""
        level = max(self._settled, now - self.burst)
        self._settled = level + amount / self.rate
        return max(0.0, level - now)


class Lane:
    """At most ``concurrency`` calls at once, fewer while the server refuses, none while it has closed the gate.

    The width falls by one for a call refused with 429 and rises by a tenth for one that was not, so that against any
    limit, known or not, it settles where about one call in eleven is refused. Then eight refusals in a row, which
    would make a judge abstain, do not happen; and chance refusals below that rate cost no concurrency at all.
    """

    RISE = 0.1

    def __init__(self, concurrency: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = concurrency
        self.width = float(concurrency)
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.has_answered = False
        """An address that never answered at all is out of order; one that did has hiccups."""
        self._clock = clock
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed_until = -math.inf

    def narrow(self, endpoint: "Endpoint") -> None:
        """Keep the strictest of the limits of all who share the lane."""
        self.most = min(self.most, endpoint.concurrency)
        self.width = min(self.width, float(self.most))
        self.requests = _stricter(self.requests, endpoint.requests_per_minute)
        self.tokens = _stricter(self.tokens, endpoint.tokens_per_minute)

    @property
    def closed(self) -> float:
        """Seconds until the gate opens; 0 where it is open."""
        return max(0.0, self._closed_until - self._clock())

    async def enter(self) -> None:
        """Takes a place when the gate is open: to be held while a call is on its way, and no longer."""
        while self._busy >= int(self.width):
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._wake()  # woken and cancelled at once: the next in line must not miss the place
                raise
        self._busy += 1
        try:
            while (closed := self.closed) > 0:
                # A little later each, so that a reopened gate lets in a queue and not a crowd.
                await asyncio.sleep(closed + random.uniform(0.0, min(1.0, 0.1 * closed)))
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        """Gives the place to the next in line."""
        self._busy -= 1
        self._wake()

    async def turn(self, tokens: int) -> None:
        """Waits until the rates allow a call of ``tokens``."""
        now = self._clock()
        wait = self.requests.take(now, 1.0) if self.requests is not None else 0.0
        if self.tokens is not None:
            wait = max(wait, self.tokens.take(now, tokens))
        if wait > 0:
            await asyncio.sleep(wait)

    def refused(self) -> None:
        """The server said 429."""
        self.width = max(1.0, self.width - 1.0)

    def went_well(self) -> None:
        self.has_answered = True
        self.width = min(float(self.most), self.width + self.RISE)

    def pause(self, seconds: float) -> None:
        """Close the gate: the server's Retry-After, for every call to it."""
        self._closed_until = max(self._closed_until, self._clock() + min(seconds, LONGEST_PAUSE))

    def _wake(self) -> None:
        for _ in range(int(self.width) - self._busy):
            while self._waiting and self._waiting[0].done():
                self._waiting.popleft()
            if not self._waiting:
                return
            self._waiting.popleft().set_result(None)


def _stricter(bucket: Bucket | None, per_minute: float | None) -> Bucket | None:
    if per_minute is None or (bucket is not None and bucket.rate <= per_minute / 60.0):
        return bucket
    return Bucket(per_minute / 60.0)


_lanes: dict[tuple[str, str, str], Lane] = {}


def lane(endpoint: "Endpoint") -> Lane:
    """The process's lane to this address, model and key."""
    where = (endpoint.base_url.rstrip("/"), endpoint.model, endpoint.api_key_env)
    shared = _lanes.setdefault(where, Lane(endpoint.concurrency))
    shared.narrow(endpoint)
    return shared


def retry_after(header: str | None, now: datetime | None = None) -> float | None:
    """Seconds a ``Retry-After`` header asks for: a number or an HTTP date (RFC 9110, 10.2.3); None: it says nothing."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            until = parsedate_to_datetime(header)
        except ValueError:
            return None
        until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
        seconds = (until - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def back_off(attempt: int, base: float, most: float) -> float:
    """Seconds before try ``attempt`` (1 is the second try): exponential, with "equal jitter"."""
    ceiling = min(most, base * 2.0 ** min(attempt - 1, 60))
    return ceiling * random.uniform(0.5, 1.0)
