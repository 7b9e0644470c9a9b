"""Charts as inline SVG: matplotlib draws, the page's style sheet colours.

Every colour is drawn as a placeholder and replaced by a CSS variable (``var(--ink)``, ``var(--c1)`` …), so one drawing
reads well in light and in dark. The same input gives the same bytes: ids come from the chart's name, and no date or
version is written. Nothing here touches matplotlib's global state, so charts may be drawn beside a user's own.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, Literal, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

Numbers = Sequence[float | None]
P = ParamSpec("P")
Colour = Literal["c1", "c2", "c3", "c4", "c5", "c6", "ink", "muted", "rule", "good", "bad"]
LINES: tuple[Colour, ...] = ("c1", "c2", "c3", "c4", "c5", "c6")

PLACEHOLDERS: Mapping[str, str] = {
    name: f"#0000{number:02x}" for number, name in enumerate(("ink", "muted", "rule", "good", "bad", *LINES), start=1)
}
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10.5, "text.parse_math": False, "axes.unicode_minus": True,
    "text.color": PLACEHOLDERS["ink"], "axes.labelcolor": PLACEHOLDERS["muted"],
    "xtick.color": PLACEHOLDERS["muted"], "ytick.color": PLACEHOLDERS["muted"],
    "axes.edgecolor": PLACEHOLDERS["rule"], "grid.color": PLACEHOLDERS["rule"], "grid.linewidth": 0.6,
    "axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False, "svg.fonttype": "none",
    "lines.linewidth": 1.8, "lines.markersize": 4.5, "xtick.major.size": 0, "ytick.major.size": 0,
}  # fmt: skip
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


def _drawn(draw: Callable[Concatenate[str, P], Figure]) -> Callable[Concatenate[str, P], str]:
    """Draw in our style, whatever the user's matplotlib is set to, and give the SVG; the first argument names it."""

    @wraps(draw)
    def drawn(name: str, /, *args: P.args, **kwargs: P.kwargs) -> str:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update({**STYLE, "svg.hashsalt": name})
            return _svg(draw(name, *args, **kwargs), name)

    return drawn


@_drawn
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
    axes.set_xlabel("round")
    if share:
        _as_share(axes)
    for level in levels:
        _level(axes, level)
    if len(lines) > 1:
        _name_lines(axes, lines)
    return figure


@_drawn
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
    axes.set_xlabel("optimiser step")
    if share:
        _as_share(axes)
    for level in levels:
        _level(axes, level)
    if len(lines) > 1:
        _name_lines(axes, lines)
    return figure


@_drawn
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
    _legend(axes, [(label, colour) for label, _, colour in samples])
    return figure


@_drawn
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


@_drawn
def stacked(name: str, rows: Sequence[tuple[str, Mapping[str, float]]], unit: str) -> Figure:
    """One bar a row, a segment a part; parts keep one colour and the order in which they first appear."""
    parts = list(dict.fromkeys(part for _, values in rows for part in values))
    figure, axes = _figure(height=max(1.4, 0.75 + 0.32 * len(rows)), grid="x")
    left = np.zeros(len(rows))
    for number, part in enumerate(parts):
        width = np.array([values.get(part) or 0.0 for _, values in rows])
        colour = LINES[number % len(LINES)]
        alpha = 0.55 ** (number // len(LINES))
        axes.barh(range(len(rows)), width, 0.6, left, color=PLACEHOLDERS[colour], alpha=alpha)
        left += width
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(unit)
    _legend(axes, [(part, LINES[number % len(LINES)]) for number, part in enumerate(parts)])
    return figure


# ---------------------------------------------------------------------------------------------- pieces
def _figure(height: float = 2.7, grid: Literal["x", "y"] = "y") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.5, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis=grid)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left") if grid == "y" else ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """``svg`` fit to stand in an HTML page: no prolog, no fixed size, its own ids, and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    variables = {placeholder: f"var(--{colour})" for colour, placeholder in PLACEHOLDERS.items()}
    svg = re.sub(r"((?:fill|stroke): )(#0000[0-9a-f]{2})", lambda m: m[1] + variables.get(m[2], m[2]), svg)
    return "\n".join(line.strip() for line in svg.splitlines() if line.strip())


def _array(values: Numbers) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _thinned(values: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and values, averaged in bins of one size where there are more than ``points``."""
    size = math.ceil(len(values) / max(points, 20))
    if size <= 1:
        return np.arange(len(values)), values
    starts = np.arange(0, len(values), size)
    counts = np.diff([*starts, len(values)])
    return starts + (counts - 1) / 2, np.add.reduceat(values, starts) / counts


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


def _legend(axes: Axes, entries: Sequence[tuple[str, Colour]]) -> None:
    handles = [Patch(color=PLACEHOLDERS[colour]) for _, colour in entries]
    axes.legend(
        handles, [label for label, _ in entries], loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3,
        fontsize=10, handlelength=0.8, handleheight=0.8, columnspacing=1.1, handletextpad=0.4, borderaxespad=0.2,
    )  # fmt: skip
