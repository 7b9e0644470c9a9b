"""What the commands share: options, and how results are printed."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import typer

from flows import environment
from pipeline.commands import masked_settings
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


def print_status(status: dict[str, Any]) -> None:
    print_json({**status, "config": masked_settings(status["config"])})


@dataclass(frozen=True, slots=True)
class Work(Generic[Config]):
    """What ``ratchet run`` and ``ratchet data`` have apart; each imports what is heavy when it is called."""

    estimate: "Callable[[Config, Path], list[Estimate]]"
    """What it would cost at most, of the settings and the workspace."""
    flow: Callable[[Config, str, str, bool], dict[str, Any]]
    """Does it: of the settings, the run's name, the workspace and ``quiet``, gives the run's status."""
    then: Callable[[Run, dict[str, Any]], Sequence[tuple[str, str]]]
    """What to look at when it is done, of the run and its status: see :func:`say_what_next`."""


def named_run(recipe: str, name: str | None, workspace: Path) -> Run:
    """By its name, or its recipe's."""
    return Run(workspace, Path(recipe).stem if name is None else name)


def do(work: Work[Config], config: Config, run: Run, *, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Say the cost; or begin, or go on with, the run, and say what is next.

    Raises:
        ConfigError: something named is not there, the run began with other settings, or an endpoint cannot be asked.
        BusyError: somebody else is on the run.
        Whatever the work raises.
    """
    check_calls(config)
    from pipeline.prompts import check_sources

    check_sources(config.prompts)
    if dry_run:
        say_estimates(work.estimate(config, run.workspace), as_json)
        return
    _take_up(config, run, quiet)
    with environment.leaving():
        status = work.flow(config, run.name, str(run.workspace), quiet)
    if as_json:
        print_status(status)
    elif not quiet:
        from flows.console import Console

        console = Console()
        console.say("")
        say_what_next(console, status, work.then(run, status))


def _take_up(config: RunConfig | DataConfig, run: Run, quiet: bool) -> None:
    """The run can be begun or gone on with; from here on a signal ends the process in order."""
    run.check(config)
    with run.held():
        pass
    if run.status()["state"] != "complete":  # what is complete asks nobody any more
        check_endpoints(config)
    environment.leave_on_signals()
    if not quiet:
        typer.echo(f"{run.name}: {config.title or run.name}\n  starting Prefect, which takes some seconds", err=True)


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
