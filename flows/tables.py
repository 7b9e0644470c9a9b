"""What ``ratchet train`` shows: what became of the data, what a training would do, what one came to."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

FIGURES = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin", "kl": "KL"}
"""Figures one reads first, and what they are called. KL is log π_ref − log π of the completions, nats."""


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
        table.add_row(escape(part["name"]), *(f"{count:,}" for count in counts))
    notes = [f"[dim]{escape(part['name'])}: {escape(note)}[/]" for part in found["data"] for note in part["notes"]]
    held_out = found["held_out_examples"]
    if held_out["prompts"]:
        notes.append(f"held out: {held_out['prompts']:,} prompts with {_examples(held_out)}")
    if both := held_out["prompts_also_trained_on"]:
        notes.append(f"[yellow]{both:,} of the held-out prompts are trained on as well[/]")
    return Group(table, *(Padding(note, (0, 2)) for note in notes))


def plan_table(plan: Mapping[str, Any]) -> RenderableType:
    """What a training would do."""
    work, cached = plan["work"], plan["cached"]
    lengths = Table("tokens", box=SIMPLE)
    for label in plan["lengths"]["prompt"]:
        lengths.add_column(label, justify="right")
    for name, sizes in plan["lengths"].items():
        lengths.add_row(name, *(f"{size:,}" for size in sizes.values()))
    rows = [
        ("training", f"{_examples(plan['training_examples'])} of {plan['training_examples']['prompts']:,} prompts"),
        ("steps", f"{work['steps']:,} in {work['epochs']} epoch{'s'[: work['epochs'] > 1]}"),
        ("tokens", f"{work['tokens']:,}, each prompt of a batch once ({work['tokens_row_by_row']:,} row by row)"),
        ("packs", f"about {work['packs']:,} of at most {plan['config']['token_budget']:,} tokens"),
        ("reference", _cached(cached["reference"], f"{work['reference_rows']:,} completions to score once")
         if work["reference_rows"] else "none"),
        ("result", _cached(cached["training"], "to be trained")),
    ]  # fmt: skip
    return Group(data_table(plan), lengths, _rows(rows))


def outcome_table(result: Mapping[str, Any]) -> RenderableType:
    """What a training came to, in the mean of its last steps and at its first."""
    figures, first, held_out = result["figures"], result["at_first"], result["held_out_figures"]
    rows = [
        (
            name,
            f"{figures[key]:.3f}, at first {first[key]:.3f}"
            + (f"; held out {held_out[key]:.3f}" if key in held_out else ""),
        )
        for key, name in FIGURES.items()
        if key in figures
    ]
    rows += [
        ("speed", f"{result['pairs_per_second']:,.1f} pairs/s"),
        ("memory", f"{result['memory_gib']:.2f} GiB at most"),
    ]
    return _rows(rows)


def _examples(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{counts[kind]:,} {kind}" for kind in ("pairs", "singles") if counts[kind]) or "no examples"


def _cached(found: bool, otherwise: str) -> str:
    return "in the store already" if found else otherwise


def _rows(rows: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, text in rows:
        table.add_row(f"[dim]{name}[/]", escape(text))
    return table
