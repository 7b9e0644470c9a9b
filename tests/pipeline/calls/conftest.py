"""A ledger for each test, and clients on it that are closed at its end."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.calls.client import Client, run
from pipeline.calls.limits import Waits
from pipeline.calls.request import Desk
from pipeline.config import Endpoint

Connect = Callable[..., Client]
"""Of an endpoint, how long to wait, and as :class:`Client` has them ``budget``, ``caller`` and ``others``."""


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.sqlite")


@pytest.fixture
def connect(file: str) -> Iterator[Connect]:
    made: list[Client] = []

    def client(
        endpoint: Endpoint,
        waits: Waits,
        budget: float | None = None,
        caller: str = "judge",
        others: Sequence[Endpoint] = (),
    ) -> Client:
        made.append(Client(endpoint, Desk(file, "run", budget), caller, waits, others))
        return made[-1]

    yield client
    for each in made:
        run(each.close())
