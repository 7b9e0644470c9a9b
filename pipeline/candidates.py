"""The candidates artifact: what was asked and what was answered, together, so that it needs nothing beside it.

    candidates/<key>/00000-….parquet …  prompts.parquet  manifest.json

A shard holds the candidates of ``SHARD`` prompts, groups whole and in prompt order; row group i of ``prompts.parquet``
holds the prompts of shard i, in the same order. Both are read a shard at a time, so memory does not grow with either.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.store import Artifact, Draft, digest, sync
from pipeline.tables import PROMPTS, intact, prompts_table, read_groups, read_prompts, stored_as
from pipeline.types import Group, Prompt

T = TypeVar("T")
SHARD = 256
"""Prompts a shard."""
ASKED = "prompts.parquet"


def shards(items: Sequence[T]) -> list[Sequence[T]]:
    """``items`` in runs of ``SHARD``, in order."""
    return [items[start : start + SHARD] for start in range(0, len(items), SHARD)]


def asked_digest(prompts: Iterable[Prompt]) -> str:
    """Of all that a prompt is: what is kept with the candidates must be what was asked."""
    return digest([[p.id, p.text, p.token_ids, p.messages, p.answer, p.source] for p in prompts])


def write_asked(draft: Draft, prompts: Sequence[Prompt]) -> None:
    """Write the prompts beside the shards."""
    part = draft.path / f"{ASKED}.part"
    with pq.ParquetWriter(part, PROMPTS, **stored_as(PROMPTS)) as writer:
        for shard in shards(prompts):
            writer.write_table(prompts_table(shard), row_group_size=SHARD)
    sync(part)
    part.rename(draft.path / ASKED)


def asked_tables(candidates: Artifact) -> Iterator[pa.Table]:
    """The prompts of each shard, in order.

    Raises:
        StoreError: they have been removed or damaged since.
    """
    path = candidates.path / ASKED
    with intact(path), pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)


def asked(candidates: Artifact) -> list[Prompt]:
    """All the prompts."""
    return [prompt for table in asked_tables(candidates) for prompt in read_prompts(table)]


def group_shards(candidates: Artifact) -> Iterator[list[Group]]:
    """The groups of each shard, in order. Raises StoreError as :func:`asked_tables` does."""
    for prompts, table in zip(asked_tables(candidates), candidates.tables(), strict=True):
        yield read_groups(table, {prompt.id: prompt for prompt in read_prompts(prompts)})


def all_groups(candidates: Artifact) -> list[Group]:
    return [group for shard in group_shards(candidates) for group in shard]


def group_of(candidates: Artifact, prompt_id: str) -> tuple[int, Group] | None:
    """The number of the prompt's shard, and its group; None where it was not asked, or has no candidate.

    Reads the ids of all prompts, and one shard. Raises StoreError as :func:`asked_tables` does.
    """
    path = candidates.path / ASKED
    with intact(path), pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            row = pc.index(file.read_row_group(number, ["prompt_id"])["prompt_id"], prompt_id).as_py()
            if row < 0:
                continue
            (prompt,) = read_prompts(file.read_row_group(number).slice(row, 1))
            shard = candidates.path / candidates.manifest["shards"][number]["file"]
            with intact(shard):
                rows = pq.read_table(shard, filters=[("prompt_id", "=", prompt_id)])
            return next(((number, group) for group in read_groups(rows, {prompt_id: prompt})), None)
    return None


def groups_in(candidates: Artifact) -> int:
    """How many groups there are, without reading them."""
    with pq.ParquetFile(candidates.path / ASKED) as file:
        return int(file.metadata.num_rows)


def joined(one: Group, other: Group) -> Group:
    """The candidates of two groups of one prompt as one group's; the other's indices go on."""
    assert one.prompt.id == other.prompt.id, "groups of two prompts are two groups"
    more = (replace(each, index=len(one.candidates) + each.index) for each in other.candidates)
    return Group(one.prompt, (*one.candidates, *more))
