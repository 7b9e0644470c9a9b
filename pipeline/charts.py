"""Which charts a run's report has: numbers of the run in, titled drawings out. How they are drawn: ``plots``."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import plots
from pipeline.config import CONDITION
from pipeline.evidence import Evidence
from pipeline.figures import probe, shortened, stage_names
from pipeline.plots import Level, Line
from pipeline.svg import LINES, Colour

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    note: str
    """What to see in it and how to read it."""
    svg: str


# ---------------------------------------------------------------------------------------------- evaluation
def evaluation(initial: Entry, rounds: Sequence[Entry], config: Entry) -> list[Chart]:
    """Win rates, score, KL and every probe, by round."""
    if not rounds:
        return []
    stages = [initial, *rounds] if initial else list(rounds)
    labels = (["initial"] if initial else []) + [str(entry.get("round")) for entry in rounds]
    origin = {"score_delta": 0.0, "kl": 0.0}  # of the initial policy to itself, by definition
    values = [{**(origin if entry is initial else {}), **(entry.get("evaluation") or {})} for entry in stages]
    found = [
        _win_rates(rounds), _scores(labels, values), _kl(labels, values, config),
        *_probes(labels, [entry.get("probes") or {} for entry in values], config),
    ]  # fmt: skip
    return [chart for chart in found if chart is not None]


def _win_rates(rounds: Sequence[Entry]) -> Chart | None:
    values = [entry.get("evaluation") or {} for entry in rounds]
    lines = [
        _line(label, key, values, colour=colour)
        for label, key, colour in (("vs initial", "win_rate_vs_initial", LINES[0]), ("vs start", "win_rate", LINES[1]))
        if _any(key, values)
    ]
    if not lines:
        return None
    labels = [str(entry.get("round")) for entry in rounds]
    svg = plots.by_round("win-rate", labels, lines, [Level(0.5, "no difference", below=True)], share=True)
    note = "against the initial policy, and against the policy the round started from; bars are 95% intervals"
    return Chart("Win rate", note, svg)


def _scores(labels: Sequence[str], values: Sequence[Entry]) -> Chart | None:
    if _any("score_delta", values):
        line = _line("score", "score_delta", values)
        svg = plots.by_round("score", labels, [line], [Level(0.0, "")])
        return Chart("Score gained", "over the initial policy, in the judge’s own units; bars are 95% intervals", svg)
    if not _any("score_mean", values):
        return None
    svg = plots.by_round("score", labels, [_line("score", "score_mean", values)])
    return Chart("Mean score", "held-out samples, in the judge’s own units", svg)


def _kl(labels: Sequence[str], values: Sequence[Entry], config: Entry) -> Chart | None:
    probes = [entry.get("probes") or {} for entry in values]
    names = [name for name in _names(probes) if probe(name, config).unit == "nats"]
    lines = [_line("held-out", "kl", values)] if _any("kl", values) else []
    lines += [_line(name, name, probes, LINES[(at + 1) % len(LINES)]) for at, name in enumerate(names)]
    if not lines:
        return None
    svg = plots.by_round("kl", labels, lines, _limits("kl", lines, config))
    return Chart("KL to the initial policy", "nats a completion: how far the policy has moved", svg)


def _probes(labels: Sequence[str], values: Sequence[Entry], config: Entry) -> list[Chart]:
    """Share probes, those that look for the same pattern in one chart."""
    asked: Entry = (config.get("evaluation") or {}).get("probes") or {}
    together: dict[str, list[str]] = {}
    for name in _names(values):
        if probe(name, config).unit == "share":
            together.setdefault(str((asked.get(name) or {}).get("pattern", name)), []).append(name)
    found = []
    for number, (pattern, names) in enumerate(together.items()):
        lines = [_line(name, name, values, LINES[at % len(LINES)]) for at, name in enumerate(names)]
        svg = plots.by_round(f"probe-{number}", labels, lines, share=True)
        title = names[0] if len(names) == 1 else f"Samples exactly /{shortened(pattern, 20)}/"
        found.append(Chart(title, probe(names[0], config).meaning if len(names) == 1 else ", ".join(names), svg))
    return found


def _limits(metric: str, lines: Sequence[Line], config: Entry) -> list[Level]:
    """The gate's limits on ``metric``, where they are near enough to leave the curve readable."""
    top = max((value for line in lines for value in line.values if value is not None), default=0.0)
    found = []
    for condition in (config.get("gate") or {}).get("require") or ():
        match = CONDITION.fullmatch(condition)
        if match and match["metric"] == metric and float(match["limit"]) <= 2 * top:
            found.append(Level(float(match["limit"]), f"gate: {condition}"))
    return found


# ---------------------------------------------------------------------------------------------- training
def training(rounds: Sequence[Entry], evidence: Sequence[Evidence], config: Entry) -> list[Chart]:
    """Loss, rewards, accuracy and log-probabilities by optimiser step, rounds laid end to end."""
    steps = [step for found in evidence for step in found.steps]
    spans = _spans([(entry, len(found.steps)) for entry, found in zip(rounds, evidence, strict=True) if found.steps])
    if not steps:
        return []
    trainer = config.get("trainer") or {}
    kinds = [term.get("type") for term in trainer.get("loss") or ()]
    start = [Level(math.log(2), "ln 2: no preference yet")] if kinds == ["sigmoid"] else []
    anew = "; each round starts at zero again, its reference being the policy that sampled"
    anew = anew if trainer.get("reference") == "previous" else ""
    plans: list[tuple[str, str, list[Line], list[Level], bool]] = [
        ("Loss", "on each step’s batch",
         _step_lines(steps, ("loss", "loss", "c1"), ("held out", "eval/loss", "c2")), start, False),
        ("Implicit rewards", f"β × log-ratio to the reference, nats; margin = chosen − rejected{anew}",
         _step_lines(steps, ("margin", "rewards/margins", "c1"), ("chosen", "rewards/chosen", "good"),
                     ("rejected", "rewards/rejected", "bad"), ("held out", "eval/rewards/margins", "c2")), [], False),
        ("Reward accuracy", "share of the batch’s pairs whose chosen reward is the higher",
         _step_lines(steps, ("accuracy", "rewards/accuracies", "c1"), ("held out", "eval/rewards/accuracies", "c2")),
         [Level(0.5, "chance", below=True)], True),
        ("Gradient norm", "before clipping", _step_lines(steps, ("norm", "grad_norm", "c1")), [], False),
        ("Log-probabilities", "nats a completion; both falling together is a warning of drift",
         _step_lines(steps, ("chosen", "logps/chosen", "good"), ("rejected", "logps/rejected", "bad")), [], False),
    ]  # fmt: skip
    return [
        Chart(title, note, plots.by_step(title.lower().replace(" ", "-"), spans, lines, levels, share))
        for title, note, lines, levels, share in plans
        if lines
    ]


def _spans(rounds: Sequence[tuple[Entry, int]]) -> list[tuple[str, int]]:
    """(label, steps) a round; the label is a bare number where a round is too narrow for more."""
    wide = 0.18 * sum(steps for _, steps in rounds)
    return [(f"{'round ' if steps >= wide else ''}{entry.get('round')}", steps) for entry, steps in rounds]


def _step_lines(steps: Sequence[Entry], *wanted: tuple[str, str, Colour]) -> list[Line]:
    return [_line(label, key, steps, colour) for label, key, colour in wanted if _any(key, steps)]


# ---------------------------------------------------------------------------------------------- data and time
def data(rounds: Sequence[Entry], evidence: Sequence[Evidence], config: Entry) -> list[Chart]:
    """Scores of the first and the last round's candidates, and lengths of every round's."""
    found = []
    scored = _having(rounds, evidence, lambda item: item.scores)
    if scored:
        first, values = scored[0]
        first += " (initial policy)" if first == "round 0" else ""
        shown: list[tuple[str, np.ndarray, Colour]] = [(first, values, "muted")]
        if len(scored) > 1:
            shown.append((*scored[-1], "c1"))
        svg = plots.distributions("scores", shown, "score")
        note = "first round’s samples and the last round’s, as shares of each"
        found.append(Chart("Scores of all candidates", note, svg))
    measured = _having(rounds, evidence, lambda item: item.lengths)
    if measured:
        longest = max(float(values.max()) for _, values in measured)
        cap = (config.get("sampling") or {}).get("max_tokens")
        limit = Level(float(cap), "token limit") if cap and longest >= 0.6 * cap else None
        svg = plots.spreads("lengths", measured, "tokens", limit)
        note = "all candidates: median (dot), middle half (thick), middle 90% (thin)"
        found.append(Chart("Completion length", note, svg))
    return found


def time(labels: Sequence[str], stages: Sequence[Entry]) -> list[Chart]:
    """Seconds by stage, a bar a round."""
    rows = [(label, entry.get("seconds") or {}) for label, entry in zip(labels, stages, strict=True)]
    if not any(seconds for _, seconds in rows):
        return []
    names = stage_names([seconds for _, seconds in rows])
    ordered = [(label, {name: seconds.get(name, 0.0) for name in names}) for label, seconds in rows]
    svg = plots.stacked("seconds", ordered, "seconds")
    return [Chart("Seconds by stage", "wall clock; a reused artifact counts what it cost when it was made", svg)]


def _having(
    rounds: Sequence[Entry], evidence: Sequence[Evidence], read: Callable[[Evidence], np.ndarray]
) -> list[tuple[str, np.ndarray]]:
    return [
        (f"round {entry.get('round')}", read(found))
        for entry, found in zip(rounds, evidence, strict=True)
        if len(read(found))
    ]


# ---------------------------------------------------------------------------------------------- pieces
def _names(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry))


def _any(key: str, entries: Sequence[Entry]) -> bool:
    return any(_number(entry.get(key)) is not None for entry in entries)


def _line(label: str, key: str, entries: Sequence[Entry], colour: Colour = "c1") -> Line:
    low, high = ([_number(entry.get(f"{key}_{end}")) for entry in entries] for end in ("low", "high"))
    known = any(value is not None for value in low)
    values = [_number(entry.get(key)) for entry in entries]
    return Line(label, values, low if known else (), high if known else (), colour)


def _number(value: Any) -> float | None:
    finite = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if finite else None
