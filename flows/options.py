"""What the commands share: options, and how results are printed."""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

RECIPES = Path(__file__).parent / "recipes"

Workspace = Annotated[
    Path, typer.Option(envvar="RATCHET_WORKSPACE", help="Folder that holds all runs and everything they make.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
]
Quiet = Annotated[bool, typer.Option(help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Name = Annotated[str | None, typer.Argument(help="A run's name; the newest run where none is given.")]


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def command() -> str:
    """``ratchet`` as one can type it here: a virtual environment that is not active needs its path."""
    return "ratchet" if shutil.which("ratchet") else sys.argv[0]
