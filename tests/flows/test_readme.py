"""What the README shows can be typed: its commands are commands, its settings are settings."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli import app
from pipeline.config import RunConfig

from .small import ROOT

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
SETTINGS = [tomllib.loads(block) for language, block in BLOCKS if language == "toml"]
LINES = [
    line.partition(" #")[0].partition("ratchet ")[2]
    for language, block in BLOCKS
    for line in block.replace("\\\n", "").splitlines()
    if not language and re.match(r"(\$ |[A-Z_]+=\S+ )?ratchet ", line)
]


def typed(line: str) -> None:
    """Read the line as the command line would, and do nothing. Raises where it could not be read."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("ratchet", words)


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_is_one(line: str) -> None:
    typed(line)


def test_a_command_that_is_none_would_be_noticed() -> None:
    assert len(LINES) > 25
    for wrong in ("run", "judge chek a", "run food --nmae b", "export food", "train a.jsonl --held-out 0.1"):
        with pytest.raises(Exception, match=r"(?i)chek|missing|no such option"):
            typed(wrong)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(settings))
def test_settings_of_the_readme_are_a_recipes(settings: dict[str, Any]) -> None:
    whole = next(each for each in SETTINGS if "policy" in each)
    RunConfig.model_validate({**whole, **settings})


def test_files_that_the_readme_names_are_there() -> None:
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    named = re.findall(r"`((?:flows|judges|pipeline|trainers|tests)/[\w./]*)`", TEXT)
    assert len(linked) > 4 and len(named) > 4
    assert [name for name in [*linked, *named] if not (ROOT / Path(name)).exists()] == []
