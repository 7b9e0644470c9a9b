"""A run's data as a folder that ``datasets.load_dataset(FOLDER, CONFIG)`` reads.

    README.md  recipe.toml  lineage.json
    data/<config>/train-<round>-<digest>-<part>.parquet

Read and written a shard at a time, several files at once, so that memory does not grow with the run. There is one
split, ``train``: prompts held out for evaluation were asked in no round, and so are, by their ids, in none of it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.export import columns
from pipeline.export.cards import Counts, Terms, data_card
from pipeline.export.folder import CARD, FolderDraft, check_destination, drafted, kept
from pipeline.export.lineage import RECIPE, lineage_of, recipe_of
from pipeline.export.rounds import FORMAT, Part, RoundArtifacts, open_round, parts
from pipeline.pairing.artifact import workers
from pipeline.protocols import Progress, silent
from pipeline.runs import Run
from pipeline.store import digest
from pipeline.texts import fold

KIND: Final = "dataset"
ROWS = 131_072
"""Rows a file has, about: some 10 to 200 MB."""
LOOKED_AT = 64
"""Pairs among which the card's example is looked for."""
Opened = Sequence[tuple[Mapping[str, Any], RoundArtifacts]]
"""Rounds as the run's records have them, and their artifacts."""


def finished_rounds(run: Run, numbers: Sequence[int] | None) -> list[dict[str, Any]]:
    """The entries of the finished rounds, or of those asked for.

    Raises:
        ConfigError: there is none, or one that was asked for is not there.
    """
    found = {entry["round"]: entry for entry in run.status()["rounds"]}
    there = ", ".join(map(str, found)) or "none"
    if not found:
        raise ConfigError(f"run {run.name!r} has no finished round yet")
    missing = [number for number in numbers or () if number not in found]
    if missing:
        raise ConfigError(f"round {missing[0]}: run {run.name!r} has the finished rounds {there}")
    return [entry for number, entry in found.items() if numbers is None or number in numbers]


def open_rounds(run: Run, numbers: Sequence[int] | None) -> list[tuple[dict[str, Any], RoundArtifacts]]:
    """The rounds with their artifacts, in order; with one that is of conversations, all are.

    Raises:
        ConfigError: as :func:`finished_rounds`, or nothing was answered in them.
        StoreError: an artifact is gone.
    """
    opened = [(entry, open_round(run.store, entry)) for entry in finished_rounds(run, numbers)]
    if not any(made.candidates.manifest["rows"] for _, made in opened):
        raise ConfigError(f"run {run.name!r} has no answers in {'its' if numbers is None else 'those'} finished rounds")
    chat = any(made.chat for _, made in opened)
    return [(entry, replace(made, chat=chat)) for entry, made in opened]


def has_pairs(opened: Opened) -> bool:
    return any(made.pairs.manifest["rows"] for _, made in opened)


def export_data(
    run: Run,
    destination: Path,
    numbers: Sequence[int] | None = None,
    terms: Terms | None = None,
    *,
    keep: bool = False,
    earlier: Sequence[Path] = (),
    progress: Progress = silent,
    rows: int = ROWS,
) -> dict[str, Any]:
    """Write the data set of all finished rounds, or of ``numbers``. The same run gives the same bytes.

    Args:
        destination: a new or empty folder, or an earlier export of the run.
        keep: leave an earlier export of the same rounds under the same terms as it is, its card included.
        earlier: other exports of the run; shards they have are linked, not written again.
        progress: told files written, files in all, and the last one; at the end, how many have rows.
        rows: about how many a file may have.

    Returns:
        JSON-able: ``folder``, ``rounds``, ``rows`` by config, and ``files``.

    Raises:
        ConfigError: no such round, no answer, or ``destination`` holds something else.
        StoreError: an artifact is gone or damaged.
    """
    destination = destination.resolve()
    check_destination(destination, KIND, run.name)
    opened = open_rounds(run, numbers)
    chat, terms = opened[0][1].chat, terms or Terms()
    made_of = digest([FORMAT, [made.keys for _, made in opened], asdict(terms)])
    if keep and (found := kept(destination, made_of)):
        return found
    planned = [(made, part) for _, made in opened for part in parts(made, rows)]
    with drafted(destination, KIND, run.name, earlier) as draft:
        files, counts = _written(draft, planned, chat, progress)
        card = data_card(run, [entry for entry, _ in opened], counts, chat, _example(opened), terms, made_of)
        totals = {config: counts.of(config) for config in counts.by_config}
        summary = {"rounds": [made.number for _, made in opened], "rows": totals, "files": files}
        _finish(draft, run, opened, card, {"made_of": made_of, "summary": summary, "rows": counts.by_config})
    return {"folder": str(destination), **summary}


def _finish(draft: FolderDraft, run: Run, opened: Opened, card: str, more: Mapping[str, Any]) -> None:
    """The recipe, the card, and ``lineage.json`` with ``more``."""
    draft.text(RECIPE, recipe_of(run))
    draft.text(CARD, card)
    lineage = lineage_of(run, [entry for entry, _ in opened], [made for _, made in opened])
    draft.finish(KIND, run.name, {**more, **lineage})


def _written(
    draft: FolderDraft, planned: Sequence[tuple[RoundArtifacts, Part]], chat: bool, progress: Progress
) -> tuple[int, Counts]:
    """How many files have rows, and what these are. Several files are written at once."""

    def write(number: int) -> int:
        part = planned[number][1]
        return draft.shard(part.path, columns.schema(part.config, chat), part.tables)

    files = both = 0
    written: dict[str, Counter[int]] = {config: Counter() for config in columns.CONFIGS}
    sources: Counter[str] = Counter()
    progress(0, len(planned), "")
    with workers(None, len(planned)) as each:
        for done, rows in enumerate(each(write, range(len(planned)))):
            made, part = planned[done]
            written[part.config][made.number] += rows
            files += rows > 0
            both += draft.left_out(part.path)
            if part.config == "prompts":
                sources.update(_sources(draft.path / part.path))
            progress(done + 1, len(planned), part.path)
    progress(files, files, "files")
    by_config = {config: dict(by_round) for config, by_round in written.items() if by_round.total()}
    return files, Counts(by_config, {} if set(sources) <= {""} else dict(sorted(sources.items())), both)


def _sources(file: Path) -> dict[str, int]:
    counted = pc.value_counts(pq.read_table(file, columns=["source"])["source"]).to_pylist()
    return {each["values"] or "": each["counts"] for each in counted}


def _example(opened: Opened) -> dict[str, Any]:
    """A pair of the last round that has one, if possible of two answers with words, cut to what a card shows; empty
    without pairs. ``turns`` are its prompt's roles and texts; a single text has no role."""
    names = [
        "prompt_text", "prompt_messages", "chosen_text", "rejected_text", "score_chosen", "score_rejected", "round",
    ]  # fmt: skip
    for _, made in reversed(opened):
        for table in made.pairs.tables():
            rows: list[dict[str, Any]] = table.slice(0, LOOKED_AT).select(names).to_pylist()
            if rows:
                row = next((row for row in rows if row["rejected_text"].strip()), rows[0])
                turns = [(turn["role"], fold(turn["content"]).lead) for turn in row.pop("prompt_messages") or ()]
                told = {name: fold(value).lead if isinstance(value, str) else value for name, value in row.items()}
                return {**told, "turns": turns if len(turns) > 1 else [("", told["prompt_text"])]}
    return {}
