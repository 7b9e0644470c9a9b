"""What the report reads from the store: a few pairs, drops and distributions of a round, never all of its rows at once.

A report is written after every round and of old runs, so nothing here insists: an artifact that is gone or cannot be
read becomes a line in :attr:`Evidence.gaps`, and the rest of the round is still told.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.store import Artifact, Store

T = TypeVar("T")
Row = Mapping[str, Any]
Samples = dict[tuple[str, int], Row]
"""Rows by prompt id and place in the group, in the artifact's order."""
PAIRS_SHOWN = 4
"""Pairs a round."""
DROPS_SHOWN = 3
"""Examples a round and reason."""
ANSWERS_SHOWN = 6
STAGES = {"answers": "candidates"}
"""Where an artifact lies whose name in the run's records is not its stage's."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One round, as far as the store still has it."""

    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Every score the judge gave, in its units; abstentions left out."""
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Tokens of every candidate; none where they are text alone."""
    steps: Sequence[Mapping[str, Any]] = ()
    """The trainer's metrics, one entry an optimiser step."""
    pairs: Sequence[Mapping[str, Any]] = ()
    """Rows of the pairs table, widest margin first."""
    drops: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """A few dropped groups by reason: ``prompt_id``, ``detail`` and, where known, ``prompt``."""
    gaps: Sequence[str] = ()
    """What could not be read, one sentence each."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What two policies said to one held-out prompt, drawn with the same seed."""

    prompt_id: str
    prompt: str | None
    changed: int
    """Of the prompt's ``samples``, how many have another text now."""
    samples: int
    before: Row
    """The prompt's first sample that changed, else its first: ``index``, ``text``, ``tokens``, ``finish_reason``."""
    after: Row
    """The sample with the same index of the other policy."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two policies' answers to the held-out prompts, as far as both are there."""

    shown: Sequence[Answer]
    """Of a few prompts, of different texts where there are enough."""
    samples: int
    """Samples that both policies have."""
    changed: int
    """Those of them whose texts differ."""
    gaps: Sequence[str]


class Reader:
    """Reads one entry's artifacts (keys by stage); what is missing becomes a sentence in ``gaps``, not an error."""

    def __init__(self, artifacts: Mapping[str, str], store: Store) -> None:
        self.artifacts, self.store = artifacts, store
        self._gaps: dict[str, str] = {}

    @property
    def gaps(self) -> list[str]:
        return list(self._gaps.values())

    def read(self, name: str, extract: Callable[[Artifact], T], otherwise: T) -> T:
        """What ``extract`` finds in the artifact under ``name``; ``otherwise`` where there is none to be read."""
        key = self.artifacts.get(name)
        if key is None:
            return otherwise
        try:
            return extract(self.store.get(STAGES.get(name, name), key))
        except (StoreError, OSError, pa.ArrowException, KeyError, ValueError) as error:
            self._gaps.setdefault(name, f"{name} {key}: {error}")
            return otherwise

    def prompts(self, ids: Iterable[str]) -> dict[str, str]:
        """Texts of those prompts, by id."""
        wanted = pa.array(sorted(set(ids)), pa.string())
        return self.read("prompts", lambda artifact: _texts(artifact, wanted), {}) if len(wanted) else {}


def gather(artifacts: Mapping[str, str], store: Store) -> Evidence:
    """The evidence behind one round's ``artifacts`` (keys by stage). Raises nothing for what is missing."""
    reader = Reader(artifacts, store)
    none = np.empty(0)
    drops: dict[str, list[dict[str, Any]]] = reader.read("pairs", _drops, {})
    prompts = reader.prompts(row["prompt_id"] for rows in drops.values() for row in rows)
    return Evidence(
        scores=reader.read("judgments", _scores, none),
        lengths=reader.read("candidates", _lengths, none),
        steps=reader.read("train", _steps, []),
        pairs=reader.read("pairs", _pairs, []),
        drops={
            reason: [{**row, "prompt": prompts.get(row["prompt_id"])} for row in rows]
            for reason, rows in drops.items()
        },
        gaps=reader.gaps,
    )  # fmt: skip


def compare(before: Mapping[str, str], after: Mapping[str, str], store: Store) -> Comparison:
    """The answers of two policies to the same prompts with the same seeds.

    Args:
        before: artifacts of the initial policy's entry; its ``prompts`` are asked for the prompts' texts.
        after: artifacts of the other policy's. Without ``answers`` in both there is nothing to compare, and no gap.
    """
    first, second = Reader(before, store), Reader(after, store)
    if "answers" not in before or "answers" not in after:
        return Comparison([], 0, 0, [])
    none: Samples = {}
    old, new = first.read("answers", _answers, none), second.read("answers", _answers, none)
    pairs: dict[str, list[tuple[Row, Row]]] = {}
    for (prompt_id, index), row in old.items():
        if (prompt_id, index) in new:
            pairs.setdefault(prompt_id, []).append((row, new[prompt_id, index]))
    prompts = first.prompts(pairs)
    answers = {prompt_id: _answer(prompt_id, prompts, rows) for prompt_id, rows in pairs.items()}
    return Comparison(
        shown=[answers[prompt_id] for prompt_id in _varied(list(answers), prompts)],
        samples=sum(answer.samples for answer in answers.values()),
        changed=sum(answer.changed for answer in answers.values()),
        gaps=[*first.gaps, *second.gaps],
    )


def _answer(prompt_id: str, prompts: Mapping[str, str], rows: Sequence[tuple[Row, Row]]) -> Answer:
    changed = [(before, after) for before, after in rows if before["text"] != after["text"]]
    before, after = (changed or rows)[0]
    return Answer(prompt_id, prompts.get(prompt_id), len(changed), len(rows), before, after)


def _columns(artifact: Artifact, names: list[str]) -> Iterator[pa.Table]:
    for shard in artifact.manifest["shards"]:
        yield pq.read_table(artifact.path / shard["file"], columns=names)


def _scores(artifact: Artifact) -> np.ndarray:
    parts = [pc.list_flatten(table["scores"]).drop_null().to_numpy() for table in _columns(artifact, ["scores"])]
    scores: np.ndarray = np.concatenate([np.empty(0), *parts])
    finite: np.ndarray = scores[np.isfinite(scores)]
    return finite


def _lengths(artifact: Artifact) -> np.ndarray:
    parts = [pc.list_value_length(table["token_ids"]).to_numpy() for table in _columns(artifact, ["token_ids"])]
    lengths = np.concatenate([np.empty(0), *parts])
    return lengths if lengths.any() else np.empty(0)


def _steps(artifact: Artifact) -> list[dict[str, Any]]:
    lines = (artifact.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _pairs(artifact: Artifact) -> list[dict[str, Any]]:
    columns = _columns(artifact, ["pair_id", "prompt_text", "margin"])
    wanted = _spread([row for table in columns for row in table.to_pylist()], PAIRS_SHOWN)
    rows = [row for table in artifact.tables() for row in _taken(table, wanted)]
    return sorted(rows, key=lambda row: wanted.index(row["pair_id"]))


def _taken(table: pa.Table, ids: Sequence[str]) -> list[dict[str, Any]]:
    taken: list[dict[str, Any]] = table.filter(pc.is_in(table["pair_id"], pa.array(ids, pa.string()))).to_pylist()
    return taken


def _spread(rows: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Ids of ``count`` pairs from widest to narrowest margin, of different prompts where there are enough.

    Pair ids are digests, so their order is a draw that is the same every time.
    """
    ordered = sorted(rows, key=lambda row: (-row["margin"], row["pair_id"]))
    bins = [part for part in np.array_split(np.arange(len(ordered)), count) if len(part)]
    chosen: list[str] = []
    seen: set[str] = set()
    for part in bins:
        members = sorted((ordered[at] for at in part), key=lambda row: row["pair_id"])
        best = next((row for row in members if row["prompt_text"] not in seen), members[0])
        seen.add(best["prompt_text"])
        chosen.append(best["pair_id"])
    return chosen


def _drops(artifact: Artifact) -> dict[str, list[dict[str, Any]]]:
    file: Path = artifact.path / "dropped.parquet"
    examples: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(file).to_pylist() if file.exists() else []:
        known = examples.setdefault(row["reason"], [])
        if len(known) < DROPS_SHOWN:
            known.append(row)
    return examples


def _texts(artifact: Artifact, ids: pa.Array) -> dict[str, str]:
    tables = [table.filter(pc.is_in(table["prompt_id"], ids)) for table in _columns(artifact, ["prompt_id", "text"])]
    return {row["prompt_id"]: row["text"] for table in tables for row in table.to_pylist()}


def _answers(artifact: Artifact) -> Samples:
    found: Samples = {}
    for table in _columns(artifact, ["prompt_id", "index", "text", "finish_reason", "token_ids"]):
        lengths = pc.list_value_length(table["token_ids"])
        for row in table.drop_columns("token_ids").append_column("tokens", lengths).to_pylist():
            found[row["prompt_id"], row["index"]] = row
    return found


def _varied(ids: Sequence[str], prompts: Mapping[str, str]) -> list[str]:
    """``ANSWERS_SHOWN`` of ``ids``, spread over the different prompt texts; no text again before all have been."""
    seen: Counter[str] = Counter()
    turns: list[tuple[int, str]] = []
    for prompt_id in ids:
        text = prompts.get(prompt_id, prompt_id)
        turns.append((seen[text], prompt_id))
        seen[text] += 1
    ordered = [prompt_id for _, prompt_id in sorted(turns, key=lambda turn: turn[0])]
    if len(seen) <= ANSWERS_SHOWN:
        return ordered[:ANSWERS_SHOWN]
    return [ordered[at] for at in np.linspace(0, len(seen) - 1, ANSWERS_SHOWN).round().astype(int)]
