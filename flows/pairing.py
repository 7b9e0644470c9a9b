"""``ratchet pair``: the pairs of a run's rounds made anew, by other settings, from what it sampled and judged.

Nothing is sampled or judged, and the run stays as it is: its own pairs, the policy it trained on them, its records. The
new pairs are artifacts like any other, with a readable link each under the run's ``links``. They need no name of their
own: the same settings lead to the same artifacts, so ``ratchet export`` takes the settings.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from flows.console import Console
from flows.offline import Bench
from flows.options import command, in_workspace
from flows.stages import pair_by
from flows.summary import PROPOSALS, margin_figures
from pipeline.config import PairingConfig
from pipeline.errors import ConfigError
from pipeline.pairing.artifact import Round, survey, workers
from pipeline.pairing.preview import preview
from pipeline.recipe import load_pairing
from pipeline.runs import Run
from pipeline.store import Artifact

Entry = Mapping[str, Any]
BEFORE_PAIRS = ("sampled", "candidates", "judgments")
"""Artifacts of a round that pairs are made from."""
BY_MARGIN = ("pairing.margin", "pairing.margin_unit", "pairing.keep")
"""Settings that a preview of margins takes the place of."""


# ---------------------------------------------------------------------------------------------- doing it
def repair(
    run: Run, console: Console, *, rounds: Sequence[int] | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Pair the finished rounds of a run, or those, by its own settings with ``overrides`` (``pairing.KEY=VALUE``).

    Returns:
        JSON-serialisable: ``run``, ``pairing`` (the settings), ``changed`` (the overrides), ``next`` (how these pairs
        are exported; empty where all are the run's own) and ``rounds``, each with its ``pairs``, the ``groups`` they
        are of, those ``paired``, those ``dropped`` by reason, the ``margin`` of the pairs, the artifact's ``key`` and
        ``path``, a readable ``link``, and whether these are the pairs the run trained on (``own``).

    Raises:
        ConfigError: a setting is wrong, or the run has no such round.
        StoreError: what was sampled or judged is gone.
    """
    status = run.status()
    config = load_pairing(status["config"], overrides)
    place = Bench(run.workspace, console)
    made = []
    for entry in _rounds(status, rounds):
        candidates, judgments = _stored(run, entry)
        pairs = pair_by(place, candidates, judgments, config, entry["round"], status["config"]["limits"]["threads"])
        link = f"round-{entry['round']:03d}/pairs-{pairs.key[:8]}"
        run.link(link, pairs.path)
        made.append(
            {
                "round": entry["round"], "pairs": pairs.manifest["rows"], "paired": pairs.manifest["kept"],
                "groups": pairs.manifest["kept"] + sum(pairs.manifest["dropped"].values()),
                "dropped": pairs.manifest["dropped"], "margin": margin_figures(pairs), "key": pairs.key,
                "path": str(pairs.path), "link": str(run.directory / "links" / link),
                "own": pairs.key == entry["artifacts"].get("pairs"),
            }
        )  # fmt: skip
    settings = config.model_dump(mode="json", exclude={"replay"})
    run.note_pairs(settings, [each["key"] for each in made if not each["own"]])
    own = not overrides or all(each["own"] for each in made)
    return {
        "run": run.name, "pairing": settings, "changed": list(overrides), "rounds": made,
        "next": "" if own else _export(run, rounds, overrides),
    }  # fmt: skip


def preview_margins(
    run: Run, console: Console, *, rounds: Sequence[int] | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """What would each margin keep, of the pairs that the other settings give? Makes nothing.

    Returns:
        JSON-serialisable: ``run`` and ``rounds``, each with its ``groups``, the ``sigma`` of its scores and
        ``margins``: see :func:`pipeline.pairing.preview.preview`.

    Raises:
        As :func:`repair`.
    """
    status = run.status()
    asked = load_pairing(status["config"], overrides)
    if idle := [each for each in overrides if each.partition("=")[0].strip() in BY_MARGIN]:
        raise ConfigError(f"--set {idle[0]!r} has no effect with --margins, which shows what every margin keeps")
    config = asked.model_copy(update={"margin": 0.0, "margin_unit": "sigma", "keep": 1.0})
    made = []
    for entry in _rounds(status, rounds):
        source = Round(*_stored(run, entry))
        with console.stage("margins", source.groups):
            made.append({"round": entry["round"], "groups": source.groups, **_preview(source, config, status)})
    return {"run": run.name, "rounds": made}


class PairedAnew(Run):
    """A run with the pairs that :func:`repair` made of it in the place of its own, for what reads its status: an
    export, say. What it did with its own pairs, and what came of that, is not there: nothing was trained on these."""

    def __init__(self, run: Run, made: Entry) -> None:
        super().__init__(run.workspace, run.name)
        self._made = made

    def status(self) -> dict[str, Any]:
        """The run's, with ``paired_anew``: the ``pairing`` settings, and those of them that were ``changed``."""
        own = super().status()
        anew = {each["round"]: each for each in self._made["rounds"]}
        return {
            **own, "best_round": -1, "policy": None, "initial": own["initial"] and {**own["initial"], "evaluation": {}},
            "rounds": [_paired_anew(each, anew[each["round"]]) for each in own["rounds"] if each["round"] in anew],
            "paired_anew": {name: self._made[name] for name in ("pairing", "changed")},
        }  # fmt: skip


def _paired_anew(entry: Entry, made: Entry) -> dict[str, Any]:
    keys = entry["artifacts"]
    upstream = {name: key for name, key in keys.items() if name in BEFORE_PAIRS or name.startswith(PROPOSALS)}
    return {
        **entry, **{name: made[name] for name in ("pairs", "paired", "groups", "dropped", "margin")},
        "policy_out": entry["policy_in"], "training": {}, "evaluation": {}, "gate": {},
        "artifacts": {**upstream, "pairs": made["key"]},
    }  # fmt: skip


def _preview(source: Round, config: PairingConfig, status: Entry) -> dict[str, Any]:
    with workers(status["config"]["limits"]["threads"], len(source)) as each:
        yardstick = survey(source, config, each)
        return {"sigma": yardstick.sigma, "margins": preview(source, config, yardstick, each)}


def _export(run: Run, rounds: Sequence[int] | None, overrides: Sequence[str]) -> str:
    words = [command(), "export", run.name, *(word for number in rounds or () for word in ("--rounds", str(number)))]
    settings = [word for each in overrides for word in ("--set", each)]
    return f"{shlex.join([*words, *settings, '--to'])} DIR{in_workspace(run)}"


def _rounds(status: Entry, rounds: Sequence[int] | None) -> list[Entry]:
    judged = {entry["round"]: entry for entry in status["rounds"] if entry["artifacts"].get("judgments")}
    missing = [number for number in rounds or () if number not in judged]
    if missing or not judged:
        there = ", ".join(map(str, judged)) or "none yet"
        wanted = f"finished round {missing[0]}" if missing else "finished rounds"
        raise ConfigError(f"run {status['name']!r} has no {wanted} to pair anew; it has {there}")
    return [entry for number, entry in judged.items() if rounds is None or number in rounds]


def _stored(run: Run, entry: Entry) -> tuple[Artifact, Artifact]:
    """The round's candidates and judgments."""
    keys = entry["artifacts"]
    return run.store.get("candidates", keys["candidates"]), run.store.get("judgments", keys["judgments"])


# ---------------------------------------------------------------------------------------------- showing it
def pairs_table(result: Entry) -> RenderableType:
    """A line a round, under it why groups gave no pair, and how these pairs are exported."""
    table = Table("round", box=SIMPLE)
    for column in ("pairs", "prompts", "of", "mean margin", "median"):
        table.add_column(column, justify="right")
    notes = []
    for entry in result["rounds"]:
        margin = entry["margin"]
        figures = (f"{margin['mean']:.3f}", f"{margin['median']:.3f}") if margin else ("", "")
        counts = (entry["pairs"], entry["paired"], entry["groups"])
        table.add_row(str(entry["round"]), *(f"{count:,}" for count in counts), *figures)
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in entry["dropped"].items()) or "none"
        own = " (the run's own)" if entry["own"] else ""
        notes += [f"round {entry['round']}: dropped: {dropped}", f"  [dim]{entry['link']}{own}[/]"]
    if result["next"]:
        notes.append(escape(f"next: {result['next']}"))
    return Group(table, *(Padding(note, (0, 2)) for note in notes))


def margins_table(result: Entry) -> RenderableType:
    """A table a round, a line a margin."""
    return Group(*(_margins(entry) for entry in result["rounds"]))


def _margins(entry: Entry) -> RenderableType:
    table = Table(title=f"round {entry['round']}: what would each margin keep?", box=SIMPLE, title_justify="left")
    for column in ("margin", "in σ", "prompts", "pairs", "share", "mean margin", "longer chosen"):
        table.add_column(column, justify="right")
    for row in entry["margins"]:
        sigma = "" if row["sigma"] is None else f"{row['sigma']:.2f}"
        table.add_row(
            f"{row['margin']:g}", sigma, f"{row['prompts']:,}", f"{row['pairs']:,}", f"{row['share']:.0%}",
            f"{row['mean_margin']:.4g}", f"{row['chosen_longer']:.0%}",
        )  # fmt: skip
    return table if entry["margins"] else Group(table, Padding("no group gives a pair", (0, 2)))
