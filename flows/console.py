"""What a run shows in the terminal: a live bar a stage, a table a round, and at the end where to look next."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.box import SIMPLE
from rich.console import Console as Terminal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from flows.doctor import Finding
from pipeline.figures import missing_text
from pipeline.protocols import Progress

UNKNOWN = "not known: no sample was judged"


class _Warnings(logging.Handler):
    """Above the bars of a terminal that has some; on stderr where it is quiet."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = Terminal(stderr=True, highlight=False) if terminal.quiet else terminal

    def emit(self, record: logging.LogRecord) -> None:
        self._terminal.print(f"  [yellow]![/] {escape(record.getMessage())}", soft_wrap=True)


class Console:
    """Writes to stderr while work goes on, so that stdout holds a command's result and nothing else."""

    def __init__(self, quiet: bool = False, to_stdout: bool = False) -> None:
        self.terminal = Terminal(stderr=not to_stdout, quiet=quiet, highlight=False)
        self._thread = threading.local()
        """``outer``: the stage that this thread is in."""
        self._bars: Bars | None = None
        """Those of all stages that are under way: a terminal takes one display at a time."""
        self._drawing = threading.Lock()

    def say(self, text: str) -> None:
        self.terminal.print(text, soft_wrap=True)  # a path broken in two is no path

    @contextmanager
    def warnings(self) -> Iterator[None]:
        """Show what our packages warn of: Prefect's handlers keep it from the terminal. Quiet or not."""
        handler, log = _Warnings(self.terminal), logging.getLogger("ratchet")
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Progress]:
        """A bar while the stage works, then one line with its last note and its seconds.

        A stage within a stage shows in the outer one's bar and leaves no line of its own. Stages of several threads
        have their bars one under another.
        """
        outer: Progress | None = getattr(self._thread, "outer", None)
        if outer is not None:
            outer(0, 0, name)
            yield partial(self._within, outer, name)
            return
        started = time.monotonic()
        shown: dict[str, Any] = {"total": total, "note": ""}
        with self._bar(name, total) as show:

            def progress(done: int, total: int, note: str) -> None:
                shown.update(total=total, note=note)
                show(done, total, note)

            self._thread.outer = progress
            try:
                yield progress
            finally:
                self._thread.outer = None
        count = f"{shown['total']:,}" if shown["total"] else ""
        seconds = time.monotonic() - started
        self.say(f"  [green]✓[/] {name:<12} {seconds:6.1f} s {count:>8}  {shown['note']}".rstrip())

    @contextmanager
    def _bar(self, name: str, total: int | None) -> Iterator[Progress]:
        with self._drawing:
            bars = self._bars = self._bars or self._display()
            task = bars.add_task(name, total=total, note="")
        try:
            yield lambda done, total, note: bars.update(task, completed=done, total=total, note=note)
        finally:
            with self._drawing:
                bars.remove_task(task)
                if not bars.tasks:
                    bars.stop()
                    self._bars = None

    def _display(self) -> Bars:
        bars = Bars(
            SpinnerColumn(), TextColumn("{task.description:<12}"), BarColumn(32), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=self.terminal, transient=True,
            disable=not self.terminal.is_terminal,  # a log file gets a line a stage, and no redrawn bars
        )  # fmt: skip
        bars.start()
        return bars

    @staticmethod
    def _within(outer: Progress, name: str, done: int, total: int, note: str) -> None:
        outer(done, total, f"{name} {note}".rstrip())

    def round_starts(self, round: int, planned: int) -> None:
        self.say(f"\n[bold]round {round}[/] of {planned}")

    def round_table(self, state: Mapping[str, Any]) -> None:
        """One finished round, as in ``round-NNN.json``."""
        table = Table(show_header=False, box=None, padding=(0, 2))
        for name, value in round_rows(state):
            table.add_row(f"[dim]{name}[/]", value)
        self.terminal.print(table)

    def run_table(self, status: Mapping[str, Any]) -> None:
        """A run at a glance: a line a round."""
        self.say(f"[bold]{status['name']}[/]  {status['state']}: {escape(status['reason'])}")
        if "models" in status["config"]:
            self._data_table(status)
            return
        rounds = Table(box=SIMPLE)
        for column in ("round", "pairs", "win rate", "vs initial", "KL", "length", "gate", "seconds"):
            rounds.add_column(column)
        for entry in status["rounds"]:
            figures = entry["evaluation"]
            rounds.add_row(
                str(entry["round"]), _pairs(entry, "", "/"), short(figures["win_rate"]),
                short(figures["win_rate_vs_initial"]), short(figures["kl"]), short(figures["length"]),
                entry["gate"]["decision"], f"{sum(entry['seconds'].values()):.0f}",
            )  # fmt: skip
        self.terminal.print(rounds)
        self._never_judged(status["rounds"])
        self._probe_table([status["initial"] or {"evaluation": {}}, *status["rounds"]])
        self.say(f"report: {status['directory']}/report.html")

    def _data_table(self, status: Mapping[str, Any]) -> None:
        """A run that makes data, and trains nothing."""
        rounds = Table("round", "pairs", "margin", "abstained", "seconds", box=SIMPLE)
        for entry in status["rounds"]:
            rounds.add_row(
                str(entry["round"]), _pairs(entry, "", "/"), short(entry["margin"].get("mean")),
                short(entry["scores"]["abstained"]), f"{sum(entry['seconds'].values()):.0f}",
            )  # fmt: skip
        self.terminal.print(rounds)
        self._never_judged(status["rounds"])
        self.say(f"report: {status['directory']}/report.html")

    def _never_judged(self, rounds: Sequence[Mapping[str, Any]]) -> None:
        """Prompts and candidates that were lost on the way to the judge, a line a round that lost some."""
        for entry in rounds:
            for name, text in lost_rows(entry):
                self.say(f"  round {entry['round']}, {name}: {escape(text)}")

    def _probe_table(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """A line an evaluation, the initial policy's first; nothing where the recipe has no probes."""
        names = list(entries[-1]["evaluation"].get("probes", {}))
        if not names:
            return
        table = Table("round", *names, box=SIMPLE, padding=0)
        for entry in entries:
            probes = entry["evaluation"].get("probes", {})
            table.add_row(
                str(entry["round"]) if entry.get("round", -1) >= 0 else "initial",
                *(short(probes.get(name)) for name in names),
            )
        self.terminal.print(table)

    def findings_table(self, findings: Sequence[Finding]) -> None:
        """What the doctor found: a line a finding, and under each that is not well how to mend it."""
        marks = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "wrong": "[red]✗[/]"}
        for finding in findings:
            self.say(f"{marks[finding.status]} {finding.name:<18} {escape(finding.value)}")
            if finding.mend:
                self.say(f"  {'':<18} [dim]→ {escape(finding.mend)}[/]")


def round_rows(state: Mapping[str, Any], markup: bool = True) -> list[tuple[str, str]]:
    """What one reads first of a round: name and text of each figure, with rich's ``markup`` or without."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in state["dropped"].items() if count) or "none"
    seconds = " · ".join(f"{stage} {value:.1f}" for stage, value in state["seconds"].items())
    return [
        *lost_rows(state),
        ("pairs", f"{_pairs(state, ' kept', ' of ')} groups; dropped: {dropped}"),
        *margin_rows(state["margin"]),
        *(_policy_rows(state, markup) if state["evaluation"] else []),
        ("seconds", seconds),
    ]


def _policy_rows(state: Mapping[str, Any], markup: bool) -> list[tuple[str, str]]:
    figures, gate = state["evaluation"], state["gate"]
    colour = "green" if gate["decision"] == "promote" else "yellow"
    decision = f"[{colour}]{gate['decision']}[/]" if markup else gate["decision"]
    return [
        ("win rate", f"{interval(figures, 'win_rate')} against the round's start, "
                     f"{interval(figures, 'win_rate_vs_initial')} against the initial policy"),
        ("score", _scores(figures)),
        *_held_out(state["training"]),
        *_early_end(state["training"]),
        ("KL", f"{figures['kl']:.2f} nats to the initial policy; length × {figures['length_ratio']:.2f}"),
        *probe_rows(figures),
        ("gate", f"{decision}: {gate['reason']}"),
    ]  # fmt: skip


def _pairs(state: Mapping[str, Any], kept: str, of: str) -> str:
    """Pairs out of groups, and between them the groups that gave those pairs where some gave several."""
    source = f" from {state['paired']}" if state["paired"] < state["pairs"] else kept
    return f"{state['pairs']}{source}{of}{state['groups']}"


def lost_rows(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where several models answer: what is in no group."""
    left_out, missing = state.get("left_out", 0), state.get("missing") or {}
    return [
        *([("left out", f"{left_out:,} prompts, of which too few candidates came")] if left_out else []),
        *([("missing", f"candidates of {missing_text(missing)}")] if missing else []),
    ]


def margin_rows(margin: Mapping[str, float]) -> list[tuple[str, str]]:
    return [("margin", f"mean {margin['mean']:.2f}, median {margin['median']:.2f}")] if margin else []


def _early_end(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("training", f"ended at step {training['step']}: {training['stopped']}")] if "stopped" in training else []


def _held_out(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the last step left of the pairs that were not trained on."""
    if not training.get("held_out"):
        return []
    figures = (("loss", "loss"), ("accuracy", "rewards/accuracies"), ("margin", "rewards/margins"))
    known = [f"{label} {training[f'eval/{name}']:.3f}" for label, name in figures if f"eval/{name}" in training]
    return [("held out", f"{training['held_out']} pairs: {', '.join(known)}")]


def _scores(figures: Mapping[str, Any]) -> str:
    if figures["score_mean"] is None:
        return UNKNOWN
    return f"{figures['score_mean']:.3f}, change since the initial policy {interval(figures, 'score_delta')}"


def probe_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    probes = figures.get("probes") or {}
    return [("probes", ", ".join(f"{name} {value:.3f}" for name, value in probes.items()))] if probes else []


def short(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


def interval(figures: Mapping[str, Any], name: str) -> str:
    """``0.612 (0.580 to 0.644)``; round brackets, because rich reads square ones."""
    value, low, high = (figures[key] for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return UNKNOWN
    return f"{value:.3f} ({low:.3f} to {high:.3f})" if low is not None else f"{value:.3f}"
