"""Where an export comes from: for machines in ``lineage.json``, and as a recipe and commands that make it again."""

import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from pipeline.export.public import public, public_text
from pipeline.export.rounds import RoundArtifacts
from pipeline.runs import Run
from pipeline.texts import toml_lines

RECIPE = "recipe.toml"


def lineage_of(run: Run, entries: Sequence[Mapping[str, Any]], made: Sequence[RoundArtifacts] = ()) -> dict[str, Any]:
    """Digests of policies, keys of artifacts, the gate's decisions and the versions at work."""
    status = run.status()
    initial = status["initial"] or {}
    keys = {each.number: each.keys for each in made}
    return {
        "initial_policy": initial.get("policy_out"),
        "rounds": [
            {
                "round": entry["round"], "policy_in": entry.get("policy_in"), "policy_out": entry.get("policy_out"),
                "decision": (entry.get("gate") or {}).get("decision"),
                "artifacts": {**entry["artifacts"], **keys.get(entry["round"], {})},
            }
            for entry in entries
        ],
        **({"paired_anew": status["paired_anew"]} if "paired_anew" in status else {}),
        "versions": versions(run),
    }  # fmt: skip


def recipe_of(run: Run) -> str:
    """The run's settings as a recipe, without secrets and without places on this machine."""
    title = f"# The settings of run {run.name!r}, all of them. Paths are cut to their last part.\n\n"
    return title + "\n".join(toml_lines(public(run.status()["config"]))) + "\n"


def commands(run: Run) -> list[str]:
    """What was typed to make the run, oldest first, each once; none where it was not kept."""
    return list(dict.fromkeys(public_text(command.line) for command in run.commands() if not command.anew))


def again(run: Run) -> str:
    """A command that makes the run again from its recipe, and one that makes its pairs anew where they were."""
    status = run.status()
    verb = "data" if "models" in status["config"] else "run"
    lines = [["ratchet", verb, RECIPE, "--name", run.name]]
    if "paired_anew" in status:
        settings = [word for each in status["paired_anew"]["changed"] for word in ("--set", each)]
        lines.append(["ratchet", "pair", run.name, *settings])
    return "\n".join(map(shlex.join, lines))


def versions(run: Run) -> dict[str, str]:
    """Those at work when the run was last begun, by name; our own, where it was not kept."""
    kept = [command for command in run.commands() if not command.anew]
    if kept:
        return dict(kept[-1].versions)
    try:
        return {"ratchet": metadata.version("ratchet-dpo")}
    except metadata.PackageNotFoundError:
        return {}
