"""``ratchet data``, ``pair``, ``export`` and ``trace`` as a user gives them: JSON on stdout, mistakes in one line."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows import environment
from flows.cli_data import next_of
from flows.trace import LIMIT
from pipeline.errors import ConfigError, DataError, HubError, StoreError
from pipeline.export import folder
from pipeline.store import Store, locked
from pipeline.texts import toml_lines
from tests.api_server import ApiServer
from tests.exported import Making, make_run
from tests.tiny import make_policy

from .conftest import Said, served
from .small import finished_files

Call = Callable[..., Said]


def train(folder: Path, number: int) -> str:
    return make_policy(folder, layers=1, seed=number).digest


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a run of two rounds; the one that commands look into."""
    make_run(tmp_path / "workspace", Making(config={"limits": {"threads": 1}}))
    monkeypatch.setenv("RATCHET_WORKSPACE", str(tmp_path / "workspace"))
    return tmp_path / "workspace"


@pytest.fixture
def trained(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The same, and it has policies."""
    make_run(workspace, Making(train=train, config={"limits": {"threads": 1}}))
    capsys.readouterr()  # transformers' bars
    return workspace


def answered(said: Said) -> Any:
    """What a parser behind the pipe gets; nothing else was said."""
    code, out, err = said
    assert (code, err) == (0, "")
    return json.loads(out)


# ---------------------------------------------------------------------------------------------- mistakes
MISTAKES = {
    ("pair", "nobody"): "run 'nobody' is not in ",
    ("pair", "demo:7"): "run 'demo' has no finished round 7 to pair anew; it has 0, 1",
    ("pair", "demo:x"): "run 'demo:x' is not in ",
    ("pair", ""): "run '' is not in ",
    ("pair", "--set", "margin=1"): "--set 'margin=1': only pairs are made anew; allowed: pairing.KEY=VALUE",
    ("pair", "--set", "pairing.margn=1"): "did you mean 'margin'?",
    ("pair", "--set", "pairing.margin"): "--set 'pairing.margin' has no '='",
    ("pair", "--margins", "--set", "pairing.rule=worst"): '"worst" is not allowed',
    ("pair", "--margins", "--set", "pairing.margin=1"): "--set 'pairing.margin=1' has no effect with --margins",
    ("pair", "--margins", "--set", "pairing.keep=0.5"): "--set 'pairing.keep=0.5' has no effect with --margins",
    ("export", "demo:1", "--to", "out", "--rounds", "0"): "--rounds 0 beside 'demo:1'; allowed: one of them",
    ("export", "demo:7", "--to", "out"): "round 7: run 'demo' has the finished rounds 0, 1",
    ("export", "demo:7", "--to", "out", "--what", "policy"): "round 7: run 'demo' has the finished rounds 0, 1",
    ("export", "demo:1", "--to", "out", "--what", "policy"): "round 1 of run 'demo' trained no policy",
    ("export", "nobody", "--to", "out"): "run 'nobody' is not in ",
    ("export", "--to", ""): "destination '' is neither a folder nor hub:org/name",
    ("export", "--to", "hub:demo"): "'hub:demo' names no repository",
    ("export", "--to", "out", "--what", "all"): "--what 'all': allowed: data, policy, both",
    ("export", "--to", "out", "--rounds", "7"): "round 7: run 'demo' has the finished rounds 0, 1",
    ("export", "--to", "out", "--license", "My Own"): "--license 'My Own': allowed: ",
    ("export", "--to", "out", "--language", "English"): "--language 'English': allowed: ",
    ("export", "--to", "out", "--set", "margin=1"): "--set 'margin=1': only pairs are made anew",
    ("export", "--to", "out", "--set", "pairing.margin=1", "--what", "both"): "no policy was trained on pairs made",
    ("export", "--to", "out", "--public"): "--public is of hub:org/name; --to 'out' is a folder",
    ("export", "--to", "out", "--move-tags"): "--move-tags is of hub:org/name; --to 'out' is a folder",
    ("trace", "nobody"): "PAIR_ID 'nobody': allowed: the first 8 or more of a pair's hexadecimal digits, or a run",
    ("trace", "demo:7"): "'demo:7': run 'demo' has pairs of the rounds 0, 1",
    ("trace", "123abc"): "PAIR_ID '123abc': allowed: ",
    ("trace", "deadbeef"): "PAIR_ID 'deadbeef': none of 14 pairs in 2 artifacts begins so",
    ("trace", "deadbeef", "--workspace", "no"): "; give --workspace where they are elsewhere",
    ("data", "nosuch"): "there is no recipe 'nosuch'; allowed: compare-models, or a path to a .toml file",
    ("data", "compare-models"): "vars.",
    ("data", "compare-models", "--set", "vars.first=a", "--set", "vars.second=b", "--set", "vars.prompts=no.jsonl"):
        "no.jsonl",
}  # fmt: skip


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_and_makes_nothing(
    arguments: tuple[str, ...], ratchet: Call, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.parent)
    before = finished_files(workspace.parent)
    code, out, err = ratchet(*arguments)
    assert code in (ConfigError.exit_code, DataError.exit_code) and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert MISTAKES[arguments] in err
    assert finished_files(workspace.parent) == before


@pytest.mark.parametrize("command", [("pair",), ("pair", "--margins"), ("export", "--to", "out"), ("trace",)])
def test_without_a_run_or_a_finished_round_there_is_one_line_that_says_so(
    command: tuple[str, ...], ratchet: Call, tmp_path: Path
) -> None:
    code, out, err = ratchet(*command, "--workspace", tmp_path)
    assert (code, out) == (ConfigError.exit_code, "")
    assert err == f"error: there are no runs in {tmp_path}/runs; give --workspace where they are elsewhere\n"
    make_run(tmp_path, Making(rounds=0, config={"rounds": 1}), "begun")
    code, out, err = ratchet(*command, "--workspace", tmp_path, "--json")
    assert (code, out) == (ConfigError.exit_code, "")
    assert err.startswith("error: run 'begun' has no finished round") and err.count("\n") == 1


# ---------------------------------------------------------------------------------------------- pair
def test_pairs_made_anew_can_be_traced_and_the_run_stays(ratchet: Call, workspace: Path) -> None:
    runs = finished_files(workspace / "runs")
    told = answered(ratchet("pair", "demo:1", "--set", "pairing.rule=all_pairs", "--set", "pairing.margin=2", "--json"))
    (entry,) = told["rounds"]
    assert (told["run"], entry["round"], entry["groups"], entry["own"]) == ("demo", 1, 6, False)
    assert entry["paired"] + sum(entry["dropped"].values()) == entry["groups"]
    assert finished_files(workspace / "runs") == runs

    rows = pq.read_table(next(Path(entry["link"]).resolve().glob("*.parquet"))).to_pylist()
    assert min(row["score_chosen"] - row["score_rejected"] for row in rows) == 2
    traced = answered(ratchet("trace", rows[0]["pair_id"][:12].upper(), "--json"))
    assert traced["pair"]["id"] == rows[0]["pair_id"]
    assert [each["made"]["key"] for each in traced["pairings"]] == [entry["key"]]
    (command,) = traced["commands"]["demo"]
    assert command["line"].startswith("ratchet pair demo:1 --set pairing.rule=all_pairs --set pairing.margin=2 --json")
    shown = ratchet("trace", rows[0]["pair_id"])[1]
    for told in ("used by no run", "paired anew of run demo", "paired anew: $ ratchet pair demo:1"):
        assert told in shown


def test_a_table_of_margins_makes_nothing_and_has_each_margin_once(ratchet: Call, workspace: Path) -> None:
    before = finished_files(workspace)
    told = answered(ratchet("pair", "demo:0", "--margins", "--json"))
    margins = [row["margin"] for row in told["rounds"][0]["margins"]]
    assert margins == sorted({*margins}) == [1.0, 2.0, 3.0]  # a prompt has two pairs, the second narrower
    code, out, err = ratchet("pair", "demo:0", "--margins")
    assert code == 0 and "margins" in err
    assert "what would each margin keep?" in out
    assert ratchet("pair", "demo:0", "--margins", "--quiet") == (0, "", "")
    assert finished_files(workspace) == before


def test_a_workspace_that_takes_no_more_is_one_line(
    ratchet: Call, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "pairs.parquet")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.sync", full)
        code, out, err = ratchet("pair", "demo:0", "--set", "pairing.margin=2", "--quiet")
    assert (code, out, err.count("\n")) == (StoreError.exit_code, "", 1)
    assert err == "error: [Errno 28] No space left on device: 'pairs.parquet'; what is finished is kept\n"
    assert answered(ratchet("pair", "demo:0", "--set", "pairing.margin=2", "--json"))["rounds"][0]["paired"] == 5


def test_pairs_made_anew_are_exported_by_the_same_settings(ratchet: Call, workspace: Path, tmp_path: Path) -> None:
    settings = ("--set", "pairing.rule=all_pairs", "--set", "pairing.margin=2")
    (entry,) = answered(ratchet("pair", "demo:1", *settings, "--json"))["rounds"]
    told = answered(ratchet("export", "demo", "--rounds", 1, *settings, "--to", tmp_path / "out", "--json"))
    assert (told["data"]["rounds"], told["data"]["rows"]["default"]) == ([1], entry["pairs"])


@pytest.mark.parametrize("prompts", [1, 6])
def test_training_on_data_is_proposed_where_it_has_a_pair(ratchet: Call, tmp_path: Path, prompts: int) -> None:
    run = make_run(tmp_path / "workspace", Making(rounds=1, prompts=prompts, models=("big", "small")))
    proposed = [line.partition(" --workspace")[0].split() for _, line in next_of(run, run.status())]
    assert [words[1] for words in proposed] == ["export", "train"][:prompts]
    told = answered(ratchet(*proposed[0][1:-1], tmp_path / "out", "--workspace", run.workspace, "--json"))
    assert ("default" in told["data"]["rows"]) == (prompts == 6)


@pytest.mark.parametrize("more", [(), ("--rounds", 0, "--rounds", 1)], ids=["its data", "other rounds' data"])
def test_a_round_is_exported_by_its_name(ratchet: Call, trained: Path, tmp_path: Path, more: tuple[Any, ...]) -> None:
    told = answered(ratchet("export", "demo:0", "--what", "both", *more, "--to", tmp_path / "both", "--json"))
    assert (told["data"]["rounds"], told["policy"]["round"]) == ([0, 1] if more else [0], 0)
    told = answered(ratchet("export", "demo:0", "--what", "policy", "--to", tmp_path / "policy", "--json"))
    assert told["policy"]["round"] == 0
    told = answered(ratchet("export", "demo:1", "--to", tmp_path / "data", "--json"))
    assert told["data"]["rounds"] == [1]


def test_pairs_made_anew_are_trained_on_by_their_link(ratchet: Call, finished: dict[str, Any], tmp_path: Path) -> None:
    at = ("--workspace", finished["workspace"])
    again = ("--set", "pairing.margin=0", "--set", "pairing.rule=all_pairs", "--set", "pairing.pairs_per_prompt=3")
    (entry,) = answered(ratchet("pair", f"{finished['name']}:0", *again, *at, "--json"))["rounds"]
    assert entry["pairs"] > entry["paired"] and not entry["own"]
    initial = Path(finished["directory"]) / "links" / "initial-policy"
    plan = answered(ratchet("train", entry["link"], "--policy", initial, "--dry-run", "--quiet", *at, "--json"))
    assert sum(part["pairs"] for part in plan["data"]) == entry["pairs"]
    assert plan["data"][0]["pairs_of"] == [entry["key"]]


def test_a_training_on_an_exported_folder_is_found_from_its_pairs(
    ratchet: Call, finished: dict[str, Any], tmp_path: Path
) -> None:
    at, folder = ("--workspace", finished["workspace"]), tmp_path / "food-data"
    settings = ("--rounds", 0, "--set", "pairing.margin=0", "--set", "pairing.rule=all_pairs")
    answered(ratchet("export", finished["name"], "--to", folder, *settings, *at, "--json"))
    initial = Path(finished["directory"]) / "links" / "initial-policy"
    made = ("--policy", initial, "--limit", 12, "--set", "batch_size=4", "--name", "on-a-folder")
    trained = answered(ratchet("train", f"mine={folder}", *made, "--quiet", *at, "--json"))
    shutil.rmtree(folder)  # what it held is known without it
    row = trained["data"][0]["pairs_of"]
    (pair,) = Store(Path(finished["workspace"]) / "artifacts").get("pairs", row[0]).table()["pair_id"][:1].to_pylist()
    found = answered(ratchet("trace", pair, *at, "--json"))
    assert [(each["name"], each["read"]) for each in found["trainings"]] == [("on-a-folder", [f"mine={folder}"])]
    assert "ratchet train" in found["trainings"][0]["commands"][0]["line"]


# ---------------------------------------------------------------------------------------------- export
def test_an_export_says_what_it_made_to_people_and_to_parsers(
    ratchet: Call, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.parent)
    monkeypatch.setenv("RATCHET_WORKSPACE", "workspace")  # by a relative path
    told = answered(ratchet("export", "--to", "an [odd] näme", "--what", "both", "--license", "mit", "--json"))
    assert Path(told["data"]["folder"]) == trained.parent / "an [odd] näme" / "data"
    assert (told["data"]["rows"]["default"], told["policy"]["round"]) == (14, 1)
    code, out, err = ratchet("export", "demo", "--to", "an [odd] näme", "--what", "both")
    assert code == 0 and "export policy" in err
    assert "14 rows" in out and "an [odd] näme" in out.replace("\n", "")
    told = answered(ratchet("export", "demo:0", "--to", "older", "--what", "policy", "--json"))
    assert told["policy"]["round"] == 0
    told = answered(ratchet("export", "--to", "one", "--rounds", 1, "--json"))
    assert (told["data"]["rounds"], told["data"]["rows"]["default"]) == ([1], 7)


def test_an_export_that_cannot_be_written_is_one_line_and_goes_on_when_it_can(
    ratchet: Call, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace.parent / "file").touch()
    for place in (workspace.parent / "file" / "out", workspace.parent / ("x" * 300)):
        code, out, err = ratchet("export", "--to", place, "--quiet")
        assert (code, out) == (StoreError.exit_code, "")
        assert err.startswith(f"error: --to '{place}' cannot be written: ") and err.count("\n") == 1

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "sync", full)
        code, out, err = ratchet("export", "--to", workspace.parent / "out", "--quiet")
    assert (code, out, err.count("\n")) == (StoreError.exit_code, "", 1)
    assert "No space left on device" in err
    assert not (workspace.parent / "out").exists()
    assert answered(ratchet("export", "--to", workspace.parent / "out", "--json"))["data"]["rows"]["default"] == 14


def test_two_exports_to_one_folder_at_once(ratchet: Call, workspace: Path) -> None:
    with locked(workspace.parent / "out.part" / ".lock"):
        code, out, err = ratchet("export", "--to", workspace.parent / "out", "--quiet")
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert "is being written (process " in err


def test_without_the_hub_a_push_is_one_line(ratchet: Call, workspace: Path) -> None:
    code, out, err = ratchet("export", "--to", "hub:org/demo", "--quiet")  # these tests have it switched off
    assert (code, out) == (HubError.exit_code, "")
    assert err == "error: nothing can be pushed to 'org/demo' while HF_HUB_OFFLINE is set: unset it\n"


# ---------------------------------------------------------------------------------------------- trace
def test_a_pair_of_an_export_leads_back_to_the_command(ratchet: Call, finished: dict[str, Any], tmp_path: Path) -> None:
    at = ("--workspace", finished["workspace"])
    answered(ratchet("export", finished["name"], "--to", tmp_path / "out", *at, "--json"))
    rows = [row for file in (tmp_path / "out/data/default").iterdir() for row in pq.read_table(file).to_pylist()]
    listed = answered(ratchet("trace", finished["name"], "--limit", len(rows) + 1, *at, "--json"))
    assert {(each["id"], each["round"]) for each in listed} == {(row["pair_id"], row["round"]) for row in rows}
    assert len(ratchet("trace", finished["name"], *at)[1].splitlines()) == min(LIMIT, len(rows))
    (only,) = answered(ratchet("trace", f"{finished['name']}:0", "--limit", 1, *at, "--json"))
    assert only["round"] == 0

    row = rows[-1]
    found = answered(ratchet("trace", row["pair_id"], *at, "--json"))
    assert (found["pair"]["chosen_text"], found["pair"]["prompt_id"]) == (row["chosen"], row["prompt_id"])
    code, out, err = ratchet("trace", row["pair_id"], *at)
    assert (code, err) == (0, "")
    assert out.startswith(f"pair {row['pair_id']}") and f"used by run {finished['name']}" in out


# ---------------------------------------------------------------------------------------------- data
def recipe(folder: Path, server: ApiServer) -> Path:
    """Two served models answer four questions."""
    (folder / "questions.jsonl").write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(4)))
    endpoint = {"model": "m", "base_url": server.base_url, "price_in": 1.0, "price_out": 2.0}
    values = {
        "title": "Small [data]", "limits": {"retries": 0, "threads": 1},
        "models": {name: {"type": "server", "endpoints": [endpoint], "n": 2} for name in ("one", "two")},
        "prompts": {"source": {"type": "file", "path": str(folder / "questions.jsonl")}, "template": "chat"},
        "judge": {"type": "rules", "rules": {"odd": {"type": "regex", "pattern": ".*[13579]"}}},
    }  # fmt: skip
    file = folder / "small-data.toml"
    file.write_text("\n".join(toml_lines(values)) + "\n")
    return file


def test_data_can_be_planned_made_and_exported(
    ratchet: Call, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(environment, "leave_on_signals", lambda: None)  # it would end this process
    with ApiServer(lambda body: f"answer {body['seed']}") as api, served(server):
        file = recipe(tmp_path, api)
        planned = answered(ratchet("data", file, "--dry-run", "--json"))
        assert sum(each["calls"] for each in planned) == 16
        assert not api.calls and not (tmp_path / "workspace").exists()
        status = answered(ratchet("data", file, "--quiet", "--json"))
        assert (status["name"], status["state"]) == ("small-data", "complete")
        asked = len(api.calls)
        assert answered(ratchet("data", file, "--quiet", "--json"))["rounds"] == status["rounds"]
        assert len(api.calls) == asked == 16
    (entry,) = status["rounds"]
    told = answered(ratchet("export", "small-data", "--to", tmp_path / "out", "--json"))
    assert told["data"]["rows"].get("default", 0) == entry["pairs"] > 0
    code, _, err = ratchet("export", "small-data", "--to", tmp_path / "policy", "--what", "policy")
    assert (code, err.count("\n")) == (ConfigError.exit_code, 1)
