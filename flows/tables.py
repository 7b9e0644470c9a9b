"""What trainings show on the command line: what became of the data, what would be done, what one came to."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from flows.console import short

FIGURES = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin", "kl": "log π_ref/π"}
"""Figures one reads first, and what they are called. The last, nats a completion, is an estimate of a KL only where the
completions are the reference's own, and may be below 0 elsewhere."""


def data_table(found: Mapping[str, Any]) -> RenderableType:
    """A line a data set, and under them why rows were dropped or altered."""
    table = Table("data", box=SIMPLE)
    for column in ("rows", "pairs", "singles", "dropped", "altered"):
        table.add_column(column, justify="right")
    for part in found["data"]:
        counts = (
            part["rows"],
            part["pairs"],
            part["singles"],
            *(sum(part[of].values()) for of in ("dropped", "altered")),
        )
        table.add_row(escape(_called(part)), *(f"{count:,}" for count in counts))
    notes = [f"[dim]{escape(_called(part))}: {escape(note)}[/]" for part in found["data"] for note in part["notes"]]
    held_out = found["held_out_examples"]
    if held_out["prompts"]:
        notes.append(f"held out: {_examples(held_out)} of {_count(held_out['prompts'], 'prompt')}")
    if both := held_out["prompts_also_trained_on"]:
        notes.append(f"[yellow]{both:,} of the held-out prompts are trained on as well[/]")
    return Group(table, *(Padding(note, (0, 2)) for note in notes))


def _called(part: Mapping[str, Any]) -> str:
    return f"{part['name']} (held out)" if part["held_out"] else str(part["name"])


def plan_table(plan: Mapping[str, Any]) -> RenderableType:
    """What a training would do."""
    work, cached = plan["work"], plan["cached"]
    rows = [
        *_planned(plan),
        ("tokens", f"{work['tokens']:,}, each prompt of a batch once ({work['tokens_row_by_row']:,} row by row)"),
        ("packs", f"about {work['packs']:,} of at most {plan['config']['token_budget']:,} tokens"),
        ("reference", _cached(cached["reference"], f"{work['reference_rows']:,} completions to score once")
         if work["reference_rows"] else "none"),
        ("result", _cached(cached["training"], "to be trained")),
    ]  # fmt: skip
    return Group(data_table(plan), _lengths(plan), _rows(rows))


def reward_plan_table(plan: Mapping[str, Any]) -> RenderableType:
    """What the training of a reward model would do."""
    work = plan["work"]
    rows = [
        *_planned(plan),
        ("tokens", f"{work['tokens']:,}; with padding {work['padded_tokens']:,}"),
        ("passes", f"about {work['passes']:,} of at most {work['token_budget']:,} tokens"),
        ("result", _cached(plan["cached"]["training"], "to be trained")),
    ]
    return Group(data_table(plan), _lengths(plan), _rows(rows))


def outcome_table(result: Mapping[str, Any]) -> RenderableType:
    """What a training came to: its figures at the first step, over the last ones, and on what was held out."""
    columns = {"first step": result["at_first"], f"last {result['averaged_steps']}": result["figures"]}
    if result["held_out_figures"]:
        columns["held out"] = result["held_out_figures"]
    figures = Table("", box=SIMPLE)
    for label in columns:
        figures.add_column(label, justify="right")
    for key, name in FIGURES.items():
        if key in result["figures"]:
            figures.add_row(name, *(short(column.get(key)) for column in columns.values()))
    cost = [
        ("speed", f"{result['pairs_per_second']:,.1f} pairs/s"),
        ("memory", f"{result['memory_gib']:.2f} GiB at most"),
    ]
    return Group(figures, _rows(cost))


def reward_table(result: Mapping[str, Any]) -> RenderableType:
    """What the training of a reward model came to: how often it is right, and where."""
    report = result["held_out"]
    if report is None:
        return _rows([("held out", "nothing, so nobody knows how good it is; --held-out 0.1 holds a tenth out")])
    table = Table("held-out pairs", box=SIMPLE)
    for column in ("pairs", "accuracy", "as it claims"):
        table.add_column(column, justify="right")
    table.add_row("all", f"{report['pairs']:,}", short(report["accuracy"]), "")
    for number, part in enumerate(report["by_margin"]):
        name = f"margin up to {part['up_to']:.2f}" if number + 1 < len(report["by_margin"]) else "larger margin"
        table.add_row(name, f"{part['pairs']:,}", short(part["accuracy"]), short(part["expected"]))
    for name, part in report["by_length"].items():
        label = "equally long" if name == "equal" else f"chosen is {name}"
        table.add_row(label, f"{part['pairs']:,}", short(part["accuracy"]), "")
    kept = [
        ("kept", f"step {result['kept']:,} of {result['steps']:,}, with the lowest held-out loss"),
        ("loss", f"{report['loss']:.3f} nats a pair; mean margin {report['margin']:.2f}"),
    ]
    return Group(table, _rows(kept))


def _lengths(plan: Mapping[str, Any]) -> Table:
    table = Table("tokens", box=SIMPLE)
    for label in plan["lengths"]["prompt"]:
        table.add_column(label, justify="right")
    for name, sizes in plan["lengths"].items():
        table.add_row(name, *(f"{size:,}" for size in sizes.values()))
    return table


def _planned(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    examples, work = plan["training_examples"], plan["work"]
    return [
        ("training", f"{_examples(examples)} of {_count(examples['prompts'], 'prompt')}"),
        ("steps", f"{work['steps']:,} in {_count(work['epochs'], 'epoch')}"),
    ]


def _examples(counts: Mapping[str, int]) -> str:
    return " and ".join(_count(counts[f"{kind}s"], kind) for kind in ("pair", "single") if counts[f"{kind}s"])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cached(found: bool, otherwise: str) -> str:
    return "in the store already" if found else otherwise


def _rows(rows: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, text in rows:
        table.add_row(f"[dim]{name}[/]", escape(text))
    return table
