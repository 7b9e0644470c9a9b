"""``ratchet export``: one call for data and policy, to a folder or to the Hub; what is refused before any work."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as Terminal

from flows import export as exporting
from flows.export import export, exported
from pipeline.errors import ConfigError
from pipeline.hub import Pushed
from tests.exported import Making, add_round, make_run
from tests.tiny import make_policy


def train(folder: Path, number: int) -> str:
    return make_policy(folder, layers=1, seed=number).digest


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    make_run(tmp_path / "workspace", Making(train=train))
    return tmp_path / "workspace"


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have gone to the Hub; the push itself is tests/pipeline/test_hub.py's."""
    seen: list[dict[str, Any]] = []

    def push(folder: Path, repo: str, kind: str, **more: Any) -> Pushed:
        files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        seen.append({"repo": repo, "kind": kind, "files": files, **more})
        return Pushed(repo, kind, f"https://hub/{repo}", "0" * 40, more["tag"], more["private"], tuple(files))  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "push", push)
    return seen


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
        ({"what": "policy", "rounds": [0]}, "a policy has --round"),
        ({"what": "policy", "round": 5}, "round 5: run 'demo' has the finished rounds 0, 1"),
        ({"round": 1}, "is a policy's"),
        ({"licence": "My Own"}, "--licence 'My Own'"),
        ({"languages": ["English"]}, "--language 'English'"),
        ({"to": "TAKEN"}, "something else"),
        ({"to": "TAKEN", "what": "both"}, "something else"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_any_work(
    workspace: Path, tmp_path: Path, arguments: dict[str, Any], told: str, pushes: list[dict[str, Any]]
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
    assert not pushes


def test_on_the_hub_every_round_is_a_revision_that_has_the_rounds_before_it(
    workspace: Path, pushes: list[dict[str, Any]]
) -> None:
    result = export("demo", "hub:acme/pairs", workspace, "both")
    assert [(each["kind"], each["tag"], each["private"]) for each in pushes] == [
        ("dataset", "round-000", True), ("dataset", "round-001", True), ("model", "round-001", True),
    ]  # fmt: skip
    first, second, model = (each["files"] for each in pushes)
    data = {name: content for name, content in first.items() if name.startswith("data/")}
    assert data.items() < second.items()
    assert "train-001" not in "".join(first)
    assert b'load_dataset("acme/pairs"' in second["README.md"]
    assert b"https://huggingface.co/datasets/acme/pairs" in model["README.md"]
    assert [each["tag"] for each in result["data"]["pushed"]] == ["round-000", "round-001"]


def test_what_was_pushed_is_pushed_again_as_it_was_when_the_run_has_gone_on(
    workspace: Path, pushes: list[dict[str, Any]]
) -> None:
    making = Making(train=train)
    export("demo", "hub:acme/pairs", workspace)
    run = make_run(workspace, making)  # the same command again: artifacts are found, records are written anew
    add_round(run, making, 2)
    export("demo", "hub:acme/pairs", workspace)
    earlier, later = pushes[:2], pushes[2:]
    assert [each["tag"] for each in later] == ["round-000", "round-001", "round-002"]
    assert [each["files"] for each in later[:2]] == [each["files"] for each in earlier]
