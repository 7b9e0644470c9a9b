"""What a run starts from is known by what it holds, and its manifest says what became of every row."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flows.console import Console
from flows.online import online_dpo
from flows.start import make_prompts, read_held_out, read_rounds
from pipeline.config import PromptsConfig
from pipeline.errors import ConfigError, DataError
from pipeline.recipe import load_recipe
from pipeline.store import Artifact, Store

from .small import RECIPE


@dataclass
class Place:
    """Where artifacts are made, without an engine."""

    store: Store
    console: Console = field(default_factory=lambda: Console(quiet=True))

    def warm_up(self) -> None:
        raise AssertionError("prompts need no engine")

    def free_device(self, stage: str) -> None:
        raise AssertionError(f"{stage} needs no memory")


def write(file: Path, *prompts: Any) -> str:
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return str(file)


def mixture(**paths: str) -> PromptsConfig:
    members = {name: {"source": {"type": "file", "path": path}} for name, path in paths.items()}
    return PromptsConfig.model_validate({"source": {"type": "mixture", "members": members}, "bad_rows": 0.5})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(Store(tmp_path / "artifacts"))


def make(place: Place, config: PromptsConfig, seed: int = 0) -> Artifact:
    return make_prompts(place, config, seed, {}, lambda: None)


def test_manifest_counts_every_row_by_source_and_reason(tmp_path: Path, place: Place) -> None:
    config = mixture(a=write(tmp_path / "a.jsonl", "apple", "pear", None), b=write(tmp_path / "b.jsonl", "pear", "fig"))
    made = make(place, config.model_copy(update={"held_out": 1}))
    found = {"rows": made.manifest["kept"], "dropped": made.manifest["dropped"], "bad": made.info["bad"]}
    assert found == {
        "rows": 3, "dropped": {"bad": 1, "duplicate": 1}, "bad": ["a row 3: has no 'prompt'; it has prompt"],
    }  # fmt: skip
    kept = {name: counts.pop("rounds") + counts.pop("held_out") for name, counts in made.info["by_source"].items()}
    assert kept == {"a": 2, "b": 1}
    assert made.info["by_source"] == {"a": {"rows": 3, "bad": 1}, "b": {"rows": 2, "duplicate": 1}}
    prompts = [*read_rounds(made), *read_held_out(made)]
    assert sorted((prompt.source, prompt.text) for prompt in prompts) == [("a", "apple"), ("a", "pear"), ("b", "fig")]


def test_prompts_are_read_again_only_where_they_may_have_changed(tmp_path: Path, place: Place) -> None:
    first, second = write(tmp_path / "a.jsonl", "apple", "pear"), write(tmp_path / "b.jsonl", "fig", "plum")
    made = make(place, mixture(a=first, b=second))
    moved = str(Path(second).rename(tmp_path / "moved.jsonl"))
    assert make(place, mixture(a=first, b=moved)).key == made.key
    assert make(place, mixture(a=first, b=moved), seed=1).key != made.key
    write(tmp_path / "moved.jsonl", "fig", "lime")
    assert make(place, mixture(a=first, b=moved)).key != made.key


def test_path_that_leads_nowhere_ends_a_run_before_anything_is_made(tmp_path: Path) -> None:
    gone = tmp_path / "gone.jsonl"
    config = load_recipe(str(RECIPE), tmp_path)
    prompts = mixture(a=write(tmp_path / "a.jsonl", "apple"), b=str(gone))
    with pytest.raises(DataError, match=rf"^prompts.source.members.b.source.path: '{gone}' is not a file$"):
        online_dpo.fn(config.model_copy(update={"prompts": prompts}), "run", str(tmp_path / "workspace"))
    assert not (tmp_path / "workspace").exists()


def test_another_run_that_cannot_be_replayed_ends_a_run_before_anything_is_made(tmp_path: Path) -> None:
    config = load_recipe(str(RECIPE), tmp_path, ['pairing.replay={share=0.2, offline="nothing"}'])
    with pytest.raises(ConfigError, match="^pairing.replay.offline 'nothing' leads nowhere"):
        online_dpo.fn(config, "run", str(tmp_path / "workspace"))
    assert not (tmp_path / "workspace").exists()
