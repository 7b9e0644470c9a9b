"""What a run starts from is known by what it holds, and its manifest says what became of every row."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flows.console import Console
from flows.online import online_dpo
from flows.start import make_prompts, read_held_out, read_rounds
from pipeline.config import PromptsConfig
from pipeline.errors import ConfigError, DataError
from pipeline.export.facts import prompt_sources
from pipeline.recipe import load_recipe
from pipeline.runs import Run
from pipeline.store import Artifact, Store
from tests.hub_protocol import File
from tests.hub_server import HubServer

from .small import RECIPE

ROOT = Path(__file__).parents[2]


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
    assert (made.manifest["kept"], made.manifest["dropped"]) == (3, {"bad": 1, "duplicate": 1})
    assert made.info["read"] == [
        {"key": "prompts.source.members.a.source", "rows": 3, "bad": 1,
         "first": ["a row 3: has no 'prompt'; it has prompt"]},
        {"key": "prompts.source.members.b.source", "rows": 2, "bad": 0, "first": []},
    ]  # fmt: skip
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


def test_prompts_that_were_read_where_more_bad_rows_were_allowed_are_refused(tmp_path: Path, place: Place) -> None:
    against = {"type": "file", "path": write(tmp_path / "b.jsonl", "figs and plums", *[None] * 2)}
    settings = {
        "source": {"type": "file", "path": write(tmp_path / "a.jsonl", *"abcdefghi", None)},
        "decontaminate": {"against": [against]},
    }
    config = PromptsConfig.model_validate({**settings, "bad_rows": 0.9})
    made = make(place, config)
    assert make(place, config.model_copy(update={"bad_rows": 0.7})).key == made.key
    for allowed, said in (
        (0.5, "^prompts.decontaminate.against.0: 2 of 3 rows are unusable; allowed: 50%; .* row 2: has no 'prompt'"),
        (0.001, "^prompts.source: 1 of 10 rows are unusable; allowed: 0.1%; row 10: has no 'prompt'"),
    ):
        with pytest.raises(DataError, match=said):
            make(place, config.model_copy(update={"bad_rows": allowed}))


def test_what_became_of_rows_is_said_and_bad_ones_are_named(tmp_path: Path, place: Place) -> None:
    place.console = Console(to_stdout=True)
    config = mixture(a=write(tmp_path / "a.jsonl", "apple", "pear", None), b=write(tmp_path / "b.jsonl", "pear", "fig"))
    with place.console.terminal.capture() as captured:
        make(place, config.model_copy(update={"held_out": 1}))
    first, second = captured.get().splitlines()
    assert first.endswith("5  rows: 2 for the rounds, 1 held out; dropped: 1 bad, 1 duplicate")
    assert second.strip() == "a row 3: has no 'prompt'; it has prompt"


COMMITS = """
import json
import sys
from pathlib import Path
from flows.console import Console
from flows.offline import Bench
from flows.start import make_prompts, settled
from pipeline.config import PromptsConfig
from pipeline.runs import Run
workspace, name, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
run = Run(workspace, name)
run.directory.mkdir(parents=True, exist_ok=True)
config = settled(run, PromptsConfig.model_validate(settings))
made = make_prompts(Bench(workspace, Console(quiet=True)), config, 0, {}, lambda: None)
print(json.dumps([made.manifest["kept"], made.info["source"]]))
"""


def test_a_run_reads_a_hub_data_set_at_one_commit_and_a_new_run_at_the_newest(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"source": {"type": "file", "path": write(tmp_path / "own.jsonl", "own")}}

    def rows(name: str, **source: Any) -> tuple[int, Any]:
        hub_set = {"type": "hub", "path": "org/questions", **source}
        settings = {"source": {"type": "mixture", "members": {"own": own, "hub": {"source": hub_set}}}}
        done = subprocess.run(
            [sys.executable, "-c", COMMITS, str(tmp_path), name, json.dumps(settings)], cwd=ROOT, text=True,
            env={**clean, **hub.environment, "HF_HOME": str(tmp_path / "home")}, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        count, told = json.loads(done.stdout)
        return count, told["members"]["hub"]["source"]["revision"]

    with HubServer() as hub:
        repo = hub.make("org/questions", private=False)
        lines = [json.dumps({"prompt": word}).encode() + b"\n" for word in ("apple", "pear", "plum")]
        commits = [
            repo.add("more", "", {"train.jsonl": File(b"".join(lines[:count]), large=False)}).oid for count in (1, 2)
        ]
        assert rows("first") == (3, commits[1])
        newest = repo.add("more", "", {"train.jsonl": File(b"".join(lines), large=False)}).oid
        hub.requests.clear()
        assert rows("first") == (3, commits[1])
        assert hub.requests == []  # it asks nobody any more
        assert rows("second") == (4, newest)
        assert rows("third", revision=commits[0]) == (2, commits[0])
        card = prompt_sources(
            {"prompts": {"source": {"type": "hub", "path": "org/questions"}}}, {"prompts.source": newest}
        )
        assert card == [f"the data set `org/questions` (commit `{newest}`)"]
    assert Run(tmp_path, "second").commits() == {"prompts.source.members.hub.source": newest}


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
