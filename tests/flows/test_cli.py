"""The command line: what is wrong is one line and an exit code; what has happened is told without making anything."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.runs import Run

from .conftest import RunSmall, Said
from .small import RECIPE, ROOT, finished_files

SMALL = str(RECIPE)


MISTAKES = {
    ("nosuch",): "there is no recipe 'nosuch'; allowed: chat-judge, chat-rm, food, reviews, or a path to a .toml file",
    ("fod",): "there is no recipe 'fod'; did you mean 'food'? allowed: chat-judge, chat-rm,",
    ("nosuch.toml",): "recipe file 'nosuch.toml' does not exist",
    (SMALL, "--set", "trainer.bta=1"): "trainer.bta: there is no such key (its value is 1); did you mean 'beta'?",
    (SMALL, "--set", "trainer.beta=-1"): "trainer.beta: -1 is not allowed; allowed: a number > 0",
    (SMALL, "--set", "rounds=two"): 'rounds: "two" is not allowed; allowed: a whole number ≥ 1',
    (SMALL, "--set", "sampling.engine=tgi"): 'sampling.engine: "tgi" is not allowed; allowed: "auto", "vllm"',
    (SMALL, "--set", "rounds"): "--set 'rounds' has no '='",
    (SMALL, "--set", "prompts.held_out=0"): "prompts.held_out: 0 leaves nothing to evaluate on",
    (SMALL, "--set", "gate.require=['elo > 1']"): "gate.require: 'elo > 1' is not",
    (SMALL, "--set", "policy.corpus.function=nowhere:corpus"): "policy.corpus: function 'nowhere:corpus': there is no",
    (SMALL, "--set", "policy.corpus.function=flows.recipes.food:corps"): "defines no 'corps'; it has corpus, tastes,",
    (SMALL, "--name", "a/b"): "--name 'a/b': allowed are",
    (SMALL, "--name", "größe"): "--name 'größe': allowed are",
    (SMALL, "--name", ".."): "--name '..': allowed are",
    (SMALL, "--name", ""): "--name '': allowed are",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda arguments: " ".join(arguments[-1:]))
def test_a_mistake_is_one_line_and_makes_nothing(
    arguments: tuple[str, ...], ratchet: Callable[..., Said], tmp_path: Path
) -> None:
    code, out, err = ratchet("run", *arguments, "--workspace", tmp_path / "workspace")
    assert (code, out) == (ConfigError.exit_code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert MISTAKES[arguments] in err
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", SMALL, "--set", "rounds=0"], "rounds: 0 is not allowed; allowed: a whole number ≥ 1"),
        (["train", SMALL, "--policy", "nosuch"], "--policy 'nosuch' leads nowhere; allowed: "),
    ],
    ids=["run", "train"],
)
def test_a_mistake_is_told_before_anything_heavy_is_imported(
    arguments: list[str], expected: str, tmp_path: Path
) -> None:
    program = (
        "import sys, flows.cli\n"
        "try: flows.cli.main()\n"
        "finally: print(sorted({'torch', 'prefect', 'transformers', 'vllm', 'pyarrow.dataset'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--workspace", tmp_path / "workspace"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (said.returncode, said.stdout) == (ConfigError.exit_code, "[]\n")
    assert re.fullmatch(rf"error: .*{re.escape(expected)}.*\n", said.stderr)


@pytest.mark.parametrize("command", ["status", "report"])
def test_without_runs_there_is_nothing_to_tell(command: str, ratchet: Callable[..., Said], tmp_path: Path) -> None:
    code, out, err = ratchet(command, "--workspace", tmp_path)
    assert (code, out) == (ConfigError.exit_code, "")
    assert err == f"error: there are no runs in {tmp_path}/runs; give --workspace where they are elsewhere\n"


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_run_that_is_not_there(command: str, ratchet: Callable[..., Said], finished: dict[str, Any]) -> None:
    code, _, err = ratchet(command, "finishd", "--workspace", finished["workspace"])
    assert code == ConfigError.exit_code
    assert err.startswith("error: run 'finishd' is not in ")
    assert "finished" in err


def test_status_is_what_the_run_said(ratchet: Callable[..., Said], finished: dict[str, Any]) -> None:
    code, out, err = ratchet("status", "finished", "--workspace", finished["workspace"], "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == finished


def test_no_secret_among_the_settings_is_printed(ratchet: Callable[..., Said], tmp_path: Path) -> None:
    run = Run(tmp_path, "begun")
    run.directory.mkdir(parents=True)
    (run.directory / "config.json").write_text(json.dumps({"judge": {"call": {"args": {"api_key": "hunter22"}}}}))
    out = ratchet("status", "--workspace", tmp_path, "--json")[1]
    assert json.loads(out)["config"] == {"judge": {"call": {"args": {"api_key": "***"}}}}


def test_the_table_has_a_line_a_round(ratchet: Callable[..., Said], finished: dict[str, Any]) -> None:
    code, out, _ = ratchet("status", "finished", "--workspace", finished["workspace"])
    assert code == 0
    assert "finished  complete: all 2 rounds are done" in out
    for entry in finished["rounds"]:
        assert re.search(rf"^ *{entry['round']} +{entry['pairs']}/{entry['groups']} .* promote ", out, re.MULTILINE)


def test_a_run_that_is_going_on_and_one_that_was_interrupted(
    ratchet: Callable[..., Said], finished: dict[str, Any], tmp_path: Path
) -> None:
    run = Run(tmp_path, "begun")
    run.directory.mkdir(parents=True)
    (run.directory / "config.json").write_text(json.dumps(finished["config"]))
    with run.held():  # as the process that runs it does
        assert json.loads(ratchet("status", "--workspace", tmp_path, "--json")[1])["state"] == "running"
    code, out, _ = ratchet("status", "--workspace", tmp_path)
    assert code == 0
    assert "begun  interrupted: interrupted; the same command goes on from here" in out


def test_report_writes_the_page_anew(ratchet: Callable[..., Said], finished: dict[str, Any]) -> None:
    page = Path(finished["directory"]) / "report.html"
    before = page.read_bytes()
    page.unlink()
    code, out, err = ratchet("report", "finished", "--workspace", finished["workspace"])
    assert (code, out, err) == (0, f"{page}\n", "")
    assert page.read_bytes() == before


def test_other_settings_under_the_same_name_are_refused(ratchet: Callable[..., Said], finished: dict[str, Any]) -> None:
    before = finished_files(Path(finished["workspace"]))
    code, out, err = ratchet(
        "run", SMALL, "--name", "finished", "--workspace", finished["workspace"], "--set", "trainer.beta=0.25"
    )
    assert (code, out) == (ConfigError.exit_code, "")
    assert "run 'finished' began with other settings (trainer.beta: 0.5 then, 0.25 now)" in err
    assert err.count("\n") == 1
    assert finished_files(Path(finished["workspace"])) == before


def test_a_finished_run_may_go_on_for_more_rounds(run_small: RunSmall, finished: dict[str, Any]) -> None:
    settings = ["trainer.reference=initial"]
    one = run_small("initial-reference", *settings, "rounds=1")
    two = run_small("initial-reference", *settings, "rounds=2")
    assert [entry["gate"]["decision"] for entry in two["rounds"]] == ["promote"] * 2
    assert two["rounds"][:1] == one["rounds"]
    assert two["rounds_planned"] == 2
    assert two["policy"]["digest"] == two["rounds"][1]["policy_out"] != one["policy"]["digest"]
    # In round 0 the reference is the initial policy either way; from then on another than the round's start.
    assert two["rounds"][0]["policy_out"] == finished["rounds"][0]["policy_out"]
    assert two["rounds"][1]["policy_out"] != finished["rounds"][1]["policy_out"]


def test_recipes_lists_what_ships(ratchet: Callable[..., Said]) -> None:
    code, out, _ = ratchet("recipes")
    assert code == 0
    shipped = ["chat-judge", "chat-rm", "compare-models", "food", "reviews"]
    assert [line.split()[0] for line in out.splitlines()] == shipped
