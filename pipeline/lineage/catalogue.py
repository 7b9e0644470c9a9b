"""What a workspace holds, for a walk that must not fall over what is missing: artifacts by key, policies by digest,
runs with their rounds, trainings without rounds. What cannot be read becomes a sentence in ``gaps``."""

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import RatchetError, StoreError
from pipeline.runs import RESULT, TRAINED, Run
from pipeline.store import MANIFEST, Artifact, Store

MAKERS = ("train", "policy", "average")
"""Stages whose artifacts hold a policy. A training comes before a checkpoint that was taken in: where both hold it, the
checkpoint is what the training made, exported and read again."""


@dataclass(frozen=True, slots=True)
class Made:
    """How an artifact was made, as its manifest says."""

    stage: str
    key: str
    config: Mapping[str, Any]
    """The settings its stage read."""
    inputs: Mapping[str, str]
    """Keys of upstream artifacts and digests of policies, by role."""
    info: Mapping[str, Any]
    """What the stage said of its result."""

    @classmethod
    def of(cls, artifact: Artifact) -> "Made":
        said = artifact.manifest
        return cls(said["stage"], said["key"], said["config"], said["inputs"], said["info"])


@dataclass(frozen=True, slots=True)
class Chronicle:
    """A run, as far as its folder tells."""

    name: str
    config: Mapping[str, Any]
    initial: Mapping[str, Any]
    """Its entry before the first round; empty where there is none."""
    rounds: tuple[Mapping[str, Any], ...]

    def artifacts(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        """The number and the artifact keys, by stage, of the initial entry (−1) and of each round."""
        for entry in (self.initial, *self.rounds):
            if entry:
                yield int(entry.get("round", -1)), entry.get("artifacts", {})


@dataclass(frozen=True, slots=True)
class Training:
    """One without rounds, as far as its folder tells."""

    name: str
    key: str
    """Of its artifact."""
    policy: str
    """Digest of the policy it came to."""
    read: Mapping[str, frozenset[str]]
    """The data sets as they were given, each with the keys of the artifacts whose pairs were in it when it was read;
    none where that cannot be known: a file, a name on the Hub."""

    def of(self, keys: Set[str]) -> tuple[str, ...]:
        """The data sets that have pairs of these artifacts."""
        return tuple(given for given, held in self.read.items() if held & keys)


@dataclass(slots=True)
class Catalogue:
    workspace: Path
    gaps: list[str] = field(default_factory=list)
    _runs: list[Chronicle] | None = None
    _trainings: list[Training] | None = None
    _makers: dict[str, list[Artifact]] | None = None

    @property
    def store(self) -> Store:
        return Store(self.workspace.resolve() / "artifacts")

    def missing(self, what: str) -> None:
        if what not in self.gaps:
            self.gaps.append(what)

    @property
    def runs(self) -> list[Chronicle]:
        """Newest first."""
        if self._runs is None:
            files = sorted(self.workspace.glob("runs/*/config.json"), key=lambda file: file.stat().st_mtime)
            self._runs = [run for file in reversed(files) if (run := self._chronicle(file.parent.name)) is not None]
        return self._runs

    def _chronicle(self, name: str) -> Chronicle | None:
        try:
            status = Run(self.workspace, name).status()
        except RatchetError as error:
            self.missing(f"run {name!r}: {error}")
            return None
        return Chronicle(name, status["config"], status["initial"] or {}, tuple(status["rounds"]))

    @property
    def trainings(self) -> list[Training]:
        """By name."""
        if self._trainings is None:
            files = sorted(self.workspace.glob(f"{TRAINED}/*/{RESULT}"))
            self._trainings = [training for file in files if (training := self._training(file)) is not None]
        return self._trainings

    def _training(self, file: Path) -> Training | None:
        try:
            said = json.loads(file.read_text())
            read = {str(part["given"]): frozenset(map(str, part["pairs_of"])) for part in said["data"]}
            return Training(file.parent.name, str(said["training"]["key"]), str(said["policy"]["digest"]), read)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.missing(f"training {file.parent.name!r}: {file} cannot be read ({error!r})")
            return None

    def get(self, key: str, stage: str | None = None) -> Artifact | None:
        """The artifact of that key, of whatever stage where none is named; None where there is none."""
        stages = [stage] if stage is not None else sorted(folder.name for folder in self.store.root.glob("*/"))
        for each in stages:
            if (self.store.root / each / key / MANIFEST).exists():
                try:
                    return self.store.get(each, key)
                except StoreError as error:
                    self.missing(str(error))
                    return None
        return None

    def wanted(self, key: str, stage: str) -> Artifact | None:
        """As :meth:`get`; that there is none is noted."""
        found = self.get(key, stage)
        if found is None:
            self.missing(f"{stage} {key}: the artifact is gone")
        return found

    def upstream(self, artifact: Artifact) -> list[tuple[str, Artifact]]:
        """The artifact and all it was made from that are there, nearest first, each once, with the role it has for
        the one after it. Policies' makers are not among them, since a policy is known by its digest."""
        found = {artifact.key: ("", artifact)}
        for _, each in (waiting := [("", artifact)]):
            for role, key in each.manifest["inputs"].items():
                if key not in found and (there := self.get(key)) is not None:
                    found[key] = (role, there)
                    waiting.append(found[key])
        return list(found.values())

    def maker(self, digest: str) -> Artifact | None:
        """An artifact that holds the policy of that digest and did not begin with it, by stage as in MAKERS."""
        if self._makers is None:
            self._makers = {}
            for stage in MAKERS:
                for file in sorted(self.store.root.glob(f"{stage}/*/{MANIFEST}")):
                    if (artifact := self.get(file.parent.name, stage)) is not None:
                        self._makers.setdefault(str(artifact.info.get("policy")), []).append(artifact)
        makers = self._makers.get(digest, [])
        return next((each for each in makers if each.manifest["inputs"].get("policy") != digest), None)
