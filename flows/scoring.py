"""Log-probabilities under a frozen policy, kept shard by shard: of pairs for a loss, of samples for a KL."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from flows.session import Workplace, release_memory
from pipeline.store import Artifact, Draft

if TYPE_CHECKING:
    from trainers.examples import Row
    from trainers.reference import Reference

LOGPS = pa.schema([("logp", pa.float64()), ("token_logps", pa.list_(pa.float32()))])
"""One row a completion, in the order they were given in; nats. Tokens only where asked for."""


def score_shards(
    place: Workplace,
    draft: Draft,
    parts: "Sequence[Sequence[Row]]",
    load: "Callable[[], Reference]",
    label: str,
    stage: str,
    tokens: bool = False,
) -> Artifact:
    """log π of every completion, a shard a part; shards of an earlier session stay.

    Args:
        load: gives the policy that scores; called once the accelerator is free.
        label: what people see.
        stage: who asks for the accelerator's memory.
        tokens: keep each token's log-probability, too.
    """
    total, done = sum(map(len, parts)), 0
    place.free_device(stage)
    with place.console.stage(label, total) as progress:
        release_memory()  # the last one's
        model = load()
        for number, rows in enumerate(parts):
            if not draft.has_shard(number):
                logps = [
                    {"logp": sum(each), "token_logps": each if tokens else None} for each in model.token_logps(rows)
                ]
                draft.commit_shard(number, pa.Table.from_pylist(logps, LOGPS))
            done += len(rows)
            progress(done, total, "")
    return draft.finish(rows_in=total)
