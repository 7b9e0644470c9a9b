"""``ratchet judge check``: whether the scores of a judge can be trusted, and how that is shown."""

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from flows.console import Console
from flows.judging import desk, judge_identity, judge_name, open_judge
from flows.session import Workshop
from pipeline.config import LimitsConfig
from pipeline.errors import DataError, UnfitJudgeError
from pipeline.store import Artifact, Draft, Spec, file_digest

if TYPE_CHECKING:
    from judges.agreement import Interval
    from judges.health.figures import Health, Slice
    from judges.labels.reading import Reading
    from pipeline.calls.request import Desk
    from pipeline.config import JudgeConfig

WORST = 8
"""Categories shown, the ones with least agreement."""
FEW = 10
"""Pairs below which a category says nothing."""


def check_judge(
    config: "JudgeConfig",
    labels: Path | None = None,
    limit: int | None = None,
    paid_from: "Desk | None" = None,
    console: Console | None = None,
    name: str = "judge",
    unanswered: float | None = None,
) -> "Health":
    """The judge's health on a file of people's preferences, or without one on the canaries alone.

    Args:
        limit: labelled pairs to judge at most, drawn from all of the file. Each is judged in both orders.
        unanswered: share of a judge's calls that may be given up. None: what a run allows by default.
        paid_from: what language models are paid from.

    Raises:
        ConfigError, DataError: the judge or the labels cannot be used as given.
        JudgeError: the judge cannot work at all.
    """
    from judges.health.check import check, drawn
    from judges.labels.reading import read_labels

    console = console or Console(quiet=True)
    pairs = []
    if labels is not None:
        reading = read_labels(labels)
        console.terminal.print(reading_table(reading, labels.name))
        pairs = drawn(reading.pairs, limit)
    share = LimitsConfig().unanswered if unanswered is None else unanswered
    with console.stage("judge check") as progress, closing(open_judge(config, name, paid_from, share)) as judge:
        return check(judge, pairs, progress=progress)


def check_fitness(session: Workshop) -> Artifact:
    """The health of the run's judge, where the recipe requires some. Raises UnfitJudgeError where it is worse."""
    from judges.health.figures import unmet

    wanted, config = session.config.health, session.config.judge
    labels = None if wanted.labels is None else Path(wanted.labels)
    inputs = {} if labels is None else {"labels": labels_digest(labels)}
    spec = Spec("health", 1, {"judge": judge_identity(config), "limit": wanted.limit}, inputs)

    def build(draft: Draft) -> Artifact:
        session.free_device("judge check")
        name = judge_name(config)
        found = check_judge(
            config, labels, wanted.limit, desk(session), session.console, name, session.config.limits.unanswered
        )
        return draft.finish(found.to_json())

    made = session.store.make(spec, build)
    if failed := unmet(made.info["figures"], wanted.require):
        raise UnfitJudgeError(f"health.require: {'; '.join(failed)}. Nothing was trained; see `ratchet judge check`")
    return made


def labels_digest(labels: Path) -> str:
    """Raises DataError where the file is not there."""
    if not labels.is_file():
        raise DataError(f"health.labels: {str(labels)!r} is not a file")
    return file_digest(labels)


def reading_table(reading: "Reading", name: str) -> RenderableType:
    """What became of the rows of a preference file; nothing is left out silently."""
    from judges.labels.faults import DROPS, FLAGS

    merged = f", {reading.merged:,} further votes on them" if reading.merged else ""
    lines = [f"{escape(name)}: {len(reading.pairs):,} pairs of {reading.rows:,} rows{merged}"]
    for fault, meaning in DROPS.items():
        if count := reading.dropped.get(fault):
            lines.append(f"  [yellow]{count:,}[/] dropped: {fault}, {meaning} [dim]({_rows(reading, fault)})[/]")
    for fault, meaning in FLAGS.items():
        if count := reading.found.get(fault):
            lines.append(f"  [dim]{count:,} noted: {fault}, {meaning} ({_rows(reading, fault)})[/]")
    return Group(*lines)


def _rows(reading: "Reading", fault: str) -> str:
    """Where to look: the first rows that have it."""
    return ", ".join(example.partition(":")[0] for example in reading.examples[fault])


def health_table(health: "Health") -> RenderableType:
    """The figures with their 95% intervals, agreement by margin and category, and the canaries."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    for label, text in [*(_people_rows(health) if health.pairs else ()), *_canary_rows(health)]:
        table.add_row(f"[dim]{label}[/]", text)
    parts: list[RenderableType] = [f"[bold]{escape(health.judge)}[/]", table]
    if len(health.by_margin) > 1:
        parts.append(_slices("margin", health.by_margin))
    known = sorted((part for part in health.by_category if part.pairs >= FEW), key=lambda part: part.agreement)
    if known:
        parts.append(_slices("category" if len(known) <= WORST else "worst categories", known[:WORST]))
    return Group(*parts)


def _people_rows(health: "Health") -> Iterator[tuple[str, str]]:
    yield "pairs", f"{health.pairs:,}, each in both orders"
    yield "agreement", f"{_of(health.agreement)} of labels; {_of(health.agreement_decided)} where people decided"
    yield "kappa", f"{_of(health.kappa)}{_alpha(health.people_alpha)}"
    yield "order", f"{_of(health.swap_consistency)} of verdicts are the same with the responses swapped"
    yield "ties", f"{_of(health.tie_rate)}; people {_figure(health.people_tie_rate)}"
    reasons = f"; {_counts(health.abstentions)}" if health.abstentions else ""
    yield "abstentions", f"{_of(health.abstention_rate)}{reasons}"
    yield (
        "length",
        (
            f"prefers the longer {_of(health.length_bias)} more often than people; correlation with length"
            f" {_of(health.length_correlation)}, people's {_figure(health.people_length_correlation)}"
        ),
    )


def _canary_rows(health: "Health") -> Iterator[tuple[str, str]]:
    found = health.canaries
    if found is None:
        return
    noted = [f"{count} {what}" for count, what in ((found.tied, "tied"), (found.abstained, "not judged")) if count]
    rest = f"; {', '.join(noted)}" if noted else ""
    share = _figure(math.nan if found.share is None else found.share)
    yield "canaries", f"{share} of {found.asked} not preferred to a decent answer{rest}"
    if found.fallen:
        yield "fell for", f"[yellow]{_counts(found.fallen)}[/]"


def _slices(title: str, slices: "list[Slice] | tuple[Slice, ...]") -> RenderableType:
    table = Table(title, box=SIMPLE)
    for column in ("pairs", "agreement"):
        table.add_column(column, justify="right")
    for part in slices:
        table.add_row(escape(part.name), f"{part.pairs:,}", f"{part.agreement:.3f}")
    return Padding(table, (0, 0, 0, 1))


def _alpha(value: float) -> str:
    return "" if math.isnan(value) else f"; people among themselves: alpha {value:.3f}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{escape(name)} {count:,}" for name, count in counts.items())


def _of(interval: "Interval") -> str:
    """``0.612 (0.580 to 0.644)``, in the manner of flows.console."""
    known = not math.isnan(interval.low)
    return _figure(interval.value) + (f" ({interval.low:.3f} to {interval.high:.3f})" if known else "")


def _figure(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:.3f}"
