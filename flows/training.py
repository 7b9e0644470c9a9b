"""The stages that learn: a reference's log-probabilities of examples, and the next policy.

``reference`` and ``train`` are a round's; ``score`` and ``learn``, which they stand on, take examples from anywhere
(``flows.offline``). Heavy imports are deferred to where they are used, as everywhere in ``flows``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flows.scoring import score_shards
from flows.session import Session, Workplace, release_memory
from flows.start import read_held_out, read_rounds_ids
from pipeline.candidates import shards
from pipeline.config import TrainerConfig
from pipeline.pairing.held_out import is_held_out, share_held_out
from pipeline.policy import architecture_digest, files_digest
from pipeline.store import Artifact, Draft, Spec
from pipeline.tables import read_pairs
from pipeline.types import Policy, PreferencePair

if TYPE_CHECKING:
    from trainers.examples import Example, Row
    from trainers.lesson import Lesson

NOT_LEARNT = frozenset(
    {"checkpoint_steps", "learning_rate_decay", "reference", "ema_decay", "eval_steps", "recompute", "processes"}
)
"""Settings that leave a training's result as it is, or come into it otherwise."""
SAMPLED = 4
"""Prompts whose completions are shown while a training runs."""


@dataclass(frozen=True, slots=True)
class Examples:
    training: "Sequence[Example]"
    held_out: "Sequence[Example]" = ()
    prompts: Sequence[tuple[int, ...]] = ()
    """Held-out prompts to show completions of, as token ids."""

    @property
    def all(self) -> "list[Example]":
        return [*self.training, *self.held_out]


@dataclass(frozen=True, slots=True)
class Material:
    """Examples to learn from, read when they are needed, and what they are called in keys."""

    names_of_rows: Mapping[str, str]
    """Digests or keys, by role, of the completions: all that a reference sees."""
    names: Mapping[str, str]
    """Digests or keys, by role, of all that a training sees of the examples."""
    read: Callable[[], Examples] = field(compare=False)
    held_out: float = 0.0
    """Share of the prompts whose examples ``read`` holds out, where ``names`` does not name them apart."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A frozen policy, and its log-probabilities of the material."""

    policy: Policy
    logps: Artifact


# ---------------------------------------------------------------------------------------------- of a round
def held_out_share(session: Session, prompts: Artifact) -> float:
    """Share of the prompts whose pairs no round of the run trains on."""
    config = session.config
    return share_held_out(config.evaluation.pairs, read_rounds_ids(prompts), config.prompts.per_round)


def has_examples(pairs: Artifact, share: float) -> bool:
    """Whether a pair is left to train on where a share of the prompts is held out."""
    return any(
        not is_held_out(prompt, share)
        for table in pairs.tables(["prompt_token_ids"])
        for prompt in table["prompt_token_ids"].to_pylist()
    )


def reference(session: Session, pairs: Artifact, policy: Policy, prompts: Artifact, label: str) -> Artifact:
    """log π_ref of every completion of the pairs, once, for all epochs, sweeps and resumes."""
    material = _of_round(session, pairs, policy, prompts)
    return session.store.make(*score(session, material, policy, session.config.trainer, label))


def train(
    session: Session,
    pairs: Artifact,
    reference: Compared | None,
    initial: Compared | None,
    policy: Policy,
    prompts: Artifact,
    round: int,
) -> Artifact:
    """The next policy, under ``policy/``, with ``metrics.jsonl`` beside it. ``initial`` is for a figure alone."""
    material = _of_round(session, pairs, policy, prompts)
    trainer = session.config.trainer
    rate = trainer.learning_rate * trainer.learning_rate_decay**round
    trainer = trainer.model_copy(update={"learning_rate": rate})
    seed = session.config.seed * 1_000 + round
    return session.store.make(*learn(session, material, policy, trainer, seed, reference=reference, initial=initial))


def average(session: Session, old: Policy, new: Policy) -> Artifact:
    """The moving average of the promoted policies after ``new``: decay · old + (1 − decay) · new."""
    from trainers.checkpoints import average_policies

    decay = session.config.trainer.ema_decay
    inputs = {"old": old.digest, "new": new.digest, "files": files_digest(new.path)}
    spec = Spec("average", 2, {"decay": decay}, inputs)

    def build(draft: Draft) -> Artifact:
        policy = average_policies(old, new, decay, draft.path / "policy")
        return draft.finish({"policy": policy.digest})

    return session.store.make(spec, build)


def _of_round(session: Session, pairs: Artifact, policy: Policy, prompts: Artifact) -> Material:
    """A share of the prompts is held out, replayed pairs like fresh ones; a reference scores all of them."""
    share, logits = held_out_share(session, prompts), session.config.soft_verdicts

    def read() -> Examples:
        from trainers.checkpoints import load_specials
        from trainers.encoding import encode_pairs

        specials = load_specials(policy.path)
        sides: dict[bool, list[PreferencePair]] = {False: [], True: []}
        for pair in read_pairs(pairs.table()):
            sides[is_held_out(pair.prompt.token_ids, share)].append(pair)
        different = list(dict.fromkeys(prompt.token_ids for prompt in read_held_out(prompts)))
        training, held_out = (encode_pairs(sides[side], specials, logits=logits) for side in (False, True))
        return Examples(training, held_out, different[:SAMPLED])

    return Material({"pairs": pairs.key}, {"pairs": pairs.key}, read, share)


# ---------------------------------------------------------------------------------------------- of any material
Making = tuple[Spec, Callable[[Draft], Artifact]]
"""What :meth:`pipeline.store.Store.make` takes: an artifact's spec, and how to make it."""


def needs(trainer: TrainerConfig) -> frozenset[str]:
    """What the losses ask for beyond the policy's log-probabilities: see :data:`trainers.terms.Need`."""
    from trainers.dpo import objective_of

    return objective_of(trainer).needs


def score(
    place: Workplace, material: Material, policy: Policy, trainer: TrainerConfig, label: str = "reference"
) -> Making:
    """log π of every completion of the material, in the order of :func:`rows_of`. ``label`` is what people see."""
    from trainers.reference import Reference

    tokens, mismatched = (need in needs(trainer) for need in ("reference_tokens", "mismatched"))
    config = {
        "dtype": trainer.dtype, "token_budget": trainer.token_budget, "tokens": tokens, "mismatched": mismatched,
        "quantise": None if trainer.lora is None else trainer.lora.quantise,
        **({"held_out": material.held_out} if mismatched else {}),
    }  # fmt: skip
    inputs = {**material.names_of_rows, "policy": policy.digest, "model": architecture_digest(policy.path)}

    def load() -> Reference:
        return Reference(policy, trainer.dtype, trainer.token_budget, trainer.lora)

    def build(draft: Draft) -> Artifact:
        rows, _ = rows_of(material.read(), trainer)
        return score_shards(place, draft, shards(rows), load, label, "reference", tokens)

    return Spec("reference", 3, config, inputs), build


def learn(
    place: Workplace,
    material: Material,
    policy: Policy,
    trainer: TrainerConfig,
    seed: int,
    *,
    reference: Compared | None,
    initial: Compared | None = None,
) -> Making:
    """The policy that ``policy`` becomes; its spec knows the references by their log-probabilities."""
    from trainers.launch import train_in_processes

    config = trainer.model_dump(mode="json", exclude=set(NOT_LEARNT)) | {"seed": seed, "held_out": material.held_out}
    compared = {"reference": reference, "initial": initial}
    keys = {name: each.logps.key for name, each in compared.items() if each is not None}
    # The tokenizer is saved with the next policy, and says which completions were cut.
    inputs = {**material.names, "policy": policy.digest, "files": files_digest(policy.path), **keys}
    spec = Spec("train", 6, config, inputs)

    def build(draft: Draft) -> Artifact:
        place.free_device("train")
        release_memory()  # the reference's, for processes of their own
        with place.console.stage("train") as progress:
            lesson = _lesson(material.read(), policy, trainer, seed, reference, initial)
            trained, outcome = train_in_processes(policy, lesson, trainer, draft.path, draft.timed(progress))
        info = {"metrics": outcome.metrics, "stopped": outcome.stopped, "held_out": len(lesson.held_out)}
        return draft.finish({"policy": trained.digest, **info})

    return spec, build


def rows_of(examples: Examples, trainer: TrainerConfig) -> "tuple[list[Row], dict[Row, Row]]":
    """The rows that a reference of a training scores, in its order, and each row's mismatched one, where needed."""
    from trainers.reference import mismatches, reference_rows

    mismatched = mismatches(examples.training, examples.held_out) if "mismatched" in needs(trainer) else {}
    return reference_rows(examples.all, mismatched), mismatched


def _lesson(
    examples: Examples,
    policy: Policy,
    trainer: TrainerConfig,
    seed: int,
    reference: Compared | None,
    initial: Compared | None,
) -> "Lesson":
    from trainers.checkpoints import load_specials
    from trainers.lesson import Lesson
    from trainers.step import KnownReference

    _, ends = load_specials(policy.path)
    rows, mismatched = rows_of(examples, trainer)
    return Lesson(
        examples.training,
        KnownReference() if reference is None else KnownReference(*_read_logps(reference.logps, rows)),
        trainer.learning_rate,
        seed,
        starts_at_reference=reference is not None and reference.policy.digest == policy.digest,
        mismatched=mismatched,
        initial_logps={} if initial is None else _read_logps(initial.logps, rows)[0],
        live=reference.policy if reference is not None and "reference_kl" in needs(trainer) else None,
        held_out=examples.held_out,
        sample_prompts=examples.prompts,
        truncated={row for row in rows if row.completion[-1] not in ends} if ends else None,
    )


def _read_logps(artifact: Artifact, rows: "Sequence[Row]") -> "tuple[dict[Row, float], dict[Row, list[float]] | None]":
    table = artifact.table()
    logps = dict(zip(rows, table["logp"].to_pylist(), strict=True))
    tokens = table["token_logps"]
    return logps, None if tokens.null_count else dict(zip(rows, tokens.to_pylist(), strict=True))
