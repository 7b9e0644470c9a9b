"""``ratchet export``: one call for data and policy, to a folder or to the Hub; what is refused before any work."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console as Terminal

from flows.console import Console
from flows.export import export, exported
from flows.pairing import repair
from flows.sources import find_source
from flows.trace import trace
from pipeline.errors import ConfigError
from pipeline.runs import Run
from pipeline.tables import read_pairs
from pipeline.types import Policy
from tests.exported import POLICIES, Making, add_round, make_run
from tests.hub_protocol import WRITE
from tests.hub_server import HubServer
from tests.tiny import make_policy
from trainers.checkpoints import load_specials, load_tokenizer
from trainers.data import load_examples
from trainers.encoding import Encoder

ROOT = Path(__file__).resolve().parents[2]
EXPORT = """
import json, sys
from pathlib import Path
from flows.export import export
run, to, workspace, what = sys.argv[1:]
print(json.dumps(export(run, to, Path(workspace), what)))
"""


def train(folder: Path, number: int) -> str:
    return make_policy(folder, layers=1, seed=number).digest


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    make_run(tmp_path / "workspace", Making(train=train))
    return tmp_path / "workspace"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def by_process(hub: HubServer, home: Path, *arguments: str) -> dict[str, Any]:
    """``export`` in a process of its own, because this one has the Hub switched off; what it says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, *arguments],
        env={**clean, **hub.environment, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert WRITE not in done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_both_go_to_folders_of_their_own_and_the_answer_is_json(workspace: Path, tmp_path: Path) -> None:
    result = export("demo", str(tmp_path / "out"), workspace, "both", licence="mit", languages=["en"])
    assert json.loads(json.dumps(result)) == result
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"data", "policy"}
    assert (result["data"]["rounds"], result["policy"]["round"]) == ([0, 1], 1)
    for kind in ("data", "policy"):
        assert "license: mit" in (tmp_path / "out" / kind / "README.md").read_text()
    terminal = Terminal(width=200, record=True, file=io.StringIO())
    terminal.print(exported(result))
    shown = terminal.export_text()
    assert "14 rows" in shown
    assert "policy of round 1" in shown


def test_a_run_of_the_flow_comes_back_token_for_token(finished: dict[str, Any], tmp_path: Path) -> None:
    workspace = Path(finished["workspace"])
    told = export(finished["name"], str(tmp_path / "out"), workspace, "both")
    assert told["data"]["rows"]["default"] == sum(entry["pairs"] for entry in finished["rounds"])
    assert told["policy"]["digest"] == finished["policy"]["digest"]
    policy = tmp_path / "out" / "policy"
    encoder = Encoder(load_tokenizer(policy), load_specials(policy))
    own, back = (
        [each for place in find_source(given, workspace).places for each in load_examples(place, encoder).examples]
        for given in (finished["name"], str(tmp_path / "out" / "data"))
    )
    assert back == own
    assert str(workspace) not in (tmp_path / "out" / "data" / "README.md").read_text()


ANEW = ("pairing.rule=all_pairs", "pairing.pairs_per_prompt=4", "pairing.margin=0.0")


def test_pairs_made_anew_are_exported_by_the_settings_that_made_them(workspace: Path, tmp_path: Path) -> None:
    run = Run(workspace, "demo")
    made = repair(run, Console(quiet=True), overrides=ANEW)
    told = export("demo", str(tmp_path / "out"), workspace, overrides=ANEW)
    assert told["data"]["rows"]["default"] == sum(entry["pairs"] for entry in made["rounds"]) > 14
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert [each["artifacts"]["pairs"] for each in lineage["rounds"]] == [each["key"] for each in made["rounds"]]
    assert not [each for each in lineage["rounds"] if "train" in each["artifacts"]]
    rows = pq.read_table(tmp_path / "out" / "data" / "default").to_pylist()
    stored = [pair for each in made["rounds"] for pair in read_pairs(run.store.get("pairs", each["key"]).table())]
    assert [row["pair_id"] for row in rows] == [pair.id for pair in stored]
    assert trace(rows[0]["pair_id"], workspace)["pairings"][0]["made"]["key"] == made["rounds"][0]["key"]


def test_the_card_of_pairs_made_anew_claims_no_training_on_them(workspace: Path, tmp_path: Path) -> None:
    export("demo", str(tmp_path / "own"), workspace)
    export("demo", str(tmp_path / "out"), workspace, overrides=ANEW)
    own, card = ((tmp_path / name / "README.md").read_text() for name in ("own", "out"))
    assert "What training on them did" in own and "trained on the pairs" in own
    assert "What training on them did" not in card and "but not on these" in card
    assert "The gate" in own and "The gate" not in card
    assert '| `rule` | `"all_pairs"` |' in card
    assert "ratchet pair demo --set pairing.rule=all_pairs --set pairing.pairs_per_prompt=4" in card
    recipe = [(tmp_path / name / "recipe.toml").read_text() for name in ("own", "out")]
    assert recipe[0] == recipe[1]  # of the run, which sampled under its own settings


def test_a_score_is_the_judges_and_what_pairing_compared_has_names_of_its_own(workspace: Path, tmp_path: Path) -> None:
    export("demo", str(tmp_path / "own"), workspace)
    export("demo", str(tmp_path / "out"), workspace, overrides=["pairing.length_penalty=0.5"])
    own, card = ((tmp_path / name / "README.md").read_text() for name in ("own", "out"))
    assert "what pairing compared, the judge's scores with length taken out, as set under Pairs" in card
    assert "what pairing compared, the judge's scores, in its units" in own
    judged, best, labelled, pairs = (
        pq.read_table(tmp_path / "out" / "data" / config).to_pylist()
        for config in ("judgments", "sft", "kto", "default")
    )
    said = {row["prompt_id"]: row["scores"] for row in judged}
    assert all(row["score"] == said[row["prompt_id"]][row["index"]] for row in best)
    compared = {(row["prompt_id"], row["index"]): row["score_compared"] for row in labelled}
    assert all(score < said[prompt_id][index] for (prompt_id, index), score in compared.items())
    assert {row["score_chosen"] for row in pairs} | {row["score_rejected"] for row in pairs} >= set(compared.values())


def test_a_round_alone_is_exported_with_its_pairs_made_anew(workspace: Path, tmp_path: Path) -> None:
    told = export("demo", str(tmp_path / "out"), workspace, rounds=[1], overrides=ANEW)
    assert told["data"]["rounds"] == [1]
    assert not list((workspace / "runs" / "demo" / "links").glob("round-000/*"))  # the other was left alone


def test_a_refused_export_of_pairs_made_anew_makes_none(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for to, overrides, told in [
        ("taken", ANEW, "something else"),
        ("out", ["rounds=2"], "only pairs are made anew; allowed: pairing.KEY=VALUE"),
        ("out", ["pairing.rule=worst"], '"worst" is not allowed'),
    ]:
        with pytest.raises(ConfigError, match=told):
            export("demo", str(tmp_path / to), workspace, overrides=overrides)
    for what in ("policy", "both"):
        with pytest.raises(ConfigError, match="no policy was trained on pairs made anew; allowed: --what data"):
            export("demo", str(tmp_path / "out"), workspace, what, overrides=ANEW)
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_that_pair_nothing_are_refused_in_one_line(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run 'demo' has no pair by pairing.margin=99"):
        export("demo", str(tmp_path / "out"), workspace, overrides=["pairing.margin=99"])
    assert not (tmp_path / "out").exists()


def test_the_newest_run_is_exported_where_none_is_named(workspace: Path, tmp_path: Path) -> None:
    assert export(None, str(tmp_path / "out"), workspace)["run"] == "demo"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"run": "nobody"}, "'nobody' is not in"),
        ({"to": "hub:no name"}, "names no repository"),
        ({"to": "hub:"}, "names no repository"),
        ({"what": "everything"}, "allowed: data, policy, both"),
        ({"rounds": [5]}, "round 5: run 'demo' has the finished rounds 0, 1"),
        ({"rounds": []}, "allowed: at least one"),
        ({"what": "policy", "rounds": [0]}, "a policy is of RUN:ROUND"),
        ({"what": "policy", "round": 5}, "round 5: run 'demo' has the finished rounds 0, 1"),
        ({"round": 1}, "is a policy's"),
        ({"licence": "My Own"}, "--license 'My Own'"),
        ({"languages": ["English"]}, "--language 'English'"),
        ({"to": "TAKEN"}, "something else"),
        ({"to": "TAKEN", "what": "both"}, "something else"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_any_work(
    workspace: Path, tmp_path: Path, arguments: dict[str, Any], told: str
) -> None:
    for folder in (tmp_path / "taken", tmp_path / "taken" / "policy"):
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    asked: dict[str, Any] = {"run": "demo", "to": str(tmp_path / "out"), "what": "data"} | arguments
    if asked["to"] == "TAKEN":
        asked["to"] = str(tmp_path / "taken")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=told):
        export(asked.pop("run"), asked.pop("to"), workspace, asked.pop("what"), **asked)
    assert sorted(tmp_path.rglob("*")) == before


def test_on_the_hub_every_round_is_a_revision_and_stays_one_when_the_run_goes_on(
    workspace: Path, tmp_path: Path, hub: HubServer
) -> None:
    told = by_process(hub, tmp_path / "home", "demo", "hub:org/demo", str(workspace), "both")
    data, model = hub.repo("org/demo"), hub.repo("org/demo", "model")
    assert data.private and model.private
    assert (sorted(data.tags), sorted(model.tags)) == (["round-000", "round-001"], ["round-001"])
    assert [each["tag"] for each in told["data"]["pushed"]] == ["round-000", "round-001"]
    first, second = (data.texts(f"round-{number:03d}") for number in (0, 1))
    rows = {name: text for name, text in first.items() if name.startswith("data/")}
    assert rows and rows.items() < second.items()
    assert "train-001" not in "".join(first)
    assert b'load_dataset("org/demo"' in second["README.md"]
    assert b"https://huggingface.co/datasets/org/demo" in model.texts()["README.md"]
    assert "probe.json" not in model.texts()

    own = [entry["artifacts"]["pairs"] for entry in Run(workspace, "demo").status()["rounds"]]

    def read(given: str) -> list[str]:
        return list(find_source(given, workspace).pairs)

    commit = told["data"]["pushed"][0]["commit"]
    assert read("org/demo") == read("mine=org/demo:kto") == read("org/demo@round-001") == read("org/demo@main") == own
    assert read("org/demo@round-000") == read(f"org/demo@{commit}") == read(f"org/demo:kto@{commit[:12]}") == own[:1]
    assert read("org/other") == read("org/demo@round-002") == read("org/demo@beef123") == []
    assert find_source("org/demo", tmp_path).pairs == ()  # another workspace pushed nothing

    by_process(hub, tmp_path / "home", "demo", "hub:org/elsewhere", str(workspace), "both")
    one, other = (workspace / "exports" / "demo" / "policy").glob("round-001-*/model.safetensors")
    assert one.samefile(other)  # weights lie there once, whatever they were pushed to
    making = Making(train=train)
    run = make_run(workspace, making)  # the same command again: artifacts are found, records are written anew
    add_round(run, making, 2)
    run.save_outcome("complete", "all 3 rounds are done", 2, Policy(POLICIES[3], workspace))
    tags = dict(data.tags)
    told = by_process(hub, tmp_path / "home", "demo", "hub:org/demo", str(workspace), "data")
    assert {name: data.tags[name] for name in tags} == tags
    assert [each["sent"] > 0 for each in told["data"]["pushed"]] == [False, False, True]
    assert second.keys() < data.texts().keys()
    assert read("org/demo") == [*own, Run(workspace, "demo").status()["rounds"][2]["artifacts"]["pairs"]]
    assert read("org/elsewhere") == read("org/demo@round-001") == own


def test_the_last_line_of_an_export_is_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    making = Making(rounds=1, ties=False)
    told = export(None, str(tmp_path / "out"), make_run(tmp_path / "w", making).workspace, console=Console())
    assert "dropped" not in told["data"]["rows"]
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.split()[:3] == ["✓", "export", "data"] and line.split()[-2:] == [str(told["data"]["files"]), "files"]


def test_a_push_that_recovered_ends_with_what_was_sent(tmp_path: Path) -> None:
    workspace = make_run(tmp_path / "workspace", Making(rounds=1)).workspace
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    words = ["export", "demo", "--to", "hub:org/late", "--workspace", str(workspace)]
    with HubServer() as hub:
        hub.fault("/commit/", 503)
        done = subprocess.run(
            [sys.executable, "-m", "flows", *words], capture_output=True, text=True, check=True, cwd=ROOT,
            env={**clean, **hub.environment, "HF_HOME": str(tmp_path / "home")},
        )  # fmt: skip
        assert [request.fault for request in hub.asked("/commit/")] == [503, None]
    assert "✓ data round-000" in done.stderr and "10 files sent, 0 there already" in done.stderr
    assert "trying again" not in done.stderr


def test_ctrl_c_ends_a_push_that_hangs_and_the_same_command_finishes_it(tmp_path: Path) -> None:
    workspace = make_run(tmp_path / "workspace").workspace
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    words = ["export", "demo", "--to", "hub:org/held", "--workspace", str(workspace)]
    with HubServer() as hub:  # which has nothing of this run yet
        hub.fault("PUT /lfs/", "hold")
        with subprocess.Popen(
            [sys.executable, "-m", "flows", *words], stderr=subprocess.PIPE, cwd=ROOT,
            env={**clean, **hub.environment, "HF_HOME": str(tmp_path / "home")},
        ) as process:  # fmt: skip
            assert hub.held.wait(120)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert err.endswith(b"interrupted; the same command goes on from here\n") and b"Traceback" not in err
        by_process(hub, tmp_path / "home", "demo", "hub:org/held", str(workspace), "data")
        assert sorted(hub.repo("org/held").tags) == ["round-000", "round-001"]
