"""What every test stands on: an environment that touches nothing of the user's, and the real data where it exists."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

HOME = Path(tempfile.mkdtemp(prefix="ratchet-tests-"))
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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device; torch sees none")
