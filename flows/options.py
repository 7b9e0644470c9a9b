"""What the commands share: options, and how results are printed."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from flows import environment
from pipeline.config import DataConfig, RunConfig
from pipeline.recipe import check_calls, check_endpoints
from pipeline.runs import Run

if TYPE_CHECKING:
    from flows.console import Console
    from pipeline.calls.estimate import Estimate

Config = TypeVar("Config", RunConfig, DataConfig)
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


def work(
    config: Config,
    recipe: str,
    name: str | None,
    workspace: Path,
    *,
    estimate: "Callable[[Config, Path], list[Estimate]]",
    flow: Callable[[Config, str, str, bool], dict[str, Any]],
    then: Callable[[Run, dict[str, Any]], Sequence[tuple[str, str]]],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """What ``ratchet run`` and ``ratchet data`` do with their settings: say the cost, or do the work and what is next.

    Args:
        estimate: what it would cost at most, of the settings and the workspace.
        flow: does the work; of the settings, the run's name, the workspace and ``quiet``, gives the run's status. Both
            import what is heavy when they are called.
        then: what to look at when it is done, of the run and its status: see :func:`say_what_next`.

    Raises:
        ConfigError: something named is not there, the run began with other settings, or an endpoint cannot be asked.
        BusyError: somebody else is on the run.
        Whatever ``estimate`` and ``flow`` raise.
    """
    check_calls(config)
    from pipeline.prompts import check_sources

    check_sources(config.prompts)
    if dry_run:
        say_estimates(estimate(config, workspace), as_json)
        return
    run = _take_up(config, recipe, name, workspace, quiet)
    with environment.leaving():
        status = flow(config, run.name, str(workspace), quiet)
    if as_json:
        print_json(status)
    elif not quiet:
        from flows.console import Console

        console = Console()
        console.say("")
        say_what_next(console, status, then(run, status))


def _take_up(config: RunConfig | DataConfig, recipe: str, name: str | None, workspace: Path, quiet: bool) -> Run:
    """The run to begin or go on with, by its name or its recipe's; from here on a signal ends the process in order."""
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


def say_what_next(console: "Console", made: dict[str, Any], lines: Sequence[tuple[str, str]]) -> None:
    """How it ended, and lines of a word and what it stands for; a line without its word goes on with the one before."""
    from rich.markup import escape

    console.say(f"[bold]{made['state']}[/]: {escape(made['reason'])}")
    for word, text in lines:
        console.say(f"  {word:<8} {escape(text)}")


def in_workspace(run: Run) -> str:
    """What a command about the run needs at its end."""
    return f" --workspace {run.workspace}" if run.workspace != Path("workspace").resolve() else ""
