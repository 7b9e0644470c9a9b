"""Results as tables on the terminal and as one JSON file."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

GOALS = {
    ("short", "ideal"): 1.5, ("typical", "ideal"): 2.3, ("long", "ideal"): 2.6, ("short", "installed"): 5.0,
    ("typical", "installed"): 5.0, ("long", "installed"): 5.0, ("2 of 4", "ideal"): 3.5, ("all 6 pairs", "ideal"): 9.0,
    ("reference", "ideal"): 2.0, ("reference", "installed"): 2.0,
}  # fmt: skip
"""How many times faster than each opponent the trainer has to be."""

console = Console(width=None if sys.stdout.isatty() else 140)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str | None = None) -> None:
    grid = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        grid.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(grid)


def against_goal(case: str, opponent: str, median: float) -> str:
    """The goal with a mark whether it is reached; empty where there is none."""
    goal = GOALS.get((case, opponent))
    return "" if goal is None else f"{'[green]✓' if median >= goal else '[red]✗'} ≥ {goal}×"


def save(results: dict[str, Any], file: Path) -> None:
    """Rounded to what the clock can tell, so that the file stays readable in a diff."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rounded(results), indent=1, ensure_ascii=False) + "\n")
    console.print(f"[dim]{file}[/]")


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
