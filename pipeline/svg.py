"""Charts as inline SVG: matplotlib draws, the page's style sheet colours.

Every colour is drawn as a placeholder and replaced by a CSS variable (``var(--ink)``, ``var(--c1)`` …), so one drawing
reads well in light and in dark. The same input gives the same bytes: ids come from the chart's name, and no date or
version is written. Nothing here touches matplotlib's global state, so charts may be drawn beside a user's own.
"""

import hashlib
import io
import pickle
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Concatenate, Literal, ParamSpec

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

P = ParamSpec("P")
Colour = Literal["c1", "c2", "c3", "c4", "c5", "c6", "ink", "muted", "rule", "paper", "good", "bad"]
LINES: tuple[Colour, ...] = ("c1", "c2", "c3", "c4", "c5", "c6")

NAMES = ("ink", "muted", "rule", "paper", "good", "bad", *LINES)
PLACEHOLDERS: Mapping[str, str] = {name: f"#0000{number:02x}" for number, name in enumerate(NAMES, start=1)}
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10.5, "text.parse_math": False, "axes.unicode_minus": True,
    "text.color": PLACEHOLDERS["ink"], "axes.labelcolor": PLACEHOLDERS["muted"],
    "xtick.color": PLACEHOLDERS["muted"], "ytick.color": PLACEHOLDERS["muted"],
    "axes.edgecolor": PLACEHOLDERS["rule"], "grid.color": PLACEHOLDERS["rule"], "grid.linewidth": 0.6,
    "axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False, "svg.fonttype": "none",
    "lines.linewidth": 1.8, "lines.markersize": 4.5, "hatch.linewidth": 1.2,
    "xtick.major.size": 0, "ytick.major.size": 0,
}  # fmt: skip


KEPT = 256
"""Drawings of a kind that are kept. One takes a tenth of a second, and a run writes its page again when it ends."""


def drawn(draw: Callable[Concatenate[str, P], Figure]) -> Callable[Concatenate[str, P], str]:
    """Draw in our style, whatever the user's matplotlib is set to, and give the SVG; the first argument names it. What
    was drawn already is not drawn again."""
    kept: dict[bytes, str] = {}

    @wraps(draw)
    def wrapped(name: str, /, *args: P.args, **kwargs: P.kwargs) -> str:
        asked = hashlib.sha256(pickle.dumps((name, args, kwargs))).digest()
        if asked not in kept:
            if len(kept) >= KEPT:
                kept.clear()
            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                matplotlib.rcParams.update({**STYLE, "svg.hashsalt": name})
                kept[asked] = _svg(draw(name, *args, **kwargs), name)
        return kept[asked]

    return wrapped


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
    svg = re.sub(r'(fill|stroke)="(#0000[0-9a-f]{2})"', r'style="\1: \2"', svg)  # hatches; no variable works in those
    variables = {placeholder: f"var(--{colour})" for colour, placeholder in PLACEHOLDERS.items()}
    svg = re.sub(r"((?:fill|stroke): )(#0000[0-9a-f]{2})", lambda m: m[1] + variables.get(m[2], m[2]), svg)
    return "\n".join(line.strip() for line in svg.splitlines() if line.strip())
