"""Data sets of the Hub: the real ``datasets`` loads them from a local server, in a process that has the Hub switched
on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer
from tests.tiny import make_policy

SCRIPT = """
import json, sys
from huggingface_hub import CommitOperationAdd, HfApi
from transformers import AutoTokenizer
from pipeline.errors import DataError
from trainers.data import load_examples
from trainers.encoding import Encoder, special_ids

api = HfApi()
api.create_repo("org/prefs", repo_type="dataset")
job = json.loads(sys.stdin.read())
for number, files in enumerate(job["commits"]):
    changes = [CommitOperationAdd(name, text.encode()) for name, text in files.items()]
    api.create_commit("org/prefs", changes, repo_type="dataset", commit_message="x")
    api.create_tag("org/prefs", tag=f"v{number}", repo_type="dataset")
tokenizer = AutoTokenizer.from_pretrained(job["policy"])
encoder = Encoder(tokenizer, special_ids(tokenizer))
for source, split in job["asked"]:
    try:
        print(json.dumps([tokenizer.decode(each.chosen.completion, skip_special_tokens=True)
                          for each in load_examples(source, encoder, split=split).examples]))
    except DataError as error:
        print(json.dumps(str(error)))
"""
CARD = """---
configs:
- config_name: wide
  data_files:
  - {split: train, path: wide/train.jsonl}
  - {split: test, path: wide/test.jsonl}
- config_name: slim
  data_files:
  - {split: train, path: slim/train.jsonl}
---
"""


def lines(*chosen: str) -> str:
    return "".join(json.dumps({"prompt": "a ", "chosen": each, "rejected": "no"}) + "\n" for each in chosen)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str | None], Any]:
    """What each question came to."""
    place = tmp_path_factory.mktemp("hub")
    asked = [
        ("org/prefs:wide", None), ("org/prefs:wide", "test"), ("org/prefs:slim", None), ("org/prefs:wide@v0", None),
        ("org/prefs:wide", "train[:1]"), ("org/prefs", None), ("org/prefs:none", None), ("org/prefs:wide", "dev"),
    ]  # fmt: skip
    files = {"README.md": CARD, "wide/train.jsonl": lines("ice", "cream"), "wide/test.jsonl": lines("ramen")}
    commits = [files | {"slim/train.jsonl": lines("soup")}, {"wide/train.jsonl": lines("curry", "bread")}]
    job = {"commits": commits, "policy": str(make_policy(place / "tiny", layers=1).path), "asked": asked}
    with HubServer() as hub:
        told = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(place / "home")}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], input=json.dumps(job), capture_output=True, text=True, check=False,
            env={**os.environ, **hub.environment, **told}, cwd=Path(__file__).parents[2],
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(asked, map(json.loads, done.stdout.splitlines()), strict=True))


def test_a_config_a_split_and_a_revision_of_the_hub_are_what_was_asked_for(found: dict[Any, Any]) -> None:
    assert found["org/prefs:wide", None] == ["curry", "bread"]
    assert found["org/prefs:wide", "test"] == ["ramen"]
    assert found["org/prefs:slim", None] == ["soup"]
    assert found["org/prefs:wide@v0", None] == ["ice", "cream"]
    assert found["org/prefs:wide", "train[:1]"] == ["curry"]


def test_what_the_hub_does_not_have_is_refused_in_one_line_that_says_what_it_has(found: dict[Any, Any]) -> None:
    for asked, offered in (("org/prefs", ("wide", "slim")), ("org/prefs:none", ("wide", "slim"))):
        assert "cannot be loaded from the Hub: " in found[asked, None]
        assert all(f"'{name}'" in found[asked, None] for name in offered)
        assert "\n" not in found[asked, None]
    assert "train" in found["org/prefs:wide", "dev"] and "test" in found["org/prefs:wide", "dev"]
