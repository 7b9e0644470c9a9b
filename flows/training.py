"""The stages that learn: the reference's log-probabilities of the pairs, and the next policy.

Heavy imports are deferred to where they are used, as everywhere in ``flows``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from flows.session import Session
from flows.stages import SHARD, shards
from pipeline.store import Artifact, Draft, Spec
from pipeline.tables import read_pairs
from pipeline.types import Policy

if TYPE_CHECKING:
    from trainers.dpo import Lesson
    from trainers.examples import Example, Row

LOGPS = pa.schema([("logp", pa.float64()), ("token_logps", pa.list_(pa.float32()))])
"""One row a completion, in the order of ``trainers.reference.reference_rows``; nats. Tokens only where asked for."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A frozen policy, and its log-probabilities of a round's pairs."""

    policy: Policy
    logps: Artifact


def reference(session: Session, pairs: Artifact, policy: Policy) -> Artifact:
    """log π_ref of every completion of the pairs, once, for all epochs, sweeps and resumes."""
    from trainers.reference import Reference, mismatches, reference_rows

    trainer = session.config.trainer
    tokens, mismatched = (need in _needs(session) for need in ("reference_tokens", "mismatched"))
    config = {
        "dtype": trainer.dtype, "token_budget": trainer.token_budget, "tokens": tokens, "mismatched": mismatched,
    }  # fmt: skip
    spec = Spec("reference", 2, config, {"pairs": pairs.key, "policy": policy.digest})

    def build(draft: Draft) -> Artifact:
        session.free_device("reference")
        examples = read_examples(pairs, policy)
        rows = reference_rows(examples, mismatches(examples) if mismatched else {})
        with session.console.stage("reference", len(rows)) as progress:
            model = Reference(policy, trainer.dtype, trainer.token_budget)
            for number, shard in enumerate(shards(rows)):
                if not draft.has_shard(number):
                    logps = [
                        {"logp": sum(each), "token_logps": each if tokens else None}
                        for each in model.token_logps(shard)
                    ]
                    draft.commit_shard(number, pa.Table.from_pylist(logps, LOGPS))
                progress(min((number + 1) * SHARD, len(rows)), len(rows), "")
        return draft.finish(rows_in=len(rows))

    return session.store.make(spec, build)


def train(
    session: Session, pairs: Artifact, reference: Compared | None, initial: Compared | None, policy: Policy, round: int
) -> Artifact:
    """The next policy, under ``policy/``, with ``metrics.jsonl`` beside it. ``initial`` is for a figure alone."""
    from trainers.dpo import train_policy

    trainer = session.config.trainer
    rate = trainer.learning_rate * trainer.learning_rate_decay**round
    seed = session.config.seed * 1_000 + round
    elsewhere = {"checkpoint_steps", "learning_rate_decay", "reference", "ema_decay", "eval_steps", "recompute"}
    config = trainer.model_dump(mode="json", exclude=elsewhere) | {"learning_rate": rate, "seed": seed}
    inputs = {"pairs": pairs.key, "policy": policy.digest}
    compared = (("reference", reference), ("initial", initial))
    inputs |= {name: each.logps.key for name, each in compared if each is not None}
    spec = Spec("train", 3, config, inputs)

    def build(draft: Draft) -> Artifact:
        session.free_device("train")
        with session.console.stage("train") as progress:
            lesson = _lesson(session, pairs, reference, initial, policy, rate, seed)
            trained, metrics = train_policy(policy, lesson, trainer, draft.path, draft.timed(progress))
        return draft.finish({"policy": trained.digest, "metrics": metrics})

    return session.store.make(spec, build)


def average(session: Session, old: Policy, new: Policy) -> Artifact:
    """The moving average of the promoted policies after ``new``: decay · old + (1 − decay) · new."""
    from trainers.checkpoints import average_policies

    decay = session.config.trainer.ema_decay
    spec = Spec("average", 1, {"decay": decay}, {"old": old.digest, "new": new.digest})

    def build(draft: Draft) -> Artifact:
        policy = average_policies(old, new, decay, draft.path / "policy")
        return draft.finish({"policy": policy.digest})

    return session.store.make(spec, build)


def read_examples(pairs: Artifact, policy: Policy) -> "Sequence[Example]":
    from trainers.checkpoints import load_specials
    from trainers.encoding import encode_pairs

    return encode_pairs(read_pairs(pairs.table()), load_specials(policy.path))


def _needs(session: Session) -> frozenset[str]:
    from trainers.dpo import objective_of

    return objective_of(session.config.trainer).needs


def _lesson(
    session: Session,
    pairs: Artifact,
    reference: Compared | None,
    initial: Compared | None,
    policy: Policy,
    rate: float,
    seed: int,
) -> "Lesson":
    from trainers.dpo import Lesson
    from trainers.reference import mismatches, reference_rows
    from trainers.step import KnownReference

    examples = read_examples(pairs, policy)
    mismatched = mismatches(examples) if "mismatched" in _needs(session) else {}
    rows = reference_rows(examples, mismatched)
    return Lesson(
        examples,
        KnownReference() if reference is None else KnownReference(*_read_logps(reference.logps, rows)),
        rate,
        seed,
        starts_at_reference=reference is not None and reference.policy.digest == policy.digest,
        mismatched=mismatched,
        initial_logps={} if initial is None else _read_logps(initial.logps, rows)[0],
        live=reference.policy if reference is not None and "reference_kl" in _needs(session) else None,
    )


def _read_logps(artifact: Artifact, rows: "Sequence[Row]") -> "tuple[dict[Row, float], dict[Row, list[float]] | None]":
    table = artifact.table()
    logps = dict(zip(rows, table["logp"].to_pylist(), strict=True))
    tokens = table["token_logps"]
    return logps, None if tokens.null_count else dict(zip(rows, tokens.to_pylist(), strict=True))
