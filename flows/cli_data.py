"""``ratchet data``, ``pair``, ``export`` and ``trace``: preference data and where it came from. Heavy imports wait."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import (
    RECIPES,
    Json,
    Quiet,
    Settings,
    Work,
    Workspace,
    command,
    do,
    in_workspace,
    named_run,
    print_json,
)
from flows.sources import OF_RUN
from pipeline.config import DataConfig
from pipeline.errors import ConfigError
from pipeline.recipe import load_data_recipe
from pipeline.runs import Run

if TYPE_CHECKING:
    from pipeline.calls.estimate import Estimate

DATA_EXAMPLES = (
    "Examples:\n\n"
    "`ratchet data compare-models --set vars.prompts=questions.jsonl --set vars.first=a --set vars.second=b`\n\n"
    "`ratchet data my-data.toml --dry-run`: calls, tokens and cost; asks nothing\n\n"
    "`ratchet train compare-models --policy org/model`: then, on its pairs"
)
PAIR_EXAMPLES = (
    "Examples:\n\n"
    "`ratchet pair food --set pairing.margin=0.5`\n\n"
    "`ratchet pair food:0 --margins`: what would each margin keep?\n\n"
    "`ratchet pair food --set pairing.rule=all_pairs --set pairing.pairs_per_prompt=4 --json`"
)
EXPORT_EXAMPLES = (
    "Examples:\n\n"
    "`ratchet export food --to ./food-data`\n\n"
    "`ratchet export food:1 --to ./food-policy --what policy`: of round 1, in the place of the best one\n\n"
    "`ratchet export food --to hub:my-org/food --what both --license apache-2.0`: private, a revision a round\n\n"
    "`ratchet export food --to ./wide-pairs --set pairing.margin=0.5`: pairs made anew, as by `ratchet pair`\n\n"
    "`ratchet train ./food-data --policy org/model`"
)
TRACE_EXAMPLES = (
    "Examples:\n\n"
    "`ratchet trace food`: some of its pairs' ids\n\n"
    "`ratchet trace 3f2a9c1e`: the first eight digits or more of one\n\n"
    "`ratchet trace 3f2a9c1e --json | jq .judgment`"
)
Ran = Annotated[str | None, typer.Argument(metavar="RUN", help="A run, or RUN:ROUND; the newest where none is given.")]


def data(
    recipe: Annotated[str, typer.Argument(help="`compare-models`, or a path to a .toml file.")],
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: the recipe's.")] = None,
    workspace: Workspace = Path("workspace"),
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what models and judges would cost at most.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make preference data without training: models answer, a judge scores, pairs come out. Goes on after a kill."""
    config, asked = load_data_recipe(recipe, RECIPES / "data", settings or []), named_run(recipe, name, workspace)
    do(Work(_cost, _made, next_of), config, asked, dry_run=dry_run, quiet=quiet, as_json=as_json)


def pair(
    run: Ran = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="pairing.KEY=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    margins: Annotated[
        bool,
        typer.Option("--margins", help="What would each margin keep? Makes nothing."),
    ] = False,
    workspace: Workspace = Path("workspace"),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Pair a run's candidates anew, by other settings: nothing is sampled or judged, and the run stays as it is."""
    name, number = _run_and_round(run)
    found = Run.existing(workspace, name)
    from flows import pairing
    from flows.console import Console

    make, show = (
        (pairing.preview_margins, pairing.margins_table) if margins else (pairing.repair, pairing.pairs_table)
    )  # fmt: skip
    rounds = None if number is None else [number]
    made = make(found, Console(quiet or as_json), rounds=rounds, overrides=settings or [])
    print_json(made) if as_json else Console(quiet, to_stdout=True).terminal.print(show(made), soft_wrap=True)


def export(
    run: Ran = None,
    *,
    to: Annotated[str, typer.Option(metavar="DIR|hub:ORG/NAME", help="A new folder, or a repository of the Hub.")],
    what: Annotated[str, typer.Option(help="data, policy, or both.")] = "data",
    rounds: Annotated[
        list[int] | None, typer.Option(help="Whose data; may be repeated. Default: that of RUN:ROUND, or all.")
    ] = None,
    licence: Annotated[str, typer.Option("--license", help="The Hub's name of one, e.g. apache-2.0.")] = "unknown",
    language: Annotated[list[str] | None, typer.Option(help="ISO 639 code; may be repeated.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    move_tags: Annotated[bool, typer.Option("--move-tags", help="Let a round's tag name another export.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="pairing.KEY=VALUE", help="Export the pairs that `ratchet pair` makes so."),
    ] = None,
    workspace: Workspace = Path("workspace"),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a run's data set or policy, with its card: preference pairs, candidates, judgments, drops; safetensors.
    The policy is the best one, or that of RUN:ROUND."""
    name, number = _run_and_round(run)
    if rounds and number is not None and what == "data":
        raise ConfigError(f"--rounds {rounds[0]} beside {run!r}; allowed: one of them")
    own = None if number is None or what == "policy" else [number]
    from flows.console import Console
    from flows.export import export as write
    from flows.export import exported

    made = write(
        name, to, workspace, what, rounds=rounds or own, round=None if what == "data" else number,
        licence=licence, languages=language or (),
        private=not public, move_tags=move_tags, overrides=settings or (), console=Console(quiet or as_json),
    )  # fmt: skip
    print_json(made) if as_json else Console(quiet, to_stdout=True).terminal.print(exported(made), soft_wrap=True)


def trace(
    pair: Annotated[str | None, typer.Argument(metavar="PAIR_ID", help="A pair's id, its beginning, or a run.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Pairs listed of a run.")] = 20,
    workspace: Workspace = Path("workspace"),
    as_json: Json = False,
) -> None:
    """Walk from a pair to its prompt, candidates, scores, judge calls, policy, and the commands that made them."""
    from flows import trace as tracing
    from flows.console import Console

    terminal = Console(to_stdout=True).terminal
    name, number = _run_and_round(pair)
    if name is None or (workspace / "runs" / name).is_dir():
        listed = tracing.pair_ids(name, number, limit, workspace)
        if as_json:
            print_json(listed)
        for each in () if as_json else listed:
            terminal.print(f"{each['id']}  [dim]round {each['round']}[/]", highlight=False)
        return
    from flows.trace_tree import trace_tree

    assert pair is not None, "no name is the newest run"
    found = tracing.trace(pair, workspace)
    print_json(found) if as_json else terminal.print(trace_tree(found), highlight=False)


def _run_and_round(given: str | None) -> tuple[str | None, int | None]:
    """Of ``RUN`` or ``RUN:ROUND``; what is neither is taken for a name, for others to refuse."""
    parts = OF_RUN.fullmatch(given or "")
    if parts is None:
        return given, None
    return parts["run"], None if parts["round"] is None else int(parts["round"])


def _cost(config: DataConfig, workspace: Path) -> "list[Estimate]":
    from flows.spending import estimating, of_data

    return of_data(config, estimating(workspace))


def _made(config: DataConfig, name: str, workspace: str, quiet: bool) -> dict[str, Any]:
    from flows.data import preference_data

    return preference_data(config, name, workspace, quiet)


def next_of(made: Run, status: dict[str, Any]) -> list[tuple[str, str]]:
    """What to do with the data; without a pair there is nothing to train on."""
    at = in_workspace(made)
    export = ("next", f"{command()} export {made.name} --to ./{made.name}{at}")
    paired = any(entry["pairs"] for entry in status["rounds"])
    return [export, *([("", f"{command()} train {made.name} --policy …{at}")] if paired else [])]
