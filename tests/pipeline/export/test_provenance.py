"""Which artifacts' pairs a place holds: exports, parts of them, and what only lies beside them."""

import json
from pathlib import Path

import pytest

from pipeline.export.dataset import export_data
from pipeline.export.provenance import pairs_in, pairs_pushed
from pipeline.runs import Run
from tests.exported import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run") / "workspace")


@pytest.fixture(scope="module")
def keys(run: Run) -> tuple[str, ...]:
    return tuple(entry["artifacts"]["pairs"] for entry in run.status()["rounds"])


@pytest.fixture(scope="module")
def folder(run: Run) -> Path:
    export_data(run, run.workspace.parent / "food-data")
    return run.workspace.parent / "food-data"


def test_an_export_and_its_folders_hold_the_pairs_of_their_rounds_and_a_file_those_of_its_round(
    folder: Path, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(set(keys)) == 2
    assert pairs_in(folder) == pairs_in(folder / "data") == pairs_in(folder / "data" / "kto") == keys
    for config in ("default", "kto"):
        files = sorted((folder / "data" / config).iterdir())
        assert [pairs_in(file) for file in files] == [(key,) for key in keys]
    monkeypatch.chdir(folder / "data")
    assert pairs_in(Path()) == pairs_in(Path("default")) == pairs_in(Path("..", "data")) == keys


def test_an_artifact_and_its_shards_hold_its_own_pairs_whatever_link_leads_there(
    run: Run, keys: tuple[str, ...], tmp_path: Path
) -> None:
    artifact = run.store.get("pairs", keys[1])
    (tmp_path / "link").symlink_to(artifact.path)
    shard = artifact.manifest["shards"][0]["file"]
    for place in (artifact.path, artifact.path / shard, tmp_path / "link", tmp_path / "link" / shard):
        assert pairs_in(place) == keys[1:]


def test_a_file_of_an_export_that_is_a_link_into_a_cache_is_known_by_where_it_stands(
    folder: Path, keys: tuple[str, ...], tmp_path: Path
) -> None:
    for file in (each for each in folder.rglob("*") if each.is_file()):
        link = tmp_path / "snapshot" / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    assert pairs_in(sorted((tmp_path / "snapshot" / "data" / "default").iterdir())[1]) == keys[1:]


def test_what_the_export_did_not_write_is_not_its_own(folder: Path, run: Run, tmp_path: Path) -> None:
    for stray in (folder / "mine.jsonl", folder / "data" / "default" / "train-000-mine.parquet"):
        stray.write_text("{}\n")
        assert pairs_in(stray) == ()
        stray.unlink()
    (tmp_path / "manifest.json").write_text('{"of": "something else"}')
    (tmp_path / "prefs.jsonl").write_text("{}\n")
    for place in (tmp_path, tmp_path / "prefs.jsonl", folder.parent, tmp_path / "nowhere", run.workspace):
        assert pairs_in(place) == ()


def test_a_record_of_a_push_that_cannot_be_read_is_passed_over(run: Run) -> None:
    place = run.workspace / "exports" / "demo" / "data"
    place.mkdir(parents=True)
    for number, said in enumerate(("{", "[]", '{"repo": "org/food"}')):
        (place / f"round-000-{number}.pushed.json").write_text(said)
    assert pairs_pushed(run.workspace, "org/food") == ()
    whole = {"repo": "org/food", "tag": "round-000", "commit": "c" * 40, "pairs": ["k"]}
    (place / "round-000-3.pushed.json").write_text(json.dumps(whole))
    assert pairs_pushed(run.workspace, "org/food", "round-000") == ("k",)
