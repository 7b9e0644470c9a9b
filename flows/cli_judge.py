"""``ratchet judge``, ``ratchet annotate`` and ``ratchet votes``. Heavy imports wait in the commands."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.options import RECIPES, Json, Name, Quiet, Settings, Workspace, print_json, say_estimates
from pipeline.config import JudgeConfig, RunConfig
from pipeline.errors import ConfigError
from pipeline.recipe import check_calls, load_judge, load_reward_trainer

judge_app = typer.Typer(help="Check a judge against people, train a reward model, see what was spent.",
                        no_args_is_help=True, rich_markup_mode="markdown")  # fmt: skip
votes_app = typer.Typer(help="Votes that people cast: a summary, and exchange with Argilla and Label Studio.",
                        no_args_is_help=True, rich_markup_mode="markdown")  # fmt: skip

Recipe = Annotated[str, typer.Argument(help="A recipe, or a .toml file with nothing but [judge].")]
Votes = Annotated[Path, typer.Argument(help="The file of votes.")]


class Tool(StrEnum):
    argilla = "argilla"
    label_studio = "label-studio"


@judge_app.command(
    epilog="Examples:\n\n"
    "`ratchet judge check food`: the canaries alone\n\n"
    "`ratchet judge check my-judge.toml --labels pandalm_testset_v1.json --limit 200 --dry-run`\n\n"
    "`ratchet judge check chat-rm --labels votes.jsonl --set judge.path=org/reward-model --json`"
)
def check(
    recipe: Recipe,
    labels: Annotated[
        Path | None, typer.Option(help="People's preferences: PandaLM, LLMBar, TRL's formats, votes.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Labelled pairs to judge at most.")] = None,
    require: Annotated[
        list[str] | None, typer.Option(help="A condition, e.g. 'kappa_low >= 0.4'; else exit code 7. May be repeated.")
    ] = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="Check [evaluation.judge] instead.")] = False,
    budget: Annotated[float | None, typer.Option(min=0, help="Money, all checks of this recipe together.")] = None,
    settings: Settings = None,
    workspace: Workspace = Path("workspace"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be asked and what it costs.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """How far a judge agrees with people and with itself, whether length sways it, and which canaries fool it."""
    from pipeline.config import HealthConfig
    from pipeline.validation import validate

    required = {"labels": None if labels is None else str(labels), "require": require or []}
    conditions = validate(HealthConfig, required, "--require").require
    config = _judge_of(recipe, settings, held_out)
    from flows.console import Console
    from flows.health import check_judge, health_table
    from flows.spending import estimates, of_check
    from judges import Desk

    console = Console(quiet or as_json)
    paid_from = Desk(str(_ledger(workspace)), f"judge check {recipe}", budget)
    if dry_run:
        say_estimates(estimates(config, of_check(labels, limit), paid_from), as_json)
        return
    health = check_judge(config, labels, limit, paid_from, console)
    if as_json:
        print_json(health.to_json())
    else:
        console.terminal.print(health_table(health))
    from judges.health.figures import unmet
    from pipeline.errors import UnfitJudgeError

    if failed := unmet(health.figures, conditions):
        raise UnfitJudgeError("; ".join(failed))


@judge_app.command(
    epilog="Examples:\n\n"
    "`ratchet judge train prefs.jsonl --base org/model --out ./reward-model --dry-run`: counts, lengths, steps\n\n"
    "`ratchet judge train prefs.jsonl --base org/model --out ./reward-model`\n\n"
    "`ratchet judge train my-run:0 --base ./checkpoint --out ./rm --set learning_rate=2e-5 --set epochs=2`"
)
def train(
    pairs: Annotated[list[str], typer.Argument(metavar="PAIRS...", help="Data sets, as `ratchet train` takes them.")],
    base: Annotated[str, typer.Option(help="A checkpoint's directory, a Hub name, or a run or training by name.")],
    out: Annotated[Path, typer.Option(help="Folder for the reward model.")],
    config: Annotated[str | None, typer.Option(help="A .toml file with the training's settings.")] = None,
    settings: Settings = None,
    held_out: Annotated[str, typer.Option(help="A share or a number of the prompts, or a data set.")] = "0.1",
    split: Annotated[str | None, typer.Option(help="Split of a folder or Hub data set. Default: train.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows read of each data set.")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Longer conversations are dropped.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order, of what is held out, and of the new head.")] = 0,
    workspace: Workspace = Path("workspace"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and make nothing.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a reward model from preference pairs (Bradley-Terry); or go on with it after a kill."""
    from flows import reward
    from flows.request import Limits

    request = reward.ask(
        pairs, base, out, load_reward_trainer(config, settings or []), workspace,
        held_out=held_out, limits=Limits(split, limit, max_length), seed=seed,
    )  # fmt: skip
    from flows.console import Console
    from flows.tables import reward_plan_table, reward_table

    console = Console(quiet or as_json)
    with console.warnings():
        made = reward.plan(request, console) if dry_run else reward.train(request, console)
    if as_json:
        print_json(made)
    else:
        console.terminal.print(reward_plan_table(made) if dry_run else reward_table(made))


@judge_app.command(epilog="Examples:\n\n`ratchet judge spent`\n\n`ratchet judge spent my-run --json`")
def spent(name: Name = None, workspace: Workspace = Path("workspace"), as_json: Json = False) -> None:
    """Calls, tokens and money by judge and model: of one run, or of the whole workspace."""
    from flows.console import Console
    from flows.spending import uses_table
    from pipeline.calls.ledger import opened

    if not _ledger(workspace).exists():
        raise ConfigError(f"nothing was ever asked in {workspace}: it has no ledger")
    ledger = opened(str(_ledger(workspace)))
    uses = ledger.uses(name)
    if name is not None and not uses:
        raise ConfigError(f"nothing was asked for {name!r}; without a name, all is shown")
    print_json([asdict(use) for use in uses]) if as_json else Console(to_stdout=True).terminal.print(uses_table(uses))


ANNOTATE_EXAMPLES = (
    "Examples:\n\n"
    "`ratchet annotate my-run --votes votes.jsonl`: the newest round's candidates\n\n"
    "`ratchet annotate pairs.jsonl --votes votes.jsonl --overlap 2 --calibration known.jsonl`\n\n"
    "`ratchet annotate --votes votes.jsonl`: go on with what the file holds"
)


def annotate(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Runs (RUN or RUN:ROUND) or files of preferences.")
    ] = None,
    votes: Annotated[Path, typer.Option(help="The file that every vote is written to at once.")] = Path("votes.jsonl"),
    per_prompt: Annotated[int, typer.Option(min=1, help="Comparisons of a prompt's candidates.")] = 1,
    overlap: Annotated[int, typer.Option(min=1, help="Votes each task shall have, each of another person.")] = 1,
    calibration: Annotated[Path | None, typer.Option(help="Preferences with known labels, mixed in.")] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of calibration items.")] = 0.1,
    feedback: Annotated[bool, typer.Option(help="Say at once whether a calibration item was right.")] = False,
    annotator: Annotated[str | None, typer.Option(help="Whose votes they are; else the page asks.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of what is compared and in which order.")] = 0,
    workspace: Workspace = Path("workspace"),
) -> None:
    """Serve a page on this machine where people say which of two answers is better. Ctrl-C ends it; no vote is lost."""
    from flows.annotation import calibration_items, tasks_of
    from judges.annotation.queue import Plan
    from judges.annotation.server import serve

    tasks = [task for each in sources or [] for task in tasks_of(each, workspace, per_prompt, seed)]
    if calibration is not None:
        tasks += calibration_items(calibration)

    def announce(link: str) -> None:
        typer.echo(f"Vote at   {link}\nVotes in  {votes}\nCtrl-C ends it; the same command goes on.")

    serve(tasks, votes, annotator=annotator, port=port, plan=Plan(overlap, share, seed), feedback=feedback,
          announce=announce)  # fmt: skip


@votes_app.command(epilog="Example:\n\n`ratchet votes summary votes.jsonl --json`")
def summary(votes: Votes, as_json: Json = False) -> None:
    """Votes, what remains, agreement between annotators, and each one's calibration items and sides."""
    from flows import annotation
    from flows.console import Console

    found = annotation.summary(votes)
    if as_json:
        print_json(found)
    else:
        Console(to_stdout=True).terminal.print(annotation.summary_table(found))


@votes_app.command(
    "pairs", epilog="Example:\n\n`ratchet votes pairs votes.jsonl pairs.jsonl && ratchet judge train pairs.jsonl …`"
)
def pairs_of_votes(
    votes: Annotated[Path, typer.Argument(help="A file of votes, or any file of people's preferences.")],
    file: Annotated[Path, typer.Argument(help="A .jsonl file to write.")],
) -> None:
    """Write what most people preferred as pairs (prompt, chosen, rejected) that trainers take. Ties are left out."""
    import json

    from flows.annotation import preferences
    from judges.annotation.files import write_whole

    rows = preferences(votes)
    write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), votes)
    typer.echo(f"{len(rows)} pairs in {file}")


@votes_app.command("export", epilog="Example:\n\n`ratchet votes export votes.jsonl records.json --to argilla`")
def export_votes(
    votes: Votes,
    file: Annotated[Path, typer.Argument(help="A .json or .jsonl file to write.")],
    to: Annotated[Tool, typer.Option(help="The tool.")] = Tool.label_studio,
) -> None:
    """Write tasks and votes as Argilla's or Label Studio's records."""
    from judges.annotation.files import export_file

    typer.echo(f"{export_file(votes, file, to.value)} tasks in {file}")


@votes_app.command(
    "import", epilog="Example:\n\n`ratchet votes import export.json votes.jsonl --from label-studio --person 7=ann`"
)
def import_votes(
    file: Annotated[Path, typer.Argument(help="What the tool exported.")],
    votes: Votes,
    tool: Annotated[Tool, typer.Option("--from", help="The tool.")] = Tool.label_studio,
    person: Annotated[list[str] | None, typer.Option(help="ID=NAME of an annotator; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Take tasks and votes over from Argilla or Label Studio. Doing it twice changes nothing."""
    from judges.annotation.files import import_file

    people = dict(_named(each) for each in person or [])
    imported, new = import_file(file, votes, tool.value, people)
    found = {
        "rows": imported.rows, "tasks": len(imported.tasks), "votes": len(imported.votes), "new": new,
        "faults": dict(imported.faults), "examples": imported.examples,
    }  # fmt: skip
    if as_json:
        print_json(found)
        return
    typer.echo(f"{imported.rows} rows: {len(imported.tasks)} tasks, {len(imported.votes)} votes, {new} of them new")
    for fault, count in imported.faults.most_common():
        typer.echo(f"  {count} {fault}")
    for example in imported.examples:
        typer.echo(f"    {example}")


def _judge_of(recipe: str, settings: list[str] | None, held_out: bool) -> JudgeConfig:
    config = load_judge(recipe, RECIPES, settings or [])
    check_calls(config)
    if not held_out:
        return config.judge
    if not isinstance(config, RunConfig) or config.evaluation.judge is None:
        raise ConfigError(f"--held-out: {recipe} has no [evaluation.judge]")
    return config.evaluation.judge


def _ledger(workspace: Path) -> Path:
    from flows.judging import LEDGER

    return workspace.resolve() / LEDGER


def _named(person: str) -> tuple[str, str]:
    identifier, equals, name = person.partition("=")
    if not equals or not identifier or not name:
        raise ConfigError(f"--person {person!r}; allowed: ID=NAME")
    return identifier, name
