"""``ratchet annotate`` and ``ratchet votes``: what people are asked, and where their votes go."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table

from flows.sources import OF_RUN
from pipeline.candidates import all_groups
from pipeline.errors import ConfigError
from pipeline.runs import Run
from pipeline.store import Artifact
from pipeline.tables import all_judgments

if TYPE_CHECKING:
    from judges.annotation.tasks import Task
    from pipeline.types import Group, Judgment

ROUND = re.compile(r"round-(\d+)")


def tasks_of(given: str, workspace: Path, per_prompt: int, seed: int) -> "list[Task]":
    """Comparisons of a run's candidates (``RUN`` or ``RUN:ROUND``, by default the newest), or of a preference file.

    Raises:
        ConfigError: ``given`` is neither.
        DataError: the file cannot be read as preferences.
    """
    from judges.annotation.sources import tasks_from_groups, tasks_from_pairs
    from judges.labels.reading import read_labels

    path = Path(given).expanduser()
    if path.is_file():
        return tasks_from_pairs(read_labels(path).pairs)
    named = OF_RUN.fullmatch(given)
    if named is None or not (workspace / "runs" / named["run"]).is_dir():
        raise ConfigError(f"SOURCE {given!r} leads nowhere; allowed: a run (RUN or RUN:ROUND) or a file of preferences")
    groups, judgments = candidates_of(Run.existing(workspace, named["run"]), named["round"])
    return tasks_from_groups(groups, per_prompt, seed, judgments)


def candidates_of(run: Run, number: str | None) -> "tuple[list[Group], list[Judgment] | None]":
    """A round's groups, and what its judge said of them, if it has spoken. Raises ConfigError where there are none."""
    found = sorted(int(each[1]) for folder in (run.directory / "links").glob("round-*")
                   if (each := ROUND.fullmatch(folder.name)) and (folder / "candidates").exists())  # fmt: skip
    if not found or (number is not None and int(number) not in found):
        wanted = "any round" if number is None else f"round {number}"
        raise ConfigError(f"run {run.name!r} has no candidates of {wanted}; it has {found or 'none at all'}")
    links = run.directory / "links" / f"round-{found[-1] if number is None else int(number):03d}"
    groups = all_groups(_linked(run, links / "candidates"))
    if not (links / "judgments").exists():
        return groups, None
    return groups, all_judgments(_linked(run, links / "judgments").tables())


def _linked(run: Run, link: Path) -> Artifact:
    place = link.resolve()
    return run.store.get(place.parent.name, place.name)


def calibration_items(labels: Path) -> "list[Task]":
    from judges.annotation.sources import tasks_from_pairs
    from judges.labels.reading import read_labels

    return tasks_from_pairs(read_labels(labels).pairs, known=True)


def preferences(labels: Path) -> list[dict[str, Any]]:
    """What most people preferred, as rows that trainers take (prompt, chosen, rejected); ties are no rows.

    Nor are calibration items: they are there to test people with, and judges.
    """
    from judges.annotation.store import BEGINS, read_votes
    from judges.labels.reading import read_labels

    rows = []
    collected = labels.is_file() and labels.read_bytes().startswith(BEGINS)
    known = {task.id for task in read_votes(labels).tasks.values() if task.known} if collected else set()
    for pair in read_labels(labels).pairs:
        if pair.label not in ("a", "b") or pair.id in known:
            continue
        better, worse = (pair.a, pair.b) if pair.label == "a" else (pair.b, pair.a)
        chat = bool(pair.messages)
        answers = [[{"role": "assistant", "content": text}] if chat else text for text in (better, worse)]
        rows.append(
            {"prompt": list(pair.messages) if chat else pair.prompt, "chosen": answers[0], "rejected": answers[1]}
        )
    return rows


def summary(votes: Path) -> dict[str, Any]:
    from judges.annotation.store import read_votes
    from judges.annotation.summary import summarise

    records = read_votes(votes)
    return summarise(records.votes, records.tasks.values())


def summary_table(found: Mapping[str, Any]) -> RenderableType:
    """Votes, what remains, and each annotator."""
    table = Table(title=_caption(found), title_justify="left", title_style="")
    for name in ("annotator", "votes", "skipped", "known right", "to the left", "seconds"):
        table.add_column(name, justify="left" if name == "annotator" else "right")
    for each in found["annotators"]:
        known = each.get("calibration") or {}
        right = f"{known['right']} of {known['answered']}" if known.get("answered") else ""
        left, seconds = each.get("left"), each.get("seconds")
        table.add_row(each["name"], str(each["votes"]), str(each["skipped"]), right,
                      "" if left is None else f"{left:.0%}", "" if seconds is None else f"{seconds:.0f}")  # fmt: skip
    return table


def _caption(found: Mapping[str, Any]) -> str:
    alpha = (found["alpha"] or {}).get("value")
    agreed = "" if alpha is None else f", Krippendorff's α {alpha:.2f}"
    return (
        f"{found['votes']} votes on {found['finished']} of {found['tasks']} tasks, {found['remaining']} remain{agreed}"
    )
