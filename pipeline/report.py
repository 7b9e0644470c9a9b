"""The report of a run: one HTML file that stands alone, opens from disk and asks the network for nothing.

``status`` (``Run.status()``) says what happened, the store holds the evidence; both become plain strings here, and
``templates/report.html`` says where they stand. Prompts and completions are untrusted text: the template escapes
everything but the charts, and the page forbids itself scripts and requests.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import charts
from pipeline.evidence import Evidence, gather
from pipeline.figures import DATA, DROP_REASONS, EVALUATION, MISSING, TRAINING, Figure, duration, interval, write
from pipeline.store import Store
from pipeline.texts import fold, one_line, short, toml_lines

PLAIN = ("name", "description", "reason", "policy", "command", "workspace", "directory")
"""What the page takes from the status as it is; empty where the status has none."""


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


def write_report(status: Mapping[str, Any], store: Store, path: Path) -> Path:
    """Write the report of one run to ``path``, whole or not at all.

    Args:
        status: what ``Run.status()`` gives; a run that goes on, or has no rounds yet, is fine.
        store: where the run's artifacts are. What is gone is named in the report and left out of it.
        path: an ``.html`` file; its folder is made.

    Returns:
        ``path``. The same status and artifacts give the same bytes.
    """
    page = _environment().get_template("report.html").render(_context(status, store))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8", errors="backslashreplace")
    part.rename(path)
    return path


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _context(status: Mapping[str, Any], store: Store) -> dict[str, Any]:
    rounds: list[Mapping[str, Any]] = list(status.get("rounds") or ())
    initial: Mapping[str, Any] = status.get("initial") or {}
    config: Mapping[str, Any] = status.get("config") or {}
    evidence = [gather(entry.get("artifacts") or {}, store) for entry in rounds]
    stages = ([initial] if initial else []) + rounds
    labels = (["initial"] if initial else []) + [_name(entry) for entry in rounds]
    return {
        "status": {**dict.fromkeys(PLAIN, ""), **status},
        "title": status.get("title") or status.get("name") or "run", "state": status.get("state", ""),
        "headline": _headline(status, initial, rounds), "judge_note": _judge_note(stages),
        "rounds": [_round(entry) for entry in rounds],
        "gaps": [f"{_name(entry)}: {gap}" for entry, found in zip(rounds, evidence, strict=True) for gap in found.gaps],
        "evaluation": Grid(labels, list(_evaluation_rows(stages, config))),
        "training": Grid([_name(entry) for entry in rounds], list(_training_rows(rounds))),
        "data": Grid([_name(entry) for entry in rounds], list(_data_rows(rounds))),
        "gate": Grid([_name(entry) for entry in rounds], list(_gate_rows(rounds))),
        "time": Grid([*labels, "all"], list(_time_rows(stages))),
        "evaluation_charts": charts.evaluation(initial, rounds, config),
        "training_charts": charts.training(rounds, evidence, config),
        "data_charts": charts.data(rounds, evidence, config),
        "time_charts": charts.time(labels, stages),
        "losses": _losses(config), "drops": list(_drops(rounds, evidence)),
        "pairs": [(_name(entry), [_pair(row) for row in found.pairs])
                  for entry, found in zip(rounds, evidence, strict=True) if found.pairs],
        "lineage": [_lineage(entry) for entry in stages], "config": "\n".join(toml_lines(config)),
    }  # fmt: skip


def _name(entry: Mapping[str, Any]) -> str:
    return "initial" if entry.get("round") == -1 else f"round {entry.get('round')}"


# ---------------------------------------------------------------------------------------------- headline and rounds
def _headline(
    status: Mapping[str, Any], initial: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    best = status.get("best_round", -1)
    shown = next((entry for entry in rounds if entry.get("round") == best), rounds[-1] if rounds else None)
    before, after = initial.get("evaluation") or {}, (shown or {}).get("evaluation") or {}
    if shown is None:
        which = "no round has finished yet"
    elif shown.get("round") == best:
        which = f"the best policy, of round {best}"
    else:
        which = f"the last policy, of round {shown.get('round')}; it was not promoted, so the initial one is the best"
    return {
        "which": which, "done": len(rounds), "planned": status.get("rounds_planned"), "best": best,
        "cards": list(_cards(before, after)), "probes": list(_probe_changes(before, after, status.get("config") or {})),
    }  # fmt: skip


def _cards(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str], str]]:
    """(label, figure, small print, meaning) of the few figures everybody asks for."""
    for name, changed, suffix in (
        ("win_rate_vs_initial", None, ""), ("score_delta", "score_mean", ""), ("kl", None, " nats"),
        ("length", "length", " tokens"),
    ):  # fmt: skip
        if after.get(name) is None:
            continue
        figure = EVALUATION[name]
        small = [interval(after, name, figure.unit)]
        if changed and before.get(changed) is not None:
            unit = EVALUATION[changed].unit
            small.append(f"{write(before[changed], unit)} → {write(after.get(changed), unit)}")
        yield figure.label, write(after[name], figure.unit) + suffix, [line for line in small if line], figure.meaning


def _probe_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, str]]:
    """(name, meaning, before, after) of every probe."""
    old, new = before.get("probes") or {}, after.get("probes") or {}
    for name in dict.fromkeys([*old, *new]):
        figure = charts.probe(name, config)
        yield name, figure.meaning, write(old.get(name), figure.unit), write(new.get(name), figure.unit)


def _judge_note(stages: Sequence[Mapping[str, Any]]) -> str:
    for entry in reversed(stages):
        evaluation = entry.get("evaluation") or {}
        if evaluation.get("judge_labelled") is None:
            continue
        judge = evaluation.get("judge") or "unnamed"
        if evaluation["judge_labelled"]:
            return (
                f"Scores here come from the judge that also labelled the training pairs ({judge}): they show how well"
                " the policy learnt what this judge likes, not whether another judge would agree."
            )
        return f"Scores here come from a held-out judge ({judge}) that labelled no training pair."
    return ""


def _round(entry: Mapping[str, Any]) -> dict[str, Any]:
    evaluation, margin = entry.get("evaluation") or {}, entry.get("margin") or {}
    dropped = entry.get("dropped") or {}
    gate = entry.get("gate") or {}
    reasons = ", ".join(f"{reason}\u00a0{count:,}" for reason, count in dropped.items())
    failed = [check["condition"] for check in gate.get("checks") or () if not check["passed"]]

    def cell(name: str) -> Cell:
        unit = EVALUATION[name].unit
        return Cell(write(evaluation.get(name), unit), interval(evaluation, name, unit))

    ratio = evaluation.get("length_ratio")
    return {
        "name": _name(entry), "number": entry.get("round"),
        "decision": gate.get("decision", ""), "reason": gate.get("reason", ""),
        "failed": [name for name in failed if name not in gate.get("reason", "")],
        "cells": [
            Cell(write(entry.get("pairs"), "count"), f"of {write(entry.get('groups'), 'count')}"),
            Cell(write(sum(dropped.values()), "count"), reasons),
            Cell(write(margin.get("mean"), "score"), f"median {write(margin.get('median'), 'score')}"),
            cell("win_rate_vs_initial"), cell("win_rate"), cell("score_delta"), cell("kl"),
            Cell(write(evaluation.get("length"), "tokens"), "" if ratio is None else f"{write(ratio, 'ratio')}×"),
        ],
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- tables by round
def _rows(known: Mapping[str, Figure], entries: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
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


def _evaluation_rows(stages: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Iterator[Row]:
    evaluations = [entry.get("evaluation") or {} for entry in stages]
    apart = ("probes", "judge", "judge_labelled")
    yield from _rows(EVALUATION, [{k: v for k, v in entry.items() if k not in apart} for entry in evaluations])
    probes = [entry.get("probes") or {} for entry in evaluations]
    figures = {name: charts.probe(name, config) for entry in probes for name in entry}
    yield from _rows({name: Figure(name, figure.unit) for name, figure in figures.items()}, probes)


def _training_rows(rounds: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    yield from _rows(TRAINING, [entry.get("training") or {} for entry in rounds])


def _data_rows(rounds: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    flat = [
        {"groups": entry.get("groups"), "pairs": entry.get("pairs"),
         **{f"margin/{name}": value for name, value in (entry.get("margin") or {}).items()},
         **{f"scores/{name}": value for name, value in (entry.get("scores") or {}).items()},
         **{f"dropped/{name}": value for name, value in (entry.get("dropped") or {}).items()}}
        for entry in rounds
    ]  # fmt: skip
    reasons = dict.fromkeys(reason for entry in rounds for reason in entry.get("dropped") or {})
    drops = {f"dropped/{name}": Figure(f"Dropped: {name}", "count", DROP_REASONS.get(name, "")) for name in reasons}
    head = {name: DATA[name] for name in ("groups", "pairs")}
    yield from _rows({**head, **drops, **DATA}, flat)


def _gate_rows(rounds: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    found = [{check["condition"]: check for check in (entry.get("gate") or {}).get("checks") or ()} for entry in rounds]
    for condition in dict.fromkeys(condition for checks in found for condition in checks):
        cells = [
            Cell(write(checks[condition]["value"]), "✓ holds" if checks[condition]["passed"] else "✕ fails",
                 not checks[condition]["passed"]) if condition in checks else Cell(MISSING)
            for checks in found
        ]  # fmt: skip
        yield Row(condition, "", cells)
    if rounds:
        yield Row("decision", "", [Cell((entry.get("gate") or {}).get("decision") or MISSING) for entry in rounds])


def _time_rows(stages: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    seconds = [entry.get("seconds") or {} for entry in stages]
    names = charts.stage_names(seconds)
    for name in names:
        values = [entry.get(name) for entry in seconds]
        total = sum(value for value in values if value)
        yield Row(name, "", [Cell(write(value, "seconds")) for value in [*values, total]])
    if names:
        totals = [sum(entry.values()) for entry in seconds]
        yield Row("all", "", [Cell(duration(total)) for total in [*totals, sum(totals)]])
    memory = [entry.get("memory") or {} for entry in stages]
    for name in dict.fromkeys(name for entry in memory for name in entry):
        cells = [Cell(write(entry.get(name))) for entry in memory]
        yield Row(name, "GiB the engine gave back", [*cells, Cell(MISSING)])


def _drops(
    rounds: Sequence[Mapping[str, Any]], evidence: Sequence[Evidence]
) -> Iterator[tuple[str, str, int | None, Sequence[Mapping[str, Any]]]]:
    """(round, reason, groups dropped, examples); the examples' texts shortened to a line."""
    for entry, found in zip(rounds, evidence, strict=True):
        dropped = entry.get("dropped") or {}
        for reason in dict.fromkeys([*dropped, *found.drops]):
            examples = [
                {**row, "prompt": one_line(row["prompt"]), "detail": one_line(row["detail"])}
                for row in found.drops.get(reason, ())
            ]
            if examples:
                yield _name(entry), reason, dropped.get(reason), examples


# ---------------------------------------------------------------------------------------------- texts
def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    turns = row.get("prompt_messages") or []
    return {
        "prompt": fold(row["prompt_text"]), "prompt_id": row["prompt_id"], "margin": short(row["margin"]),
        "turns": [(turn["role"], fold(turn["content"])) for turn in turns] if len(turns) > 1 else [],
        "sides": [
            {"kind": kind, "text": fold(row[f"{kind}_text"]), "score": short(row[f"score_{kind}"]),
             "tokens": len(row[f"{kind}_token_ids"]), "cut": row[f"{kind}_finish_reason"] == "length"}
            for kind in ("chosen", "rejected")
        ],
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- lineage and config
def _lineage(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": _name(entry), "policy_in": entry.get("policy_in") or "", "policy_out": entry.get("policy_out") or "",
        "artifacts": list((entry.get("artifacts") or {}).items()),
    }  # fmt: skip


def _losses(config: Mapping[str, Any]) -> str:
    trainer = config.get("trainer") or {}
    terms = " + ".join(f"{term.get('weight', 1):g} × {term.get('type')}" for term in trainer.get("loss") or ())
    return f"{terms}, β = {trainer.get('beta')}" if terms else ""
