"""What judges said of one group: scores, votes, a panel's members, and the paid calls behind them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.calls.recall import Remembered, recall
from pipeline.errors import RatchetError
from pipeline.lineage.catalogue import Catalogue, Made
from pipeline.store import Artifact
from pipeline.tables import MEMBER, read_judgments
from pipeline.types import Judgment


@dataclass(frozen=True, slots=True)
class Opinion:
    """One judge's, of one group."""

    member: str
    """Its name in the panel; empty for the judge itself."""
    judge: str
    made: Made
    """With the judge's settings."""
    scores: tuple[float | None, ...]
    """Raw, one a candidate; None: abstained."""
    votes: tuple[Mapping[str, Any], ...]
    calls: Remembered
    """The ledger's record of the calls that the votes name."""
    members: tuple["Opinion", ...] = ()


def opinion_of(catalogue: Catalogue, ledger: Path, key: str, prompt_id: str, shard: int) -> Opinion | None:
    """What the judgments of that key say of the prompt; None, and a gap noted, where they do not.

    Args:
        shard: number of the shard that the prompt is in, if it is where it should be.
    """
    artifact = catalogue.get(key)
    if artifact is None:
        catalogue.missing(f"judgments {key}: the artifact is gone")
        return None
    return _opinion(catalogue, ledger, artifact, "", prompt_id, shard)


def _opinion(
    catalogue: Catalogue, ledger: Path, artifact: Artifact, member: str, prompt_id: str, shard: int
) -> Opinion | None:
    try:
        judgment = _judgment(artifact, prompt_id, shard)
    except (OSError, pa.ArrowException, ValueError) as error:
        catalogue.missing(f"judgments {artifact.key}: {error}")
        return None
    if judgment is None:
        catalogue.missing(f"judgments {artifact.key}: nothing of prompt {prompt_id!r}")
        return None
    members = []
    for role, key in artifact.manifest["inputs"].items():
        if role.startswith(MEMBER):
            if (there := catalogue.get(key)) is None:
                catalogue.missing(f"judgments {key} of member {role.removeprefix(MEMBER)!r}: the artifact is gone")
                continue
            each = _opinion(catalogue, ledger, there, role.removeprefix(MEMBER), prompt_id, shard)
            members += [each] if each is not None else []
    return Opinion(
        member, judgment.judge, Made.of(artifact), judgment.scores, judgment.votes,
        _calls(catalogue, ledger, judgment.votes), tuple(members),
    )  # fmt: skip


def call_keys(votes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the requests behind votes, in their order."""
    return [call["key"] for vote in votes for call in vote.get("calls", ()) if "key" in call]


def _calls(catalogue: Catalogue, ledger: Path, votes: Sequence[Mapping[str, Any]]) -> Remembered:
    keys = call_keys(votes)
    if keys and not ledger.is_file():
        catalogue.missing(f"ledger {ledger}: there is none, so {len(keys)} calls cannot be shown")
    try:
        return recall(ledger, keys)
    except RatchetError as error:
        catalogue.missing(str(error))
        return Remembered({}, {})


def _judgment(artifact: Artifact, prompt_id: str, shard: int) -> Judgment | None:
    for file in _likely_first(artifact, shard):
        ids = pq.read_table(file, columns=["prompt_id"])["prompt_id"]
        if (row := pc.index(ids, prompt_id).as_py()) >= 0:
            return read_judgments(pq.read_table(file).slice(row, 1))[0]
    return None


def _likely_first(artifact: Artifact, number: int) -> Iterator[Path]:
    files = [artifact.path / shard["file"] for shard in artifact.manifest["shards"]]
    yield from files[number : number + 1]
    yield from files[:number] + files[number + 1 :]
