"""The commands kept with a run: as typed, whole after a kill, and without secrets."""

import json
from pathlib import Path

import pytest

from pipeline.commands import COMMANDS, masked, note_command, read_commands, typed
from pipeline.runs import Run
from tests.traced import settings_of_run


def test_each_session_leaves_a_line_that_can_be_typed_again(tmp_path: Path) -> None:
    note_command(tmp_path, "c1", ["/opt/env/bin/ratchet", "run", "food", "--set", "title=two words"])
    note_command(tmp_path, "c2", ["/code/flows/__main__.py", "run", "food"])
    first, second = read_commands(tmp_path)
    assert first.line == "ratchet run food --set 'title=two words'"
    assert second.line == "ratchet run food"
    assert (first.config, second.config) == ("c1", "c2")
    assert first.versions["python"].startswith("3.")
    assert first.versions["torch"]
    assert first.at.endswith("Z")


def test_a_line_torn_by_a_kill_is_passed_over_and_spoils_no_other(tmp_path: Path) -> None:
    note_command(tmp_path, "c1", ["ratchet", "run", "one"])
    with open(tmp_path / COMMANDS, "ab") as file:
        file.write(b'{"line": "ratchet run \xc3')
    assert [each.line for each in read_commands(tmp_path)] == ["ratchet run one"]
    note_command(tmp_path, "c2", ["ratchet", "run", "two"])
    assert [each.line for each in read_commands(tmp_path)] == ["ratchet run one", "ratchet run two"]


def test_what_made_pairs_anew_is_no_session_and_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, "food")
    note_command(run.directory, "c1", ["ratchet", "run", "food"])
    monkeypatch.setattr("sys.argv", ["ratchet", "pair", "food"])
    for keys in (["k1", "k2"], ["k2"], ["k2", "k3"], []):
        run.note_pairs({"rule": "all_pairs"}, keys)
    told = [(each.line, each.anew) for each in run.commands()]
    assert told == [("ratchet run food", ()), ("ratchet pair food", ("k1", "k2")), ("ratchet pair food", ("k3",))]


def test_a_folder_without_commands_has_none(tmp_path: Path) -> None:
    assert read_commands(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("hf_" + "a1B2" * 8, "***"),
        ("--set=judge.endpoints.0.extra.api_key=abc", "--set=judge.endpoints.0.extra.api_key=***"),
        ("sk-proj-" + "x" * 30, "***"),
        ('judge={model = "m", api_key = "a b", extra = {token = \'x\'}}',
         "judge={model = \"m\", api_key = ***, extra = {token = ***}}"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("https://ann:pass@host/v1", "https://***@host/v1"),
        ("--hub-token=abc", "--hub-token=***"),
        ('{"password": "x, y"}', '{"password": ***}'),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_masked(word: str, kept: str) -> None:
    assert masked(word) == kept


@pytest.mark.parametrize(
    "word",
    ["sampling.max_tokens=64", "judge.endpoints.0.api_key_env=MY_KEY", "trainer.token_budget=4096", "hub:org/name",
     "judge.endpoints.0.tokens_per_minute=1000", "policy.path=org/risk-averse-model", "https://host:8000/v1"],
)  # fmt: skip
def test_a_setting_that_only_sounds_like_a_secret_stays(word: str) -> None:
    assert masked(word) == word


def test_the_word_after_an_option_for_a_secret_is_masked() -> None:
    assert typed(["ratchet", "export", "--token", "abc", "--to", "x"]) == "ratchet export --token '***' --to x"


def test_a_run_keeps_the_command_of_every_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings_of_run()
    for words in (["run", "food"], ["run", "food", "--quiet"]):
        monkeypatch.setattr("sys.argv", ["/somewhere/bin/ratchet", *words])
        run = Run(tmp_path, "food")
        with run.held():
            run.begin(config)
    first, second = Run(tmp_path, "food").commands()
    assert (first.line, second.line) == ("ratchet run food", "ratchet run food --quiet")
    assert first.config == second.config
    assert str(tmp_path) not in json.dumps([first.line, first.config, dict(first.versions)])
