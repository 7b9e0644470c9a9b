"""What ``ratchet train`` may be given as a data set or a policy, found without reading any of it.

A path comes before a run's name, and that before a name on the Hub. Only what is light is imported here, so that a
name that leads nowhere is refused at once.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import PretrainedPolicy
from pipeline.errors import ConfigError
from pipeline.export.provenance import pairs_in, pairs_pushed
from pipeline.rows import SUFFIXES
from pipeline.runs import TRAINED, Run
from pipeline.store import MANIFEST, Artifact, Store
from pipeline.types import Policy
from trainers.records import HUB_NAME

OF_RUN = re.compile(r"(?P<run>[A-Za-z0-9][A-Za-z0-9._-]*)(:(?P<round>\d+))?")
NAMED = re.compile(r"(?P<name>[\w.:-]+)=(?P<place>.+)")
HUB_POLICY = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Source:
    """A data set: its name, which selects its β, and the places it is read from, one after another."""

    name: str
    given: str
    places: tuple[str, ...]
    pairs: tuple[str, ...] = ()
    """Keys of the artifacts whose pairs these are, where that is known: for those who ask where a pair went."""


def find_source(given: str, workspace: Path, flag: str = "PAIRS") -> Source:
    """A file, a folder, a run's pairs (``RUN`` or ``RUN:ROUND``) or a Hub name; each also as ``NAME=…``.

    Raises:
        ConfigError: it is none of these, or the run has no such round.
    """
    named = None if Path(given).expanduser().exists() else NAMED.fullmatch(given)
    name, place = (named["name"], named["place"]) if named else ("", given)
    path = Path(place).expanduser()
    if path.exists():
        return Source(name or _stem(path), given, (str(path),), pairs_in(path))
    run = OF_RUN.fullmatch(place)
    if run and _is_run(workspace, run["run"]):
        artifacts = _pairs_of(workspace, run["run"], run["round"], flag)
        places, keys = zip(*((str(artifact.path), artifact.key) for artifact in artifacts), strict=True)
        return Source(name or run["run"], given, places, keys)
    hub = None if place.endswith(SUFFIXES) else HUB_NAME.fullmatch(place)
    if hub:
        keys = pairs_pushed(workspace, hub["path"], hub["revision"])
        return Source(name or hub["path"].partition("/")[2], given, (place,), keys)
    raise ConfigError(
        f"{flag} {given!r} leads nowhere; allowed: a file ({', '.join(SUFFIXES)}) or a folder, a run of"
        f" {workspace} (RUN or RUN:ROUND), or a Hub name (owner/name, owner/name:config, owner/name@revision);"
        " before any of them NAME="
    )


def find_policy(given: str, workspace: Path, flag: str = "--policy") -> Policy | PretrainedPolicy:
    """A policy that is in the store already, or a checkpoint to take in: by directory, run, training, or Hub name.

    Raises:
        ConfigError: it is none of these, or holds no weights.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        if not any(path.glob("*.safetensors")):
            raise ConfigError(f"{flag} {given!r} is a directory without *.safetensors weights")
        return _stored(path) or PretrainedPolicy(type="pretrained", path=str(path))
    run = OF_RUN.fullmatch(given)
    if run and _is_run(workspace, run["run"]):
        return _policy_of(workspace, run["run"], run["round"], flag)
    trained = workspace / TRAINED / given / "policy"
    if "/" not in given and trained.is_dir() and (policy := _stored(trained)):
        return policy
    hub = HUB_POLICY.fullmatch(given)
    if hub:
        return PretrainedPolicy(type="pretrained", path=hub["path"], revision=hub["revision"])
    raise ConfigError(
        f"{flag} {given!r} leads nowhere; allowed: a checkpoint's directory, a run of {workspace} (RUN, or RUN:ROUND"
        f" for the policy of a round), a training's name, or a Hub name (owner/name, owner/name@revision)"
    )


def _stem(path: Path) -> str:
    """``prefs`` of ``data/prefs.jsonl.gz``; an artifact's folder is called by its stage."""
    if (path / MANIFEST).exists():
        return path.resolve().parent.name
    return next((path.name.removesuffix(end) for end in SUFFIXES[::-1] if path.name.endswith(end)), path.resolve().name)


def _is_run(workspace: Path, name: str) -> bool:
    return (workspace / "runs" / name / "config.json").is_file()


def _rounds(workspace: Path, name: str, number: str | None, flag: str) -> list[dict[str, Any]]:
    """A run's finished rounds, or that one of them."""
    rounds = Run(workspace, name).status()["rounds"]
    found = [entry for entry in rounds if number is None or entry["round"] == int(number)]
    if not found and number is not None:
        there = ", ".join(str(entry["round"]) for entry in rounds) or "none"
        raise ConfigError(f"{flag} '{name}:{number}': run {name!r} has the finished rounds {there}")
    return found


def pairs_of_run(given: str, workspace: Path, flag: str) -> list[Artifact]:
    """The pairs of ``RUN`` or ``RUN:ROUND``, those rounds that have any. Raises ConfigError where there are none."""
    run = OF_RUN.fullmatch(given)
    if run is None or not _is_run(workspace, run["run"]):
        raise ConfigError(f"{flag} {given!r} leads nowhere; allowed: a run of {workspace} (RUN or RUN:ROUND)")
    return _pairs_of(workspace, run["run"], run["round"], flag)


def _pairs_of(workspace: Path, name: str, number: str | None, flag: str) -> list[Artifact]:
    store = Store(workspace.resolve() / "artifacts")
    artifacts = [store.get("pairs", each["artifacts"]["pairs"]) for each in _rounds(workspace, name, number, flag)]
    artifacts = [artifact for artifact in artifacts if artifact.manifest["rows"]]
    if not artifacts:
        raise ConfigError(f"{flag} {name!r}: the run has no pairs{' yet' if number is None else ' in that round'}")
    return artifacts


def _policy_of(workspace: Path, name: str, number: str | None, flag: str) -> Policy:
    """The policy a run promoted last, or that a round made; before any promotion the run's first."""
    run = Run(workspace, name)
    status = run.status()
    if number is not None:
        artifacts = _rounds(workspace, name, number, flag)[0]["artifacts"]
        if "train" not in artifacts:
            raise ConfigError(f"{flag} '{name}:{number}': that round trained no policy")
    elif status["best_round"] >= 0:
        artifacts = status["rounds"][status["best_round"]]["artifacts"]
    elif status["initial"] and "policy" in status["initial"]["artifacts"]:
        artifacts = status["initial"]["artifacts"]
    else:
        never = "models" in status["config"]
        raise ConfigError(f"{flag} {name!r}: the run {'makes data, and no policy' if never else 'has no policy yet'}")
    stage = "train" if "train" in artifacts else "policy"
    artifact = run.store.get(stage, artifacts[stage])
    return Policy(artifact.info["policy"], artifact.path / "policy")


def _stored(path: Path) -> Policy | None:
    """The policy at ``path`` if that is an artifact's, which never changes."""
    place = path.resolve()
    try:
        manifest = json.loads((place.parent / MANIFEST).read_text())
        return Policy(manifest["info"]["policy"], place) if place.name == "policy" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
