"""What the report reads from the store: a few pairs, drops and distributions of a round, never all of its rows at once.

A report is written after every round and of old runs, so nothing here insists: an artifact that is gone or cannot be
read becomes a line in :attr:`Evidence.gaps`, and the rest of the round is still told.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.store import Artifact, Store

PAIRS_SHOWN = 4
DROPS_SHOWN = 3
"""Examples a round and reason."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One round, as far as the store still has it."""

    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Every score the judge gave, in its units; abstentions left out."""
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Tokens of every candidate."""
    steps: Sequence[Mapping[str, Any]] = ()
    """The trainer's metrics, one entry an optimiser step."""
    pairs: Sequence[Mapping[str, Any]] = ()
    """Rows of the pairs table, widest margin first."""
    drops: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """A few dropped groups by reason: ``prompt_id``, ``detail`` and, where known, ``prompt``."""
    gaps: Sequence[str] = ()
    """What could not be read, one sentence each."""


def gather(artifacts: Mapping[str, str], store: Store) -> Evidence:
    """The evidence behind one round's ``artifacts`` (keys by stage). Raises nothing for what is missing."""
    gaps: dict[str, str] = {}

    def read(stage: str, extract: Callable[[Artifact], Any], otherwise: Any) -> Any:
        key = artifacts.get(stage)
        if key is None:
            return otherwise
        try:
            return extract(store.get(stage, key))
        except (StoreError, OSError, pa.ArrowException, KeyError, ValueError) as error:
            gaps.setdefault(stage, f"{stage} {key}: {error}")
            return otherwise

    none = np.empty(0)
    return Evidence(
        scores=read("judgments", _scores, none),
        lengths=read("candidates", _lengths, none),
        steps=read("train", _steps, ()),
        pairs=read("pairs", _pairs, ()),
        drops=_with_prompts(read("pairs", _drops, {}), read("prompts", _prompt_texts, {})),
        gaps=list(gaps.values()),
    )


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
    return np.concatenate([np.empty(0), *parts])


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


def _prompt_texts(artifact: Artifact) -> dict[str, str]:
    return {
        prompt_id: text
        for table in _columns(artifact, ["prompt_id", "text"])
        for prompt_id, text in zip(table["prompt_id"].to_pylist(), table["text"].to_pylist(), strict=True)
    }


def _with_prompts(
    drops: Mapping[str, list[dict[str, Any]]], texts: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    return {reason: [{**row, "prompt": texts.get(row["prompt_id"])} for row in rows] for reason, rows in drops.items()}
