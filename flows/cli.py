"""The command ``ratchet``. Nothing heavy is imported until a command needs it, so help and errors come at once."""

import errno
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from flows import cli_data
from flows.cli_judge import ANNOTATE_EXAMPLES, annotate, judge_app, votes_app
from flows.options import (
    RECIPES,
    Json,
    Name,
    Quiet,
    Settings,
    Work,
    Workspace,
    command,
    do,
    in_workspace,
    named_run,
    print_json,
    print_status,
    say_what_next,
)
from pipeline.config import RunConfig
from pipeline.errors import RatchetError, StoreError
from pipeline.recipe import load_recipe, load_trainer
from pipeline.runs import Run

if TYPE_CHECKING:
    from pipeline.calls.estimate import Estimate

app = typer.Typer(
    help="Iterative DPO that only moves forward: sample, judge, pair, train, evaluate, gate, in rounds.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
"""What the system says where there is no room, or no leave to write."""

app.add_typer(judge_app, name="judge")
app.add_typer(votes_app, name="votes")


@app.command(
    epilog="Examples:\n\n"
    "`ratchet run food`: the demo\n\n"
    "`ratchet run food --name beta-1 --set trainer.beta=1.0 --set rounds=2`\n\n"
    "`ratchet run chat-rm --set policy.path=org/model --workspace /data/ratchet`\n\n"
    "`ratchet run my-recipe.toml --json > status.json`"
)
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `ratchet recipes`) or a path to a .toml file.")],
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: the recipe's.")] = None,
    workspace: Workspace = Path("workspace"),
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the judges would cost at most.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run rounds of online DPO, or go on with a run that was interrupted: the same command does both."""
    config, asked = load_recipe(recipe, RECIPES, settings or []), named_run(recipe, name, workspace)
    do(Work(_cost, _rounds, _policy_and_report), config, asked, dry_run=dry_run, quiet=quiet, as_json=as_json)


@app.command(
    epilog="Examples:\n\n"
    "`ratchet train prefs.jsonl --policy my-org/my-model`\n\n"
    "`ratchet train prefs.jsonl --policy ./checkpoint --held-out 0.05 --set beta=0.05 --set learning_rate=1e-6`\n\n"
    "`ratchet train trl-lib/ultrafeedback_binarized --policy ./checkpoint --dry-run`\n\n"
    "`ratchet train help=a.jsonl safe=b.parquet --policy ./checkpoint --set betas.safe=0.3`\n\n"
    "`ratchet train thumbs.jsonl --policy ./checkpoint --set 'loss=[{type=\"kto\"}]'`\n\n"
    "`ratchet train food --policy food --set lora.rank=16 --out ./next`: all pairs of a run, on its last policy"
)
def train(
    pairs: Annotated[
        list[str],
        typer.Argument(
            metavar="PAIRS...",
            help="Data sets: files or folders in any of TRL's formats (completions: one message), Hub names, or"
            " a run's pairs (RUN, RUN:ROUND); NAME= before one names it, for `betas`, where rows have no source.",
        ),
    ],
    policy: Annotated[str, typer.Option(help="A checkpoint's directory, a Hub name, or a run or training by name.")],
    config: Annotated[str | None, typer.Option(help="A .toml file with a trainer's settings, or a recipe.")] = None,
    settings: Settings = None,
    held_out: Annotated[
        str | None, typer.Option(help="To evaluate on: a share or a number of the prompts, or a data set.")
    ] = None,
    held_out_split: Annotated[str | None, typer.Option(help="Split of a held-out folder or Hub data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a folder or Hub data set. Default: train.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows read of each data set.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Longer rows are dropped. Default: what the policy takes.")
    ] = None,
    max_prompt: Annotated[int | None, typer.Option(min=1, help="Longer prompts keep their end.")] = None,
    max_completion: Annotated[int | None, typer.Option(min=1, help="Longer completions keep their start.")] = None,
    reference_policy: Annotated[str | None, typer.Option(help="In place of the policy itself.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the data and of what is held out.")] = 0,
    name: Annotated[str | None, typer.Option(help="Name of the training. Default: of the data, with a digest.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder to copy the policy to.")] = None,
    workspace: Workspace = Path("workspace"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and make nothing.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a policy on preferences there are already, without sampling or judging; or go on with it after a kill."""
    from flows.request import Limits, ask

    request = ask(
        pairs, policy, load_trainer(config, settings or []), workspace,
        reference_policy=reference_policy, held_out=held_out, held_out_split=held_out_split,
        limits=Limits(split, limit, max_length, max_prompt, max_completion), seed=seed, name=name, out=out,
    )  # fmt: skip
    from flows import offline
    from flows.console import Console
    from flows.tables import outcome_table, plan_table

    console = Console(quiet or as_json)
    with console.warnings():
        made = offline.plan(request, console) if dry_run else offline.train(request, console)
    if as_json:
        print_json(made)
        return
    console.terminal.print(plan_table(made) if dry_run else outcome_table(made))
    if not dry_run:
        say_what_next(console, made, _after_training(made))


@app.command(epilog="Examples:\n\n`ratchet status`\n\n`ratchet status food --json | jq .rounds[-1].evaluation`")
def status(name: Name = None, workspace: Workspace = Path("workspace"), as_json: Json = False) -> None:
    """What a run has done so far: rounds, pairs, win rates, the gate's decisions."""
    found = Run.existing(workspace, name).status()
    if as_json:
        print_status(found)
        return
    from flows.console import Console

    Console(to_stdout=True).run_table(found)


@app.command(epilog="Example:\n\n`ratchet report food`")
def report(name: Name = None, workspace: Workspace = Path("workspace")) -> None:
    """Write the run's report page anew and print its path."""
    from pipeline.report import write_report

    found = Run.existing(workspace, name)
    typer.echo(write_report(found.status(), found.store, found.directory / "report.html", found.commands()))


app.command(epilog=cli_data.DATA_EXAMPLES)(cli_data.data)
app.command(epilog=cli_data.PAIR_EXAMPLES)(cli_data.pair)
app.command(epilog=cli_data.TRACE_EXAMPLES)(cli_data.trace)
app.command(epilog=cli_data.EXPORT_EXAMPLES)(cli_data.export)
app.command(epilog=ANNOTATE_EXAMPLES)(annotate)


@app.command()
def recipes() -> None:
    """List the recipes that come with Ratchet."""
    for file in sorted(RECIPES.rglob("*.toml")):
        comment = file.read_text().splitlines()[0].removeprefix("#").strip()
        typer.echo(f"{file.stem:<15} {comment}")


@app.command()
def doctor(workspace: Workspace = Path("workspace"), as_json: Json = False) -> None:
    """Say what this machine has, what is wrong, and how to mend it. Exits with 1 where something is wrong."""
    from dataclasses import asdict

    from flows.console import Console
    from flows.doctor import examine

    findings = examine(workspace)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        Console(to_stdout=True).findings_table(findings)
    raise typer.Exit(any(finding.status == "wrong" for finding in findings))


def main() -> NoReturn:
    """All commands: a user's mistake, or a disk that takes no more, is one line and an exit code; only bugs have
    tracebacks."""
    try:
        app(standalone_mode=True)
    except RatchetError as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in DISK:
            raise
        print(f"error: {error}; what is finished is kept", file=sys.stderr)
        sys.exit(StoreError.exit_code)
    sys.exit(0)


def _cost(config: RunConfig, workspace: Path) -> "list[Estimate]":
    from flows.spending import estimating, of_whole_run

    return of_whole_run(config, estimating(workspace))


def _rounds(config: RunConfig, name: str, workspace: str, quiet: bool) -> dict[str, Any]:
    from flows.online import online_dpo  # Prefect, torch and everything else that takes seconds

    return online_dpo(config, name, workspace, quiet)


def _policy_and_report(made: Run, status: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("policy", f"{made.directory / 'links' / 'policy'} (round {status['best_round']})"),
        ("report", str(made.directory / "report.html")),
        ("next", f"{command()} status {made.name}{in_workspace(made)}"),
    ]


def _after_training(made: dict[str, Any]) -> list[tuple[str, str]]:
    # Where a guard fired, it went too fast; where each loss has a β of its own, or none, the trainer's is nobody's.
    shared = any(term.get("beta", 0) is None for term in made["config"]["loss"])
    changed = "beta" if made["state"] == "complete" and shared else "learning_rate"
    return [
        ("policy", made["out"] or made["directory"] + "/policy"),
        ("watch", f"tensorboard --logdir {made['tensorboard']}"),
        ("next", _beside(sys.argv[1:], changed, made["config"][changed] / 2)),
    ]


def _beside(arguments: list[str], key: str, value: float) -> str:
    """The command that was given, with another value of one setting: a training beside it, of another name."""
    own = [i for i, each in enumerate(arguments) if each.partition("=")[0] in ("--name", "--out")]
    own += [i for i, each in enumerate(arguments) if each == "--set" and arguments[i + 1].startswith(f"{key}=")]
    own += [i + 1 for i in own if "=" not in arguments[i]]
    own += [i for i, each in enumerate(arguments) if each.startswith(f"--set={key}=")]
    kept = [each for i, each in enumerate(arguments) if i not in own]
    return f"{command()} {shlex.join(kept)} --set {key}={value:g}"
