"""One real Prefect server and one finished run for all the claims about flows: both cost seconds."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pytest

from flows import cli, environment
from pipeline.recipe import load_recipe

from .small import LONGER, RECIPE, STARTED, Ratchet, sets, until

Said = tuple[int, str, str]


@pytest.fixture(autouse=True)
def _no_run_outlives_its_test() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().end()


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


class RunSmall(Protocol):
    def __call__(self, name: str, *settings: str, workspace: Path | None = None) -> dict[str, Any]:
        """Run ``small.toml`` under this name in this process, with settings as ``--set`` takes them; its status."""


@pytest.fixture(scope="session")
def run_small(server: str, tmp_path_factory: pytest.TempPathFactory) -> RunSmall:
    """All in one workspace, unless told otherwise, so that they share their policy."""
    from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

    from flows.online import online_dpo

    shared = tmp_path_factory.mktemp("workspace")

    def run(name: str, *settings: str, workspace: Path | None = None) -> dict[str, Any]:
        config = load_recipe(str(RECIPE), RECIPE.parent, settings)
        # Its log would still be on the way when the server ends.
        with temporary_settings({PREFECT_API_URL: server, PREFECT_LOGGING_TO_API_ENABLED: False}):
            return online_dpo(config, name, str(workspace or shared), quiet=True)

    return run


@pytest.fixture(scope="session")
def finished(run_small: RunSmall) -> dict[str, Any]:
    """The status of a run of two promoted rounds."""
    return run_small("finished")


@pytest.fixture(scope="session")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Ratchet:
    """``ratchet run … --json`` as a user gives it: vLLM, Prefect's own temporary server. It has ended."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    run = Ratchet(tmp_path_factory.mktemp("by-command"), *sets("sampling.engine=vllm", *LONGER), "--json")
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
