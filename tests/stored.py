"""Artifacts made by hand through the store, as the stages leave them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.candidates import shards, write_asked
from pipeline.store import Artifact, Draft, Spec, Store
from pipeline.tables import candidates_table
from pipeline.types import Group


def make(store: Store, spec: Spec, tables: Iterable[pa.Table] = (), **said: Any) -> Artifact:
    """Of these shards; ``said`` is as :meth:`Draft.finish` takes it."""

    def build(draft: Draft) -> Artifact:
        for number, table in enumerate(tables):
            draft.commit_shard(number, table)
        return draft.finish(**said)

    return store.make(spec, build)


def make_groups(store: Store, spec: Spec, groups: Sequence[Group], info: Mapping[str, Any] | None = None) -> Artifact:
    """Of candidates, with what was asked beside them."""

    def build(draft: Draft) -> Artifact:
        write_asked(draft, [group.prompt for group in groups])
        for number, shard in enumerate(shards(groups)):
            draft.commit_shard(number, candidates_table(shard))
        return draft.finish(info)

    return store.make(spec, build)
