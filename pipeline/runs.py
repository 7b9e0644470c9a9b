"""A run's folder: what was asked for, what each round decided, and readable links to what it made.

    runs/<name>/config.json  commits.json  commands.jsonl
                initial.json  round-000.json …  outcome.json  report.html  links/

The files point to artifacts by key; nothing here is needed to resume, since every stage finds its own artifact, but for
the commits of Hub data sets, which may have got newer ones since.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.commands import Command, note_command, read_commands
from pipeline.config import DataConfig, RunConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.store import Store, digest, locked, write_json
from pipeline.types import Policy, RoundState

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TRAINED, RESULT = "trained", "result.json"
"""Folder of a workspace with a folder for each training without rounds, and what says of that which training it is."""
EXTENDABLE = ("rounds", "title", "description", "limits", "health")
"""Settings that may change when a run is taken up again: they decide nothing that was already made."""


class Run:
    """One named run in a workspace."""

    def __init__(self, workspace: Path, name: str) -> None:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"--name {name!r}: allowed are letters and digits of ASCII, and after them '-', '_' and '.'"
            )
        self.workspace = workspace.resolve()
        self.name = name
        self.directory = self.workspace / "runs" / name
        self.store = Store(self.workspace / "artifacts")

    @classmethod
    def existing(cls, workspace: Path, name: str | None) -> "Run":
        """The run of that name, or the newest one. Raises ConfigError with the names there are."""
        runs = workspace / "runs"
        found = sorted(runs.glob("*/config.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        names = [file.parent.name for file in found]
        if not names:
            raise ConfigError(f"there are no runs in {runs}; give --workspace where they are elsewhere")
        if name is None:
            return cls(workspace, names[0])
        if name not in names:
            raise ConfigError(f"run {name!r} is not in {runs}; it has {', '.join(names)}")
        return cls(workspace, name)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other process off this name. Raises BusyError where one is on it."""
        busy = f"run {self.name!r} is already running in {self.workspace}; wait for it, or give --name"
        with locked(self.directory / ".lock", busy=busy):
            yield

    def check(self, config: RunConfig | DataConfig) -> None:
        """Raises ConfigError where the run began with other settings."""
        began = _read(self.directory / "config.json")
        changed = sorted(_differences(began, config.model_dump(mode="json"))) if began else []
        if changed:
            raise ConfigError(
                f"run {self.name!r} began with other settings ({'; '.join(changed[:3])}); give --name for a new run"
                " (it shares every artifact that stays the same), or the settings it began with"
            )

    def begin(self, config: RunConfig | DataConfig) -> None:
        """Write the config and the command down, or check that the run is taken up again with the same config."""
        self.check(config)
        settings = config.model_dump(mode="json")
        write_json(self.directory / "config.json", settings)
        note_command(self.directory, digest(settings))
        (self.directory / "outcome.json").unlink(missing_ok=True)

    def commits(self) -> dict[str, str]:
        """By its key in the recipe, the commit that each Hub data set is read at: a run that goes on keeps it."""
        return _read(self.directory / "commits.json") or {}

    def save_commits(self, commits: Mapping[str, str]) -> None:
        write_json(self.directory / "commits.json", commits)

    def commands(self) -> list[Command]:
        """Those that worked on the run, and those that made pairs of it anew, oldest first."""
        return read_commands(self.directory)

    def note_pairs(self, settings: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Write down that this command made pairs of those keys anew, but for what an earlier one had made."""
        known = {key for command in self.commands() for key in command.anew}
        if new := [key for key in keys if key not in known]:
            note_command(self.directory, digest(settings), anew=new)

    def save_initial(self, entry: Mapping[str, Any]) -> None:
        write_json(self.directory / "initial.json", entry)

    def save_round(self, state: RoundState) -> None:
        write_json(self.directory / f"round-{state.round:03d}.json", asdict(state))

    def save_outcome(self, state: str, reason: str, best_round: int = -1, policy: Policy | None = None) -> None:
        outcome = {
            "state": state, "reason": reason, "best_round": best_round,
            "policy": policy and {"digest": policy.digest, "path": str(policy.path)},
        }  # fmt: skip
        write_json(self.directory / "outcome.json", outcome)

    def save_failure(self, error: Exception) -> None:
        """Say why the run ended, so that status does not call it interrupted."""
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        reason = f"{type(error).__name__}: {said}; the same command tries again from here"
        outcome = {"state": "failed", "reason": reason, "best_round": _best(self._rounds()), "policy": None}
        write_json(self.directory / "outcome.json", outcome)

    def forget_rounds(self) -> None:
        """Remove an earlier session's round files: this session writes each again when it comes to it."""
        for file in self.directory.glob("round-*.json"):
            file.unlink()

    def link(self, name: str, target: Path) -> None:
        """A readable name for an artifact."""
        symlink(self.directory / "links" / name, target)

    def status(self) -> dict[str, Any]:
        """All there is to say of the run, JSON-serialisable: the report's and ``ratchet status --json``'s input."""
        config = _read(self.directory / "config.json") or {}
        rounds = self._rounds()
        initial = _read(self.directory / "initial.json")
        outcome = _read(self.directory / "outcome.json")
        if outcome is None:
            state = "running" if self._is_held() else "interrupted"
            reason = "still running" if state == "running" else "interrupted; the same command goes on from here"
            outcome = {"state": state, "reason": reason, "best_round": _best(rounds), "policy": None}
        return {
            "name": self.name, "title": config.get("title", ""), "description": config.get("description", ""),
            **outcome, "workspace": str(self.workspace), "directory": str(self.directory),
            "rounds_planned": config.get("rounds"), "config": config, "initial": initial, "rounds": rounds,
        }  # fmt: skip

    def _rounds(self) -> list[Any]:
        return [_read(file) for file in sorted(self.directory.glob("round-*.json"))]

    def _is_held(self) -> bool:
        try:
            with open(self.directory / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def symlink(link: Path, target: Path) -> None:
    """``link`` to ``target``, by a relative path, in place of what it led to before."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent))


def _best(rounds: list[Any]) -> int:
    promoted = [entry["round"] for entry in rounds if entry["gate"]["decision"] == "promote"]
    return int(promoted[-1]) if promoted else -1


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(f"{file} is not JSON ({error}); delete it and run the same command again") from None


def _differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            if at or key not in EXTENDABLE:
                yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield f"{at}: {old!r} then, {new!r} now"
