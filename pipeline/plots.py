"""The kinds of chart a report has, drawn by matplotlib: values in, one inline SVG out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from pipeline.svg import LINES, PLACEHOLDERS, Colour, drawn

Numbers = Sequence[float | None]
FILLS: tuple[Colour, ...] = (*LINES, "muted")
HATCHES = ("", "////", "....")
"""Parts of a bar: every colour plain, then every colour hatched, then dotted."""
POINTS = 400
"""A curve has at most this many points; longer ones are averaged in bins."""


@dataclass(frozen=True, slots=True)
class Line:
    label: str
    values: Numbers
    """One a position; None where there is none."""
    low: Numbers = ()
    high: Numbers = ()
    """Ends of the interval, same length as ``values``, or empty."""
    colour: Colour = "c1"


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line to compare with."""

    value: float
    label: str
    below: bool = False
    """Write the label under the line, where curves keep above it."""


@drawn
def by_round(
    name: str, rounds: Sequence[str], lines: Sequence[Line], levels: Sequence[Level] = (), share: bool = False
) -> Figure:
    """One position a round; intervals as bars; each line named at its right end where there are several."""
    figure, axes = _figure()
    for number, line in enumerate(lines):
        shift = 0.08 * (number - (len(lines) - 1) / 2) if any(line.low) else 0.0
        x = np.arange(len(rounds)) + shift
        y = _array(line.values)
        colour = PLACEHOLDERS[line.colour]
        if line.low and line.high:
            axes.vlines(x, _array(line.low), _array(line.high), color=colour, linewidth=1.4, alpha=0.55)
        axes.plot(x, y, color=colour, marker="o")
    axes.set_xticks(range(len(rounds)), rounds)
    if len(rounds) > 12:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: rounds[int(at)] if 0 <= at < len(rounds) else ""))
    axes.margins(x=0.06)
    _end(axes, "round", lines, levels, share)
    return figure


@drawn
def by_step(
    name: str,
    rounds: Sequence[tuple[str, int]],
    lines: Sequence[Line],
    levels: Sequence[Level] = (),
    share: bool = False,
) -> Figure:
    """Curves over optimiser steps, rounds laid end to end: ``rounds`` holds (label, steps), values run over all."""
    figure, axes = _figure()
    start = 0
    for label, steps in rounds:
        for line in lines:
            x, y = _thinned(_array(line.values[start : start + steps]), POINTS // max(1, len(rounds)))
            axes.plot(
                start + x, y, color=PLACEHOLDERS[line.colour], linewidth=1.4,
                marker="o" if len(x) <= 20 else "", markersize=2.6,
            )  # fmt: skip
        if start:
            axes.axvline(start - 0.5, color=PLACEHOLDERS["rule"], linewidth=1)
        middle = start + (steps - 1) / 2
        _write(axes, label, (middle, 1), ("data", "axes fraction"), (0, 3), ha="center")
        start += steps
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _end(axes, "optimiser step", lines, levels, share)
    return figure


@drawn
def distributions(name: str, samples: Sequence[tuple[str, np.ndarray, Colour]], unit: str) -> Figure:
    """Histograms over one set of bins, as shares of their own sample; bars side by side for a few distinct values."""
    figure, axes = _figure()
    everything = np.concatenate([values for _, values, _ in samples])
    distinct = np.unique(everything)
    if len(distinct) <= 12:
        _bars(axes, distinct, samples)
    else:
        low, high = np.quantile(everything, [0.001, 0.999])
        bins = int(np.clip(2 * min(len(values) for _, values, _ in samples) ** (1 / 3), 8, 40))  # Rice's rule
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        for _, values, colour in samples:
            counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            axes.stairs(counts / len(values), edges, color=PLACEHOLDERS[colour], linewidth=1.6)
            axes.stairs(counts / len(values), edges, color=PLACEHOLDERS[colour], fill=True, alpha=0.16, linewidth=0)
    axes.set_xlabel(unit)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(bottom=0)
    _legend(axes, [(label, {"facecolor": PLACEHOLDERS[colour]}) for label, _, colour in samples])
    return figure


@drawn
def spreads(name: str, samples: Sequence[tuple[str, np.ndarray]], unit: str, limit: Level | None = None) -> Figure:
    """One row a sample: a dot at the median, a thick bar for the middle half, a thin one for the middle 90%."""
    figure, axes = _figure(height=max(1.4, 0.55 + 0.3 * len(samples)), grid="x")
    for row, (_, values) in enumerate(samples):
        p5, p25, p50, p75, p95 = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        colour = PLACEHOLDERS["c1"]
        axes.plot([p5, p95], [row, row], color=colour, linewidth=1.2, alpha=0.6, solid_capstyle="butt")
        axes.plot([p25, p75], [row, row], color=colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
        axes.plot([p50], [row], color=colour, marker="o", markersize=5)
    if limit is not None:
        axes.axvline(limit.value, color=PLACEHOLDERS["muted"], linewidth=1, linestyle=(0, (3, 3)))
        _write(axes, limit.label, (limit.value, 1), ("data", "axes fraction"), (0, 3), ha="right")
    axes.set_yticks(range(len(samples)), [label for label, _ in samples])
    axes.set_ylim(len(samples) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(unit)
    return figure


@drawn
def stacked(name: str, rows: Sequence[tuple[str, Mapping[str, float]]], unit: str) -> Figure:
    """One bar a row, a segment a part; parts keep one colour and the order in which they first appear."""
    parts = list(dict.fromkeys(part for _, values in rows for part in values))
    columns = 5
    height = 0.55 + 0.32 * len(rows) + 0.22 * math.ceil(len(parts) / columns)
    figure, axes = _figure(width=6.2, height=max(1.4, height), grid="x")
    left = np.zeros(len(rows))
    fills = [_fill(number) for number in range(len(parts))]
    for part, fill in zip(parts, fills, strict=True):
        width = np.array([values.get(part) or 0.0 for _, values in rows])
        axes.barh(range(len(rows)), width, 0.6, left, linewidth=0, **fill)
        left += width
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(unit)
    _legend(axes, list(zip(parts, fills, strict=True)), columns)
    return figure


# ---------------------------------------------------------------------------------------------- pieces
def _figure(width: float = 4.5, height: float = 2.7, grid: Literal["x", "y"] = "y") -> tuple[Figure, Axes]:
    """Axes on a sheet of so many inches, with lines across or down it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis=grid)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left") if grid == "y" else ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _array(values: Numbers) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _thinned(values: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and values of those there are, averaged in bins of one size where they are more than ``points``."""
    places = np.flatnonzero(~np.isnan(values)).astype(float)
    known = values[~np.isnan(values)]
    size = math.ceil(len(known) / max(points, 20))
    if size <= 1:
        return places, known
    starts = np.arange(0, len(known), size)
    counts = np.diff([*starts, len(known)])
    return np.add.reduceat(places, starts) / counts, np.add.reduceat(known, starts) / counts


def _end(axes: Axes, along: str, lines: Sequence[Line], levels: Sequence[Level], share: bool) -> None:
    """What lines have in common whatever they run along."""
    axes.set_xlabel(along)
    if share:
        _as_share(axes)
    for level in levels:
        _level(axes, level)
    if len(lines) > 1:
        _name_lines(axes, lines)


def _as_share(axes: Axes) -> None:
    axes.set_ylim(-0.02, 1.04)  # always the whole range, so that charts compare and small changes look small
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _level(axes: Axes, level: Level) -> None:
    axes.axhline(level.value, color=PLACEHOLDERS["muted"], linewidth=1, linestyle=(0, (3, 3)), zorder=1)
    offset, va = ((2, -2), "top") if level.below else ((2, 2), "bottom")
    _write(axes, level.label, (0, level.value), ("axes fraction", "data"), offset, va=va)


def _write(
    axes: Axes, text: str, at: tuple[float, float], units: tuple[str, str], offset: tuple[int, int],
    ha: str = "left", va: str = "bottom", colour: Colour = "muted",
) -> None:  # fmt: skip
    """``text`` at a place given in ``units``, moved by ``offset`` points."""
    axes.annotate(
        text, at, xycoords=units, xytext=offset, textcoords="offset points", ha=ha, va=va,
        color=PLACEHOLDERS[colour], fontsize=10, annotation_clip=False,
    )  # fmt: skip


def _name_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Each line's name at its right end, moved apart where ends meet."""
    ends = []
    for line in lines:
        values = _array(line.values)
        known = np.flatnonzero(~np.isnan(values))
        if len(known):
            ends.append((float(values[known[-1]]), line))
    ends.sort(key=lambda end: end[0])
    low, high = axes.get_ylim()
    gap = 0.1 * (high - low)
    places: list[float] = []
    for value, _ in ends:
        places.append(max(value, places[-1] + gap) if places else value)
    excess = max(0.0, places[-1] - high) if places else 0.0
    for place, (_, line) in zip(places, ends, strict=True):
        at = (1, place - excess)
        _write(axes, line.label, at, ("axes fraction", "data"), (3, 0), va="center", colour=line.colour)


def _bars(axes: Axes, distinct: np.ndarray, samples: Sequence[tuple[str, np.ndarray, Colour]]) -> None:
    width = 0.8 / len(samples)
    for number, (_, values, colour) in enumerate(samples):
        shares = [float(np.mean(values == value)) for value in distinct]
        at = np.arange(len(distinct)) + (number - (len(samples) - 1) / 2) * width
        axes.bar(at, shares, width * 0.94, color=PLACEHOLDERS[colour])
    axes.set_xticks(range(len(distinct)), [f"{value:g}".replace("-", "−") for value in distinct])


def _fill(number: int) -> dict[str, Any]:
    """How the part of that number is filled: a colour of its own, and once they are used up a hatched one."""
    colour, hatch = FILLS[number % len(FILLS)], HATCHES[number // len(FILLS) % len(HATCHES)]
    return {"facecolor": PLACEHOLDERS[colour], "edgecolor": PLACEHOLDERS["paper"], "hatch": hatch}


def _legend(axes: Axes, entries: Sequence[tuple[str, dict[str, Any]]], columns: int = 3) -> None:
    handles = [Patch(linewidth=0, **fill) for _, fill in entries]
    axes.legend(
        handles, [label for label, _ in entries], loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns,
        fontsize=10, handlelength=0.8, handleheight=0.8, columnspacing=1.1, handletextpad=0.4, borderaxespad=0.2,
    )  # fmt: skip
