"""An exported data set: what ``datasets`` reads from it, what is refused, and what a second export changes."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from pipeline import candidates as asked
from pipeline.errors import BusyError, ConfigError, StoreError
from pipeline.export import dataset, rounds
from pipeline.export.columns import CONFIGS
from pipeline.export.dataset import export_data
from pipeline.runs import Run
from pipeline.store import locked
from tests.exported import POLICIES, Making, add_round, make_run, own_pairs

Folder = tuple[Run, Path]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    place = tmp_path_factory.mktemp("plain")
    run = make_run(place / "workspace", Making(panel=True, sources=("web", "books")))
    export_data(run, place / "folder")
    return run, place / "folder"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    place = tmp_path_factory.mktemp("chat")
    run = make_run(place / "workspace", Making(chat=True))
    export_data(run, place / "folder")
    return run, place / "folder"


def load(folder: Path, config: str, cache: Path) -> Any:
    return datasets.load_dataset(str(folder), config, split="train", cache_dir=str(cache))


def contents(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


# ---------------------------------------------------------------------------------------------- what is in it
def test_datasets_reads_every_config_and_default_without_a_name(plain: Folder, tmp_path: Path) -> None:
    _, folder = plain
    assert set(datasets.get_dataset_config_names(str(folder))) == set(CONFIGS)
    counted = {config: len(load(folder, config, tmp_path)) for config in CONFIGS}
    # Two rounds of 6 prompts with 4 candidates; the last prompt of each is a tie, the fourth gives three pairs.
    assert counted == {
        "default": 14, "kto": 20, "sft": 12, "candidates": 48, "judgments": 36, "prompts": 12, "dropped": 2,
    }  # fmt: skip
    unnamed = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    assert list(unnamed) == ["train"]
    assert unnamed["train"].to_list() == load(folder, "default", tmp_path).to_list()


def test_an_export_of_more_rounds_under_an_old_name_is_read_anew(plain: Folder, tmp_path: Path) -> None:
    run, whole = plain
    export_data(run, tmp_path / whole.name, [0])
    assert set(load(tmp_path / whole.name, "default", tmp_path / "cache")["round"]) == {0}
    assert set(load(whole, "default", tmp_path / "cache")["round"]) == {0, 1}


def test_default_has_every_pair_of_the_store_in_its_order(plain: Folder, tmp_path: Path) -> None:
    run, folder = plain
    rows = load(folder, "default", tmp_path).to_list()
    pairs = [pair for number in (0, 1) for pair in own_pairs(run, number)]
    for row, pair in zip(rows, pairs, strict=True):
        assert (row["prompt"], row["chosen"], row["rejected"]) == (
            pair["prompt_text"], pair["chosen_text"], pair["rejected_text"],
        )  # fmt: skip
        for name in ("pair_id", "prompt_id", "round", "score_chosen", "score_rejected", "margin"):
            assert row[name] == pair[name]
        for name in ("prompt", "chosen", "rejected"):
            assert row[f"{name}_token_ids"] == pair[f"{name}_token_ids"]
        assert row["margin"] == row["score_chosen"] - row["score_rejected"] > 0
        assert row["policy"] == POLICIES[row["round"]]
        assert row["source"] in ("web", "books")


def test_a_chat_is_messages_and_its_answers_one_message_of_the_assistant(chat: Folder, tmp_path: Path) -> None:
    run, folder = chat
    for row, pair in zip(load(folder, "default", tmp_path), own_pairs(run, 0) + own_pairs(run, 1), strict=True):
        assert row["prompt"] == pair["prompt_messages"]
        assert row["chosen"] == [{"role": "assistant", "content": pair["chosen_text"]}]
        assert row["rejected"] == [{"role": "assistant", "content": pair["rejected_text"]}]
    for config, name in (("kto", "completion"), ("sft", "completion")):
        row = load(folder, config, tmp_path)[0]
        assert row["prompt"][-1]["role"] == "user"
        assert [turn["role"] for turn in row[name]] == ["assistant"]
    assert load(folder, "prompts", tmp_path)[0]["prompt"][0]["role"] == "user"


def test_every_prompt_asked_is_paired_or_dropped_and_none_is_both(plain: Folder, tmp_path: Path) -> None:
    _, folder = plain
    asked, paired, dropped = (set(load(folder, c, tmp_path)["prompt_id"]) for c in ("prompts", "default", "dropped"))
    assert asked == paired | dropped
    assert not paired & dropped
    assert load(folder, "dropped", tmp_path)[0]["reason"] == "tie"


def test_kto_labels_each_completion_once_and_leaves_out_what_was_both(plain: Folder, tmp_path: Path) -> None:
    _, folder = plain
    rows = load(folder, "kto", tmp_path).to_list()
    assert len({(row["prompt_id"], row["index"]) for row in rows}) == len(rows)
    labels = {row["index"]: row["label"] for row in rows if row["prompt_id"] == "p0-3"}
    assert labels == {3: True, 0: False}  # 1 was chosen over 0 and rejected for 3
    assert all(row["score_compared"] == row["index"] for row in rows)
    assert "those that were both, 2, are left out" in (folder / "README.md").read_text()


def test_what_was_left_out_is_told_of_files_that_an_earlier_export_had(plain: Folder, tmp_path: Path) -> None:
    run, folder = plain
    export_data(run, tmp_path / "again", earlier=[folder])
    assert next((tmp_path / "again/data/kto").iterdir()).stat().st_nlink > 1
    assert (tmp_path / "again/README.md").read_bytes() == (folder / "README.md").read_bytes()


def test_sft_takes_the_best_that_is_finished_judged_and_not_empty(plain: Folder, tmp_path: Path) -> None:
    _, folder = plain
    best = {row["prompt_id"]: row for row in load(folder, "sft", tmp_path) if row["round"] == 0}
    assert best["p0-0"]["index"] == 3
    assert best["p0-1"]["index"] == 2  # 3 was cut at the limit
    assert best["p0-2"]["index"] == 2  # 3 was not judged
    assert best["p0-5"]["index"] == 0  # all the same
    assert best["p0-0"]["completion"] == "what is answer 3 to 0"


def test_judgments_have_the_panel_and_its_members_with_their_evidence(plain: Folder, tmp_path: Path) -> None:
    _, folder = plain
    rows = [row for row in load(folder, "judgments", tmp_path) if row["prompt_id"] == "p1-2"]
    assert {(row["judge"], row["member"]) for row in rows} == {("panel", ""), ("one", "one"), ("two", "two")}
    assert all(row["scores"] == [0.0, 1.0, 2.0, None] for row in rows)
    assert json.loads(rows[0]["votes"]) == [{"reply": f"{rows[0]['judge']} likes it"}]


def test_judgments_name_no_person_and_no_place_on_this_machine(tmp_path: Path) -> None:
    vote = {
        "annotator": "jane@acme.org",
        "first": [0],
        "second": [1],
        "verdict": "tie",
        "comment": "Ask Tom",
        "left": 1,
    }
    quoted = {"reply": '{"annotator": "nobody", "comment": "good"}'}
    judge = "/home/jane doe/judges.py:score"
    run = make_run(tmp_path / "workspace", Making(rounds=1, judge=judge, votes=(vote, quoted)))
    export_data(run, tmp_path / "folder")
    rows = load(tmp_path / "folder", "judgments", tmp_path / "cache").to_list()
    said = {key: value for key, value in vote.items() if key not in ("annotator", "comment")}
    assert len(rows) == 6
    for row in rows:
        assert row["judge"] == "judges.py:score"
        assert json.loads(row["votes"]) == [said, quoted]
    assert "neither who gave them" in (tmp_path / "folder" / "README.md").read_text()


def test_pairs_of_another_round_are_exported_with_that_round_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "workspace")
    first, second = (rounds.open_round(run.store, entry) for entry in run.status()["rounds"])
    replayed = replace(second, candidates=first.candidates)  # as if all pairs of the round were replayed ones
    parts = [part for part in rounds.parts(replayed, 1000) if part.config == "default"]
    assert sum(table.num_rows for part in parts for table in part.tables()) == 0


# ---------------------------------------------------------------------------------------------- again
def test_the_same_run_exported_twice_gives_the_same_bytes(plain: Folder, tmp_path: Path) -> None:
    run, folder = plain
    export_data(run, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    assert export_data(run, tmp_path / "again")["folder"] == str(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["again"]  # nothing is left beside it


def test_when_a_run_goes_on_files_of_its_earlier_rounds_stay_the_same(tmp_path: Path) -> None:
    making = Making(rounds=1)
    run = make_run(tmp_path / "workspace", making)
    export_data(run, tmp_path / "folder")
    before = contents(tmp_path / "folder")
    inode = {file.name: file.stat().st_ino for file in (tmp_path / "folder" / "data").rglob("*.parquet")}
    add_round(run, making, 1)
    export_data(run, tmp_path / "folder")
    after = contents(tmp_path / "folder")
    data = {name: digest for name, digest in before.items() if name.startswith("data/")}
    assert data.items() < after.items()
    found = {file.name: file.stat().st_ino for file in (tmp_path / "folder" / "data").rglob("*.parquet")}
    assert inode.items() < found.items()  # linked, not written again


def test_rounds_that_are_chosen_are_exported_alone(plain: Folder, tmp_path: Path) -> None:
    run, _ = plain
    told = export_data(run, tmp_path / "folder", [1])
    assert told["rounds"] == [1]
    assert set(load(tmp_path / "folder", "candidates", tmp_path / "cache")["round"]) == {1}


def test_an_interrupted_export_goes_on_where_it_was(
    plain: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = plain
    made: list[str] = []

    def until(limit: int) -> Any:
        def progress(done: int, total: int, note: str) -> None:
            made.append(note)
            if done == limit:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        export_data(run, tmp_path / "folder", progress=until(5))
    assert not (tmp_path / "folder").exists()
    aside = tmp_path / "folder.part"
    (aside / "data" / "default" / "train-torn.parquet.part").write_bytes(b"torn")
    (aside / "data" / "default" / "train-999-old-00000.parquet").write_bytes(b"of another time")
    first = aside / made[0]
    inode = first.stat().st_ino
    export_data(run, tmp_path / "folder")
    assert contents(tmp_path / "folder") == contents(folder)
    assert (tmp_path / "folder" / made[0]).stat().st_ino == inode


def test_files_are_divided_by_rows_into_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "workspace", Making(rounds=1, prompts=600, n=2))  # shards of 256, 256, 88 prompts
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    export_data(run, whole)
    export_data(run, parted, rows=512)
    names = sorted(file.name[-13:] for file in (parted / "data" / "candidates").iterdir())
    assert names == ["00000.parquet", "00001.parquet", "00002.parquet"]
    for config in CONFIGS:
        one, many = (load(folder, config, tmp_path / folder.name / "cache") for folder in (whole, parted))
        assert one.to_list() == many.to_list()
    assert pq.ParquetFile(next((whole / "data" / "candidates").iterdir())).num_row_groups == 1  # of three shards


def test_where_the_prompts_lie_is_not_read_again_for_every_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "SHARD", 5)
    run = make_run(tmp_path / "workspace", Making(rounds=1, prompts=100, n=2))
    read: list[object] = []
    footer = rounds._footer
    monkeypatch.setattr(rounds, "_footer", lambda candidates: (read.append(candidates), footer(candidates))[1])
    export_data(run, tmp_path / "folder")
    assert len(read) <= 3  # whether it is a chat; and for two configs of 20 shards, at once perhaps


# ---------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("name", ["notes.txt", "README.md", "lineage.json"])
def test_a_folder_with_something_else_is_refused_and_left_alone(plain: Folder, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match="something else"):
        export_data(plain[0], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_an_earlier_export_that_was_edited_is_not_written_over(plain: Folder, tmp_path: Path) -> None:
    export_data(plain[0], tmp_path / "folder")
    card = tmp_path / "folder" / "README.md"
    card.write_text(card.read_text() + "\nMy own words.\n")
    with pytest.raises(ConfigError, match=r"'README.md' was added or changed"):
        export_data(plain[0], tmp_path / "folder")
    assert card.read_text().endswith("My own words.\n")


def test_an_export_of_another_run_is_not_written_over(plain: Folder, tmp_path: Path) -> None:
    other = make_run(tmp_path / "workspace", name="other")
    export_data(other, tmp_path / "folder")
    with pytest.raises(ConfigError, match="the dataset of run 'other'"):
        export_data(plain[0], tmp_path / "folder")


def test_somebody_elses_folder_where_it_would_be_written_is_left_alone(plain: Folder, tmp_path: Path) -> None:
    (tmp_path / "folder.part").mkdir()
    (tmp_path / "folder.part" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"'folder.part' beside it"):
        export_data(plain[0], tmp_path / "folder")
    assert (tmp_path / "folder.part" / "mine.txt").read_text() == "mine"


def test_an_export_removes_no_folder_beside_it_whatever_its_name(plain: Folder, tmp_path: Path) -> None:
    mine = tmp_path / "folder.old" / "thesis.tex"
    mine.parent.mkdir()
    mine.write_text("mine")
    for numbers in (None, [1]):  # a new folder, then another in its place
        export_data(plain[0], tmp_path / "folder", numbers)
        assert mine.read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "folder.old"]


def test_two_exports_to_one_folder_at_once_are_refused(plain: Folder, tmp_path: Path) -> None:
    aside = tmp_path / "folder.part"
    aside.mkdir()
    with locked(aside / ".lock"), pytest.raises(BusyError, match=str(os.getpid())):
        export_data(plain[0], tmp_path / "folder")


def test_a_run_without_rounds_or_answers_and_a_round_that_is_not_there_are_refused(tmp_path: Path) -> None:
    bare = make_run(tmp_path, Making(rounds=0, config={"rounds": 1}), "bare")
    with pytest.raises(ConfigError, match="'bare' has no finished round yet"):
        export_data(bare, tmp_path / "folder")
    silent = make_run(tmp_path / "silent", Making(rounds=1, prompts=0))
    with pytest.raises(ConfigError, match="no answers in its finished rounds"):
        export_data(silent, tmp_path / "folder")
    run = make_run(tmp_path / "two")
    with pytest.raises(ConfigError, match="round 7: run 'demo' has the finished rounds 0, 1"):
        export_data(run, tmp_path / "folder", [0, 7])
    assert not (tmp_path / "folder").exists()


def test_an_artifact_that_is_gone_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "workspace")
    key = run.status()["rounds"][1]["artifacts"]["candidates"]
    (run.store.root / "candidates" / key / "manifest.json").unlink()
    with pytest.raises(StoreError, match=key):
        export_data(run, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("models", [(), ("big", "small")], ids=["run", "data"])
def test_a_run_without_pairs_is_exported_with_all_that_was_paid_for(tmp_path: Path, models: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "workspace", Making(rounds=1, prompts=1, models=models))
    told = export_data(run, tmp_path / "folder")
    assert told["rows"] == {"sft": 1, "candidates": 4, "judgments": 1, "prompts": 1, "dropped": 1}
    assert set(datasets.get_dataset_config_names(str(tmp_path / "folder"))) == set(told["rows"])
    for config, rows in told["rows"].items():
        assert len(load(tmp_path / "folder", config, tmp_path / "cache")) == rows
    card = (tmp_path / "folder" / "README.md").read_text()
    for said in ("No prompt gave a pair", "`SFTTrainer` takes `sft`", "Every prompt that was judged is in `dropped`, "):
        assert said in card
    for said in ("### An example", "DPOTrainer", "pairs = load_dataset", "ratchet train"):
        assert said not in card, said


def test_the_card_says_where_no_prompt_was_dropped(plain: Folder, tmp_path: Path) -> None:
    run = make_run(tmp_path / "workspace", Making(rounds=1, ties=False))
    assert "dropped" not in export_data(run, tmp_path / "folder")["rows"]
    said = "Every prompt that was judged is in `default`{}."
    assert said.format(": none was dropped") in (tmp_path / "folder" / "README.md").read_text()
    assert said.format(" or in `dropped`, with the reason") in (plain[1] / "README.md").read_text()


def test_a_config_without_rows_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "workspace", Making(rounds=1))
    entry = run.status()["rounds"][0]
    pairs = run.store.get("pairs", entry["artifacts"]["pairs"])
    file = pairs.path / "dropped.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    told = export_data(run, tmp_path / "folder")
    assert "dropped" not in told["rows"]
    assert not (tmp_path / "folder" / "data" / "dropped").exists()
    assert "dropped" not in datasets.get_dataset_config_names(str(tmp_path / "folder"))
    assert dataset.KIND == "dataset"
