from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.pipeline.prompts.given import CHAT, Mixture, Source
from tests.tiny import make_policy


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy") / "tiny").path


@pytest.fixture
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture
def chat(tokenizer: Any) -> Any:
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


@pytest.fixture
def mixture(tmp_path: Path) -> Mixture:
    return Mixture(tmp_path)
