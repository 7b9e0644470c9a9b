"""What the commands share: options, and how results are printed."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import environment
from pipeline.config import DataConfig, RunConfig
from pipeline.recipe import check_endpoints
from pipeline.runs import Run

if TYPE_CHECKING:
    from pipeline.calls.estimate import Estimate

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


def take_up(config: RunConfig | DataConfig, recipe: str, name: str | None, workspace: Path, quiet: bool) -> Run:
    """The run to begin or go on with, by its name or its recipe's; from here on a signal ends the process in order.

    Raises:
        ConfigError: the run began with other settings, or an endpoint could not be asked.
        BusyError: somebody else is on it.
    """
    run = Run(workspace, Path(recipe).stem if name is None else name)
    run.check(config)
    with run.held():
        pass
    if run.status()["state"] != "complete":  # what is complete asks nobody any more
        check_endpoints(config)
    environment.leave_on_signals()
    if not quiet:
        typer.echo(f"{run.name}: {config.title or recipe}\n  starting Prefect, which takes some seconds", err=True)
    return run


def say_estimates(found: "list[Estimate]", as_json: bool) -> None:
    from flows.console import Console
    from flows.spending import estimates_table

    if as_json:
        print_json([asdict(each) for each in found])
    else:
        Console(to_stdout=True).terminal.print(estimates_table(found))


def command() -> str:
    """``ratchet`` as one can type it here: a virtual environment that is not active needs its path."""
    return "ratchet" if shutil.which("ratchet") else sys.argv[0]
