"""The report's tables: a row a figure, a column a round, each number written as its unit asks."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.figures import (
    DATA,
    DROP_REASONS,
    EVALUATION,
    LEFT_OUT,
    MISSING,
    MISSING_REASONS,
    STAGES,
    TRAINING,
    Figure,
    duration,
    interval,
    probe,
    stage_names,
    training_figure,
    write,
)  # fmt: skip

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    note: str = ""
    """Small print under the figure: an interval, a share."""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    meaning: str
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class Grid:
    """A table with one column a round."""

    columns: Sequence[str]
    rows: Sequence[Row]


def evaluation(stages: Sequence[Entry], config: Entry) -> Grid:
    """Every figure of the held-out evaluation, then the probes."""
    evaluations = [entry.get("evaluation") or {} for entry in stages]
    apart = ("probes", "judge", "judge_labelled")
    figures = [{name: value for name, value in entry.items() if name not in apart} for entry in evaluations]
    probes = [entry.get("probes") or {} for entry in evaluations]
    known = {name: Figure(name, probe(name, config).unit) for entry in probes for name in entry}
    return Grid(_names(stages), [*_rows(EVALUATION, figures), *_rows(known, probes)])


def training(rounds: Sequence[Entry]) -> Grid:
    """The last optimiser step of each round."""
    entries = [entry.get("training") or {} for entry in rounds]
    made_up = {name: training_figure(name) for entry in entries for name in entry}
    return Grid(_names(rounds), list(_rows({**TRAINING, **made_up}, entries)))


def data(rounds: Sequence[Entry]) -> Grid:
    """What was judged, kept and dropped, and how it scored; before it, what never came to be judged, if anything."""
    head = {name: DATA[name] for name in ("groups", "paired", "pairs")}
    flat = [
        {**_never_judged(entry), **{name: entry.get(name) for name in head},
         **{f"{kind}/{name}": value for kind in ("margin", "scores", "dropped")
            for name, value in (entry.get(kind) or {}).items()}}
        for entry in rounds
    ]  # fmt: skip
    reasons = dict.fromkeys(reason for entry in rounds for reason in entry.get("dropped") or {})
    drops = {f"dropped/{name}": Figure(f"Dropped: {name}", "count", DROP_REASONS.get(name, "")) for name in reasons}
    lost = {name: _lost(name) for entry in rounds for name in _never_judged(entry)}
    return Grid(_names(rounds), list(_rows({**lost, **head, **drops, **DATA}, flat)))


def _never_judged(entry: Entry) -> dict[str, int]:
    """Prompts and candidates of several models that no group has, where there are some."""
    missing = {
        f"missing/{model or 'the policy'}/{reason}": count
        for model, reasons in (entry.get("missing") or {}).items()
        for reason, count in reasons.items()
    }
    return {**({"left_out": entry["left_out"]} if entry.get("left_out") else {}), **missing}


def _lost(name: str) -> Figure:
    if name == "left_out":
        return LEFT_OUT
    model, _, reason = name.removeprefix("missing/").rpartition("/")
    return Figure(f"Missing of {model}: {reason}", "count", MISSING_REASONS.get(reason, "the call was given up"))


def gate(rounds: Sequence[Entry]) -> Grid:
    """Each condition with the value it was held against."""
    found = [{check["condition"]: check for check in (entry.get("gate") or {}).get("checks") or ()} for entry in rounds]
    rows = [
        Row(condition, "", [_checked(checks.get(condition)) for checks in found])
        for condition in dict.fromkeys(condition for checks in found for condition in checks)
    ]
    decisions = [Cell((entry.get("gate") or {}).get("decision") or MISSING) for entry in rounds]
    return Grid(_names(rounds), [*rows, Row("decision", "", decisions)])


def time(stages: Sequence[Entry]) -> Grid:
    """Seconds by stage, with sums over stages and over rounds; then the memory the engine gave back, if any."""
    seconds = [entry.get("seconds") or {} for entry in stages]
    names = stage_names(seconds)
    rows = [Row(name, STAGES.get(name, ""), _summed([entry.get(name) for entry in seconds])) for name in names]
    if names:
        totals = [sum(entry.values()) for entry in seconds]
        rows.append(Row("all", "", [Cell(duration(total)) for total in [*totals, sum(totals)]]))
    memory = [entry.get("memory") or {} for entry in stages]
    for name in dict.fromkeys(name for entry in memory for name in entry):
        cells = [Cell(write(entry.get(name))) for entry in memory]
        rows.append(Row(name, "GiB the engine gave back", [*cells, Cell(MISSING)]))
    return Grid([*_names(stages), "all"], rows)


def round_name(entry: Entry) -> str:
    return "initial" if entry.get("round") == -1 else f"round {entry.get('round')}"


# ---------------------------------------------------------------------------------------------- pieces
def _names(entries: Sequence[Entry]) -> list[str]:
    return [round_name(entry) for entry in entries]


def _rows(known: Mapping[str, Figure], entries: Sequence[Entry]) -> Iterator[Row]:
    """A row a figure that any of ``entries`` has: the known ones first, in their order."""
    names = dict.fromkeys([*known, *(name for entry in entries for name in entry)])
    for name in names:
        base = re.sub(r"_(low|high)$", "", name)
        values = [entry.get(name) for entry in entries]
        if all(value is None for value in values) or (base != name and any(base in entry for entry in entries)):
            continue
        figure = known.get(name, Figure(name))
        yield Row(
            figure.label, figure.meaning,
            [Cell(write(entry.get(name), figure.unit), interval(entry, name, figure.unit)) for entry in entries],
        )  # fmt: skip


def _checked(check: Entry | None) -> Cell:
    if check is None:
        return Cell(MISSING)
    return Cell(write(check["value"]), "✓ holds" if check["passed"] else "✕ fails", failed=not check["passed"])


def _summed(seconds: Sequence[float | None]) -> list[Cell]:
    return [Cell(write(value, "seconds")) for value in [*seconds, sum(value or 0.0 for value in seconds)]]
