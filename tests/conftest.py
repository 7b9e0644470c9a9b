"""What every test stands on: an environment that touches nothing of the user's, and the real data where it exists."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

MOST_WORKERS = 4
"""More than this and the engines, a gigabyte each, would be in each other's way."""
TOGETHER = {"tests/flows/test_resume.py": "tests/flows/test_online.py"}
"""Files that share a whole run, so that one worker makes it once: those on the left go where those on the right go."""

HOME = Path(tempfile.mkdtemp(prefix="ratchet-tests-"))  # each worker of pytest-xdist imports this, and has its own
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

# Before anything heavy is imported: these are read once, at import.
os.environ |= {
    "DO_NOT_TRACK": "1",
    "HF_HOME": str(HOME / "huggingface"),
    "HF_HUB_OFFLINE": "1",
    "MPLCONFIGDIR": str(HOME / "matplotlib"),
    "PREFECT_HOME": str(HOME / "prefect"),
    "PREFECT_LOCAL_STORAGE_PATH": str(HOME / "prefect" / "storage"),  # PREFECT_HOME moves neither this
    "PREFECT_MEMO_STORE_PATH": str(HOME / "prefect" / "memo_store.toml"),  # nor this
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.pop("PREFECT_API_URL", None)  # never a real server
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two busy threads on two cores are slower than one
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # In the background of a script Ctrl-C is ignored, and what is ignored is inherited: no process that a test starts
    # would hear of it. What is handled is not inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("ratchet", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ratchet")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real corpora, preferences and golden values; tests that need it skip where it is not."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RATCHET_SHARED_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; RATCHET_SHARED_DATA names another")
    return folder


@pytest.fixture(autouse=True)
def transformers_is_left_as_it_was() -> Iterator[None]:
    """Two loads at once can leave weight tying switched off for good (:mod:`pipeline.loading`); tests far from there
    would fail, so the one that did it does."""
    yield
    models = sys.modules.get("transformers.modeling_utils")
    if models is not None:
        found = models.PreTrainedModel.tie_weights.__qualname__
        assert found == "PreTrainedModel.tie_weights", f"models are no longer tied: {found}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device; torch sees none")


# ---------------------------------------------------------------------------------------------- several workers
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: one a core. With a card tests run one after the other: an engine takes most of its memory."""
    return 0 if shutil.which("nvidia-smi") else min(MOST_WORKERS, os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile``: a file's tests stay together, because they share fixtures."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return TOGETHER.get(file, file)

    return ByFile(config, log)
