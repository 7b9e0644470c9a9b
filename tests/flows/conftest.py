"""One real Prefect server, one engine and one finished run for all the claims about flows: each costs seconds."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from flows import cli, environment
from pipeline.config import SamplingConfig
from pipeline.errors import TrainingError
from pipeline.protocols import Sampler
from pipeline.recipe import load_recipe
from pipeline.sampling import start_sampler

from .small import LONGER, RECIPE, STARTED, Ratchet, sets, until

if TYPE_CHECKING:
    from trainers.lesson import Lesson

Said = tuple[int, str, str]
ENOUGH = "enough is known"


@pytest.fixture(autouse=True)
def _no_run_outlives_its_test() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().end()


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> "list[Lesson]":
    """What trainings were asked to learn; each ends there, with ENOUGH."""
    from trainers import launch

    asked: list[Lesson] = []

    def noting(_policy: Any, lesson: "Lesson", *_rest: Any) -> Any:
        asked.append(lesson)
        raise TrainingError(ENOUGH)

    monkeypatch.setattr(launch, "train_policy", noting)
    return asked


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of ``prefect server start`` on a free port, with a database of its own."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    own = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
    }
    with open(home / "server.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
            env=os.environ | environment.DEFAULTS | own, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        until(healthy, process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Lent:
    """An engine that outlives the run that closes it."""

    def __init__(self, engine: Sampler) -> None:
        self.load, self.sample, self.logprobs, self.sleep = engine.load, engine.sample, engine.logprobs, engine.sleep

    def close(self) -> None: ...


OF_THE_REQUEST = {"n", "temperature", "top_p", "top_k", "max_tokens", "logprobs"}
"""Settings of sampling that an engine is told anew each time."""


@pytest.fixture(scope="session")
def lend() -> Iterator[Callable[[SamplingConfig, Path], Sampler]]:
    """``start_sampler``, but that transformers' engine is started once for all runs of the same model settings."""
    started: dict[str, Sampler] = {}

    def lent(config: SamplingConfig, log: Path) -> Sampler:
        if config.engine != "transformers":
            return start_sampler(config, log)
        key = config.model_dump_json(exclude=OF_THE_REQUEST)
        if key not in started:
            started[key] = start_sampler(config, log)
        return Lent(started[key])

    yield lent
    for engine in started.values():
        engine.close()


class RunSmall(Protocol):
    def __call__(
        self, name: str, *settings: str, workspace: Path | None = None, recipe: Path = RECIPE, own_engine: bool = False
    ) -> dict[str, Any]:
        """Run ``small.toml`` under this name in this process, with settings as ``--set`` takes them; its status."""


@contextmanager
def served(server: str) -> Iterator[None]:
    """Within, Prefect's server is this one. Its log would still be on the way when the server ends, and every flow
    would wait a second for the thread that sends signs of life."""
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    quick = {PREFECT_LOGGING_TO_API_ENABLED: False, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with temporary_settings({PREFECT_API_URL: server, **quick}):
        yield


@pytest.fixture(scope="session")
def run_small(
    server: str, lend: Callable[[SamplingConfig, Path], Sampler], tmp_path_factory: pytest.TempPathFactory
) -> RunSmall:
    """All in one workspace, unless told otherwise, so that they share their policy."""
    from flows.online import online_dpo

    shared = tmp_path_factory.mktemp("workspace")

    def run(
        name: str, *settings: str, workspace: Path | None = None, recipe: Path = RECIPE, own_engine: bool = False
    ) -> dict[str, Any]:
        config = load_recipe(str(recipe), recipe.parent, settings)
        with served(server), pytest.MonkeyPatch.context() as patch:
            if not own_engine:
                patch.setattr("flows.session.start_sampler", lend)
            return online_dpo(config, name, str(workspace or shared), quiet=True)

    return run


@pytest.fixture(scope="session")
def finished(run_small: RunSmall) -> dict[str, Any]:
    """The status of a run of two promoted rounds."""
    return run_small("finished")


@pytest.fixture(scope="session")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Ratchet:
    """``ratchet run … --json`` as a user gives it: vLLM, where it is installed, and Prefect's own temporary server. It
    has ended."""
    run = Ratchet(tmp_path_factory.mktemp("by-command"), *sets(*LONGER), "--json")
    run.wait()
    return run


@pytest.fixture
def ratchet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """The command in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["ratchet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call
