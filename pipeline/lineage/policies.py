"""Where a policy comes from: training after training, back to the first checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.lineage.catalogue import Catalogue, Made

NOT_DATA = ("policy", "files", "reference", "initial", "old", "new")
"""A training's inputs that it did not learn from."""


@dataclass(frozen=True, slots=True)
class Step:
    """One policy of a chain."""

    digest: str
    made: Made | None
    """None where no artifact here holds it: another workspace's, or deleted."""
    start: str | None = None
    """Digest of the policy it was trained from; None of one that was not trained here."""
    learnt_from: Mapping[str, str] = field(default_factory=dict)
    """What it was trained on: keys of pairs, digests of examples, by role."""
    reference: str | None = None
    """Digest of the policy it was compared with; None without a reference, or where that artifact is gone."""
    path: str = ""
    """Of a checkpoint: where it was taken from, as a run's config says."""
    rounds: tuple[tuple[str, int], ...] = ()
    """Runs and rounds that made it; round −1 began with it."""
    trainings: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Trainings without rounds that made it, and the data sets that each was given."""


def chain(catalogue: Catalogue, digest: str) -> list[Step]:
    """The policy of that digest and those it was trained from, newest first."""
    steps: list[Step] = []
    following: str | None = digest
    while following is not None and following not in {step.digest for step in steps}:
        steps.append(step := _step(catalogue, following))
        following = step.start
    return steps


def _step(catalogue: Catalogue, digest: str) -> Step:
    artifact = catalogue.maker(digest)
    if artifact is None:
        catalogue.missing(f"policy {digest[:12]}: no artifact here holds it")
        return Step(digest, None)
    made = Made.of(artifact)
    rounds, path = [], ""
    for run in catalogue.runs:
        for number, keys in run.artifacts():
            if keys.get(made.stage) == made.key:
                rounds.append((run.name, number))
                if made.stage == "policy":
                    path = path or run.config.get("policy", {}).get("path", "")
    return Step(
        digest, made, made.inputs.get("policy") or made.inputs.get("new"),
        {role: key for role, key in made.inputs.items() if role not in NOT_DATA} if made.stage == "train" else {},
        _reference(catalogue, made.inputs.get("reference")), str(made.config.get("path") or path), tuple(rounds),
        tuple((each.name, tuple(each.read)) for each in catalogue.trainings if each.key == made.key),
    )  # fmt: skip


def _reference(catalogue: Catalogue, key: str | None) -> str | None:
    artifact = None if key is None else catalogue.wanted(key, "reference")
    return None if artifact is None else str(artifact.manifest["inputs"]["policy"])
