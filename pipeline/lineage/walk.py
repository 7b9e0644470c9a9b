"""The walk itself: a pair's id in, everything behind the pair out.

    pair ─ pairs artifact(s) ─┬─ candidates ─┬─ prompt ─ prompts artifact
                              │              ├─ proposals ─ paid calls
                              │              └─ policy ─ training ─ policy ─ … ─ first checkpoint
                              ├─ judgments ─ votes ─ paid calls        (a panel: its members' each)
                              └─ rounds that used it, trainings that read it ─ commands

What is gone or cannot be read is told as such; the rest is still told.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.calls.recall import PaidCall
from pipeline.candidates import group_of
from pipeline.commands import Command, read_commands
from pipeline.errors import StoreError
from pipeline.lineage.answers import paid_answers
from pipeline.lineage.catalogue import Catalogue, Chronicle, Made, Training
from pipeline.lineage.policies import Step, chain
from pipeline.lineage.search import Found, find_pair, holds, pair_artifacts
from pipeline.lineage.verdicts import Opinion, opinion_of
from pipeline.pairing.held_out import is_held_out
from pipeline.store import Artifact
from pipeline.types import Candidate, PreferencePair, Prompt

DIGEST = 64
"""Digits of a policy's digest; an artifact's key has half as many."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """One artifact that holds the pair. Settings of pairing may move scores; the candidates are the same."""

    made: Made
    """With the settings of pairing."""
    round: int
    score_chosen: float
    score_rejected: float
    margin: float


@dataclass(frozen=True, slots=True)
class Use:
    """A round that had the pair."""

    run: str
    round: int
    stage: str
    """``pairs``, among its own; ``replay``, among those of earlier rounds or another run that it took up again."""
    key: str
    """Of that artifact."""
    trained: str | None
    """Key of the training on them; None: the round has not trained, or never does."""
    policy: str | None
    """Digest of the policy it came to."""
    decision: str | None
    """The gate's."""
    held_out: bool
    """The training measured it, and did not learn from it."""


@dataclass(frozen=True, slots=True)
class Lineage:
    pair: PreferencePair
    """As the first of ``pairings`` has it."""
    pairings: tuple[Pairing, ...]
    """The newest run's first."""
    searched: int
    """Pairs that were looked at to find it."""
    prompts: Made | None
    """The prompt set the prompt is of, where a run tells."""
    candidates: tuple[Candidate, ...]
    """All of the group; empty where they are gone."""
    answers: Mapping[int, PaidCall]
    """The calls that candidates of served models came from, by index."""
    sampling: tuple[Made, ...]
    """The candidates artifact, with the sampler's settings, and what it was made from: what each model proposed."""
    policies: Mapping[str, tuple[Step, ...]]
    """Each policy that sampled, and those before it, by the name of its model; the trained one's is ``policy``."""
    opinion: Opinion | None
    uses: tuple[Use, ...]
    trainings: tuple[tuple[Training, tuple[str, ...]], ...]
    """Those without rounds that read an artifact or an export with the pair, and which data sets of theirs these were.
    """
    commands: tuple[tuple[str, tuple[Command, ...]], ...]
    """Of each run that used it, its sessions; and those that made it anew, of a run that may not have used it."""
    gaps: tuple[str, ...]
    """What could not be read, a sentence each."""


def lineage(workspace: Path, pair_id: str, ledger: Path) -> Lineage:
    """All that made the pair whose id begins with ``pair_id``.

    Raises:
        ConfigError: there is no such pair, there are several, or too few digits are given.
    """
    catalogue = Catalogue(workspace)
    unread: list[str] = []
    found = find_pair(pair_artifacts(catalogue.store, _keys(catalogue.runs, "pairs"), unread), pair_id, unread)
    for gap in unread:
        catalogue.missing(gap)
    pairs = [place.read() for place in found.places]
    pair, candidates = pairs[0], catalogue.wanted(pairs[0].candidates_key, "candidates")
    shard, group = _group(catalogue, candidates, pair.prompt)
    made = [] if candidates is None else catalogue.upstream(candidates)
    uses = tuple(_uses(catalogue, found, pair.prompt))
    return Lineage(
        pair=pair,
        pairings=_pairings(found, pairs),
        searched=found.searched,
        prompts=_prompts(catalogue, pair),
        candidates=group,
        answers=paid_answers(catalogue, ledger, [artifact for _, artifact in made], pair.prompt.id, group),
        sampling=tuple(Made.of(artifact) for _, artifact in made),
        policies={role: tuple(chain(catalogue, digest)) for role, digest in _policies(catalogue, made).items()},
        opinion=opinion_of(catalogue, ledger, pair.judgments_key, pair.prompt.id, shard),
        uses=uses,
        trainings=_trainings(catalogue, {*(place.artifact.key for place in found.places), *(use.key for use in uses)}),
        commands=tuple(_commands(catalogue, uses, {place.artifact.key for place in found.places})),
        gaps=tuple(catalogue.gaps),
    )


def _keys(runs: list[Chronicle], stage: str) -> Iterator[str]:
    for run in runs:
        yield from reversed([keys[stage] for _, keys in run.artifacts() if stage in keys])


def _pairings(found: Found, pairs: list[PreferencePair]) -> tuple[Pairing, ...]:
    return tuple(
        Pairing(Made.of(place.artifact), pair.round, pair.score_chosen, pair.score_rejected, pair.margin)
        for place, pair in zip(found.places, pairs, strict=True)
    )


def _group(catalogue: Catalogue, candidates: Artifact | None, prompt: Prompt) -> tuple[int, tuple[Candidate, ...]]:
    """The number of the prompt's shard, and all its candidates."""
    if candidates is not None:
        try:
            if (there := group_of(candidates, prompt.id)) is not None:
                return there[0], there[1].candidates
            catalogue.missing(f"candidates {candidates.key}: none of prompt {prompt.id!r}")
        except (StoreError, OSError, pa.ArrowException) as error:
            catalogue.missing(f"candidates {candidates.key}: {error}")
    return 0, ()


def _policies(catalogue: Catalogue, made: list[tuple[str, Artifact]]) -> dict[str, str]:
    """Digests of the policies among the inputs of the candidates and of what they were made from, by model."""
    found: dict[str, str] = {}
    for role, artifact in made:
        for name, value in artifact.manifest["inputs"].items():
            if len(value) == DIGEST and (name == "policy" or catalogue.maker(value) is not None):
                model = role.removeprefix("candidates").strip() if name == "policy" else name
                found.setdefault(model or "policy", value)
    return found


def _prompts(catalogue: Catalogue, pair: PreferencePair) -> Made | None:
    """Of a run that asked for these candidates."""
    for run in catalogue.runs:
        entries = [keys for _, keys in run.artifacts()]
        if any(keys.get("candidates") == pair.candidates_key for keys in entries):
            key = next((keys["prompts"] for keys in entries if "prompts" in keys), None)
            if key is not None and (artifact := catalogue.get(key, "prompts")) is not None:
                return Made.of(artifact)
            catalogue.missing(f"prompts of run {run.name!r}: the artifact is gone")
    return None


def _uses(catalogue: Catalogue, found: Found, prompt: Prompt) -> Iterator[Use]:
    held = {place.artifact.key for place in found.places}
    for run in catalogue.runs:
        for entry in run.rounds:
            keys = entry.get("artifacts", {})
            stage = "pairs" if keys.get("pairs") in held else "replay"
            if stage == "pairs" or _replayed(catalogue, keys.get(stage), held, found.id):
                trained = keys.get("train")
                yield Use(
                    run.name, entry["round"], stage, keys[stage], trained,
                    entry.get("policy_out") if trained else None, (entry.get("gate") or {}).get("decision"),
                    _held_out(catalogue, trained, prompt),
                )  # fmt: skip


def _held_out(catalogue: Catalogue, key: str | None, prompt: Prompt) -> bool:
    """Whether the round's training of that key held the prompt's pairs out."""
    artifact = None if key is None else catalogue.wanted(key, "train")
    share = 0.0 if artifact is None else Made.of(artifact).config.get("held_out", 0.0)
    return is_held_out(prompt.token_ids, share)


def _replayed(catalogue: Catalogue, key: str | None, held: set[str], pair_id: str) -> bool:
    """Whether the replayed pairs of that key have this one among them: only looked at where they drew from ``held``."""
    artifact = None if key is None else catalogue.wanted(key, "replay")
    if artifact is None:
        return False
    return bool(held & set(artifact.manifest["inputs"].values())) and holds(artifact, pair_id, catalogue.gaps)


def _trainings(catalogue: Catalogue, keys: Set[str]) -> tuple[tuple[Training, tuple[str, ...]], ...]:
    return tuple((each, read) for each in catalogue.trainings if (read := each.of(keys)))


def _commands(catalogue: Catalogue, uses: Sequence[Use], held: Set[str]) -> Iterator[tuple[str, tuple[Command, ...]]]:
    used = dict.fromkeys(use.run for use in uses)
    for name in dict.fromkeys([*used, *(run.name for run in catalogue.runs)]):
        noted = read_commands(catalogue.workspace / "runs" / name)
        kept = tuple(each for each in noted if held & set(each.anew) or (name in used and not each.anew))
        if kept or name in used:
            yield name, kept
