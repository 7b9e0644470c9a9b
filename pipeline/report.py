"""The report of a run: one HTML file that stands alone, opens from disk and asks the network for nothing.

``status`` (``Run.status()``) says what happened, the store holds the evidence; both become plain strings here, and
``templates/report.html`` says where they stand. Prompts and completions are untrusted text: the template escapes
everything but the charts, and the page forbids itself scripts and requests.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import charts, grids
from pipeline.commands import Command, masked_settings
from pipeline.errors import StoreError
from pipeline.evidence import Answer, Comparison, Evidence, compare, gather
from pipeline.figures import EVALUATION, interval, probe, prompts_text, write
from pipeline.grids import Cell, round_name
from pipeline.store import Store
from pipeline.texts import fold, one_line, short, toml_lines

Entry = Mapping[str, Any]
PLAIN = ("name", "description", "reason", "policy", "workspace", "directory")
"""What the page takes from the status as it is; empty where the status has none."""


def write_report(status: Entry, store: Store, path: Path, commands: Sequence[Command] = ()) -> Path:
    """Write the report of one run to ``path``, whole or not at all.

    Args:
        status: what ``Run.status()`` gives; a run that goes on, or has no rounds yet, is fine.
        store: where the run's artifacts are. What is gone is named in the report and left out of it.
        path: an ``.html`` file; its folder is made.
        commands: what ``Run.commands()`` gives.

    Returns:
        ``path``. The same arguments and artifacts give the same bytes.
    """
    context = {**_context(status, store), "commands": [_command(each) for each in commands]}
    page = _environment().get_template("report.html").render(context)
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


def _context(status: Entry, store: Store) -> dict[str, Any]:
    rounds: list[Entry] = list(status.get("rounds") or ())
    initial: Entry = status.get("initial") or {}
    config: Entry = status.get("config") or {}
    prompts = {name: key for name, key in _artifacts(initial).items() if name == "prompts"}
    evidence = [gather({**prompts, **_artifacts(entry)}, store) for entry in rounds]
    told = list(zip(map(round_name, rounds), rounds, evidence, strict=True))
    stages = ([initial] if initial else []) + rounds
    best = _shown(status, rounds)
    answers = compare(_artifacts(initial), _artifacts(best), store)
    return {
        "status": {**dict.fromkeys(PLAIN, ""), **status},
        "title": status.get("title") or status.get("name") or "run", "state": status.get("state", ""),
        "headline": _headline(status, initial, rounds), "judge_note": _judge_note(stages),
        "rounds": [_round(entry) for entry in rounds],
        "gaps": _gaps([*((name, found.gaps) for name, _, found in told), ("held-out answers", answers.gaps)]),
        "evaluation": grids.evaluation(stages, config), "training": grids.training(rounds),
        "data": grids.data(rounds), "gate": grids.gate(rounds), "time": grids.time(stages),
        "evaluation_charts": charts.evaluation(initial, rounds, config),
        "training_charts": charts.training(rounds, evidence, config),
        "data_charts": charts.data(rounds, evidence, config),
        "time_charts": charts.time([round_name(entry) for entry in stages], stages),
        "prompts": _prompts(initial, store), "losses": _losses(config), "drops": list(_drops(rounds, evidence)),
        "answers": _said(best, answers),
        "pairs": [(name, [_pair(row) for row in found.pairs]) for name, _, found in told if found.pairs],
        "lineage": [_lineage(entry) for entry in stages], "config": "\n".join(toml_lines(masked_settings(config))),
    }  # fmt: skip


def _artifacts(entry: Entry) -> Mapping[str, str]:
    return entry.get("artifacts") or {}


def _gaps(found: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """One line a gap, naming every round it concerns."""
    places: dict[str, list[str]] = {}
    for name, gaps in found:
        for gap in gaps:
            places.setdefault(gap, []).append(name)
    return [f"{', '.join(names)}: {gap}" for gap, names in places.items()]


# ---------------------------------------------------------------------------------------------- headline and rounds
def _shown(status: Entry, rounds: Sequence[Entry]) -> Entry:
    """The round whose policy the page speaks of: the best one's, else the last one's; empty before the first."""
    best = status.get("best_round", -1)
    last: Entry = rounds[-1] if rounds else {}
    return next((entry for entry in rounds if entry.get("round") == best), last)


def _headline(status: Entry, initial: Entry, rounds: Sequence[Entry]) -> dict[str, Any]:
    best, shown = status.get("best_round", -1), _shown(status, rounds)
    before, after = initial.get("evaluation") or {}, shown.get("evaluation") or {}
    if not shown:
        which = "no round has finished yet"
    elif shown.get("round") == best:
        which = f"the best policy, of round {best}"
    else:
        which = f"the last policy, of round {shown.get('round')}; it was not promoted, so the initial one is the best"
    return {
        "which": which, "done": len(rounds), "planned": status.get("rounds_planned"), "best": best,
        "cards": list(_cards(before, after)), "probes": list(_probe_changes(before, after, status.get("config") or {})),
    }  # fmt: skip


def _cards(before: Entry, after: Entry) -> Iterator[tuple[str, str, list[str], str]]:
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


def _probe_changes(before: Entry, after: Entry, config: Entry) -> Iterator[tuple[str, str, str, str]]:
    """(name, meaning, before, after) of every probe."""
    old, new = before.get("probes") or {}, after.get("probes") or {}
    for name in dict.fromkeys([*old, *new]):
        figure = probe(name, config)
        yield name, figure.meaning, write(old.get(name), figure.unit), write(new.get(name), figure.unit)


def _judge_note(stages: Sequence[Entry]) -> str:
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


def _round(entry: Entry) -> dict[str, Any]:
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
        "name": round_name(entry), "number": entry.get("round"),
        "decision": gate.get("decision", ""), "reason": gate.get("reason", ""),
        "failed": [name for name in failed if name not in gate.get("reason", "")],
        "cells": [
            Cell(write(entry.get("pairs"), "count"), _source(entry)),
            Cell(write(sum(dropped.values()), "count"), reasons),
            Cell(write(margin.get("mean"), "score"), f"median {write(margin.get('median'), 'score')}"),
            cell("win_rate_vs_initial"), cell("win_rate"), cell("score_delta"), cell("kl"),
            Cell(write(evaluation.get("length"), "tokens"), "" if ratio is None else f"{write(ratio, 'ratio')}×"),
        ],
    }  # fmt: skip


def _source(entry: Entry) -> str:
    """Of how many groups the pairs are, and before that, where some gave several, from how many."""
    paired = entry.get("paired")
    several = paired is not None and paired < (entry.get("pairs") or 0)
    return f"{f'from {paired:,} ' if several else ''}of {write(entry.get('groups'), 'count')}"


def _prompts(initial: Entry, store: Store) -> list[str]:
    """What became of the rows that prompts were read from, and the first bad ones; empty where nobody knows."""
    try:
        manifest = store.get("prompts", _artifacts(initial).get("prompts", "none")).manifest
    except StoreError:
        return []
    info = manifest["info"]
    if "read" not in info:
        return []
    told = prompts_text(info["rounds"], info["held_out"], manifest["dropped"])
    rows = manifest["kept"] + sum(manifest["dropped"].values())
    return [f"{rows:,} rows: {told}", *(one_line(bad) for each in info["read"] for bad in each["first"])]


# ---------------------------------------------------------------------------------------------- texts
def _drops(
    rounds: Sequence[Entry], evidence: Sequence[Evidence]
) -> Iterator[tuple[str, str, int | None, Sequence[Entry]]]:
    """(round, reason, groups dropped, examples); the examples' texts shortened to a line."""
    for entry, found in zip(rounds, evidence, strict=True):
        dropped = entry.get("dropped") or {}
        for reason in dict.fromkeys([*dropped, *found.drops]):
            examples = [
                {**row, "prompt": one_line(row["prompt"]), "detail": one_line(row["detail"])}
                for row in found.drops.get(reason, ())
            ]
            if examples:
                yield round_name(entry), reason, dropped.get(reason), examples


def _pair(row: Entry) -> dict[str, Any]:
    turns = row.get("prompt_messages") or []
    return {
        "prompt": fold(row["prompt_text"]), "prompt_id": row["prompt_id"], "margin": short(row["margin"]),
        "turns": [(turn["role"], fold(turn["content"])) for turn in turns] if len(turns) > 1 else [],
        "sides": [
            {"kind": kind, "text": fold(row[f"{kind}_text"]), "score": short(row[f"score_{kind}"]),
             "tokens": len(row[f"{kind}_token_ids"]) or None, "cut": row[f"{kind}_finish_reason"] == "length"}
            for kind in ("chosen", "rejected")
        ],
    }  # fmt: skip


def _said(best: Entry, answers: Comparison) -> dict[str, Any]:
    return {
        "policy": round_name(best), "samples": answers.samples, "changed": answers.changed,
        "shown": [_answer(answer, round_name(best)) for answer in answers.shown],
    }  # fmt: skip


def _answer(answer: Answer, policy: str) -> dict[str, Any]:
    number = answer.before["index"] + 1
    return {
        "prompt": fold(answer.prompt), "prompt_id": answer.prompt_id, "turns": [],
        "note": f"sample {number} of {answer.samples}; {answer.changed or 'none'} changed",
        "sides": [
            {"kind": kind, "name": name, "text": fold(row["text"]), "tokens": row["tokens"],
             "cut": row["finish_reason"] == "length"}
            for kind, name, row in (("before", "initial policy", answer.before), ("after", policy, answer.after))
        ],
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- lineage and config
def _lineage(entry: Entry) -> dict[str, Any]:
    return {
        "name": round_name(entry), "artifacts": list(_artifacts(entry).items()),
        "policy_in": entry.get("policy_in") or "", "policy_out": entry.get("policy_out") or "",
    }  # fmt: skip


def _command(command: Command) -> dict[str, str]:
    at = command.at.replace("T", " ").removesuffix("Z")
    return {"at": at, "line": command.line, "note": "made pairs anew" if command.anew else ""}


def _losses(config: Entry) -> str:
    trainer = config.get("trainer") or {}
    terms = " + ".join(f"{term.get('weight', 1):g} × {term.get('type')}" for term in trainer.get("loss") or ())
    return f"{terms}, β = {trainer.get('beta')}" if terms else ""
