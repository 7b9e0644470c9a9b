"""Several servers of one model: each call goes to the one with the most room, and for a while none to one that fell."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeline.calls.accounts import Booking
from pipeline.calls.limits import Lane, Waits, back_off, lane
from pipeline.config import Endpoint
from pipeline.errors import JudgeError

LOST = frozenset({"no_connection", "cut_off", "timeout", "server_error"})
"""Outcomes that speak against the server and not against what it was asked. One that refuses for its load is no such
case: its lane narrows."""


class Way:
    """To one server. One event loop may use it at a time."""

    def __init__(
        self, endpoint: Endpoint, lane: Lane, waits: Waits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.endpoint, self.lane = endpoint, lane
        self.taken = 0
        """Calls meant for it that have not ended."""
        self._waits, self._clock = waits or Waits(), clock
        self._falls, self._aside_until = 0, 0.0

    @property
    def aside(self) -> float:
        """Seconds for which it had better be left alone: it fell, or it asked for a pause itself."""
        return max(0.0, self._aside_until - self._clock(), self.lane.closed)

    @property
    def room(self) -> int:
        """Calls it can take; negative where more wait than it takes at once."""
        return int(self.lane.width) - self.taken

    def fell(self) -> None:
        """It did not answer as a server should. Many calls that were on their way to it fall together, and count once;
        each time after that it is left alone for longer."""
        if self._aside_until <= self._clock():
            self._falls += 1
            pause = back_off(self._falls, self._waits.back_off, self._waits.longest_back_off)
            self._aside_until = self._clock() + pause

    def stands(self) -> None:
        """It answered."""
        self._falls, self._aside_until = 0, 0.0


class Server(Way):
    """One endpoint of a client, with what paid calls to it need."""

    def __init__(self, endpoint: Endpoint, account: str, judge: str, waits: Waits) -> None:
        from pipeline.calls.connection import connect
        from pipeline.calls.keys import secret

        super().__init__(endpoint, lane(endpoint), waits)
        self.secret = secret(endpoint)
        self.path = f"{endpoint.base_url.rstrip('/')}/chat/completions"
        self.api = connect(endpoint, self.lane)
        self.booking = Booking(account, judge, endpoint.model)
        self.fatal: JudgeError | None = None
        """Why no call to it can work any more."""


AnyWay = TypeVar("AnyWay", bound=Way)


def roomiest(ways: Sequence[AnyWay]) -> AnyWay:
    """The way with the most room; one that is aside only where all are, and then the first to be back."""
    return min(ways, key=lambda way: (way.aside, -way.room))
