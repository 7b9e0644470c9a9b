"""``ratchet export``: a run's data and its policy, with their cards, to a folder or to the Hub.

On the Hub every round is a revision (a tag ``round-000``, …) that has the rounds up to it, and ``main`` is the last
one. What is pushed is prepared under ``exports/<run>/`` of the workspace first, and stays there, beside what was pushed
elsewhere or under other terms: so the same export pushed again changes nothing, though the run has gone on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from flows.console import Console
from flows.pairing import PairedAnew, repair
from pipeline.errors import ConfigError
from pipeline.export.cards import UNKNOWN, Terms
from pipeline.export.dataset import KIND as DATASET
from pipeline.export.dataset import export_data, has_pairs, open_rounds
from pipeline.export.folder import check_destination
from pipeline.export.policy import KIND as MODEL
from pipeline.export.policy import export_policy, find_policy
from pipeline.export.provenance import EXPORTS, note_push
from pipeline.hub import Pushed, parse_destination, push
from pipeline.protocols import Progress
from pipeline.remote import Kind
from pipeline.runs import Run
from pipeline.store import digest

What = Literal["data", "policy", "both"]
NAMES = {DATASET: "data", MODEL: "policy"}
"""Of the folders, where both are exported."""


def export(
    run: str | None,
    to: str,
    workspace: Path,
    what: str = "data",
    *,
    rounds: Sequence[int] | None = None,
    round: int | None = None,
    licence: str = UNKNOWN,
    languages: Sequence[str] = (),
    private: bool = True,
    move_tags: bool = False,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Export a run.

    Args:
        run: its name; None is the newest.
        to: a folder, or ``hub:org/name``; with ``both`` the folder gets ``data`` and ``policy``.
        rounds: whose data; None is all finished ones.
        round: whose policy; None is the best one.
        licence, languages: the Hub's identifier, and codes of ISO 639.
        private: what a repository is made as.
        move_tags: let a round's tag on the Hub name this export where it names another.
        overrides: ``pairing.KEY=VALUE``: pairs as :func:`flows.pairing.repair` makes them, in the place of the run's.

    Returns:
        JSON-able: ``run``, ``to``, and what :func:`export_data`, :func:`export_policy` and :func:`push` say of each.

    Raises:
        ConfigError: something is wrong with what was asked for; nothing has been written.
        StoreError: an artifact is gone or damaged.
        HubError: the Hub does not take it; what was prepared is kept.
    """
    place = _place(to, private, move_tags)
    repo = place if isinstance(place, str) else ""
    data, policy = _asked(what, rounds, round, overrides)
    request = _Request(
        Run.existing(workspace, run), data, policy, rounds, round, overrides, Terms(licence, tuple(languages), repo),
        private, move_tags, console or Console(quiet=True),
    ).checked(place)  # fmt: skip
    told = _to_folder(request, place) if isinstance(place, Path) else _to_hub(request)
    return {"run": request.run.name, "to": to, **told}


def exported(result: Mapping[str, Any]) -> RenderableType:
    """What was exported, for the terminal."""
    parts: list[RenderableType] = []
    if data := result.get("data"):
        table = Table(show_header=False, box=None, padding=(0, 2))
        for config, rows in data["rows"].items():
            table.add_row(f"[dim]{escape(config)}[/]", f"{rows:,} rows")
        parts += [f"[bold]data[/] of rounds {', '.join(map(str, data['rounds']))}: {escape(data['folder'])}", table]
        parts += [_pushed(each) for each in data.get("pushed", ())]
    if policy := result.get("policy"):
        parts.append(f"[bold]policy[/] of round {policy['round']}, {policy['digest'][:12]}: {escape(policy['folder'])}")
        parts += [_pushed(each) for each in policy.get("pushed", ())]
    return Group(*parts)


@dataclass(frozen=True, slots=True)
class _Request:
    run: Run
    data: bool
    policy: bool
    rounds: Sequence[int] | None
    round: int | None
    overrides: Sequence[str]
    terms: Terms
    private: bool
    move_tags: bool
    console: Console

    @property
    def terms_of_policy(self) -> Terms:
        """With the name of the data that is exported beside it."""
        return replace(self.terms, data=self.terms.repo if self.data else "")

    def folders(self, place: Path) -> dict[str, Path]:
        """What goes where, by kind."""
        both = self.data and self.policy
        kinds = [DATASET] * self.data + [MODEL] * self.policy
        return {kind: place / NAMES[kind] if both else place for kind in kinds}

    def checked(self, place: Path | str) -> "_Request":
        """This request, its pairs made where others than the run's are asked for.

        Raises ConfigError or StoreError where there is nothing to export of what was asked for, or a folder is
        somebody else's; before pairs are made, as far as that can be known before.
        """
        if isinstance(place, Path):
            if self.data and self.policy and place.exists() and not place.is_dir():
                raise ConfigError(f"--to {str(place)!r} is a file; allowed: a folder")
            for kind, folder in self.folders(place).items():
                check_destination(folder, kind, self.run.name)
        if self.policy:
            find_policy(self.run, self.round)
        run = self.run
        if self.overrides:
            made = repair(run, self.console, rounds=self.rounds, overrides=self.overrides)
            run = run if all(each["own"] for each in made["rounds"]) else PairedAnew(run, made)
        if self.data:
            opened = open_rounds(run, self.rounds)
            if self.overrides and not has_pairs(opened):
                raise ConfigError(f"run {run.name!r} has no pair by {', '.join(self.overrides)}")
        return replace(self, run=run)


def _place(to: str, private: bool, move_tags: bool) -> Path | str:
    """A folder, or a repository's name."""
    place = parse_destination(to)
    if isinstance(place, str):
        return place
    if not private or move_tags:
        raise ConfigError(f"{'--move-tags' if move_tags else '--public'} is of hub:org/name; --to {to!r} is a folder")
    return place.expanduser().resolve()


def _asked(what: str, rounds: Sequence[int] | None, round: int | None, overrides: Sequence[str]) -> tuple[bool, bool]:
    """Whether data, whether a policy."""
    if what not in get_args(What):
        raise ConfigError(f"--what {what!r}: allowed: {', '.join(get_args(What))}")
    if rounds is not None and (what == "policy" or not rounds):
        raise ConfigError(
            f"--rounds {list(rounds)}: allowed: at least one, with data or both; a policy is of RUN:ROUND"
        )
    if round is not None and what == "data":
        raise ConfigError(f"round {round} is a policy's; allowed with data: rounds")
    if overrides and what != "data":
        raise ConfigError(f"--set {overrides[0]!r}: no policy was trained on pairs made anew; allowed: --what data")
    return what != "policy", what != "data"


def _to_folder(request: _Request, place: Path) -> dict[str, Any]:
    folders, told = request.folders(place), dict[str, Any]()
    if request.data:
        with request.console.stage("export data") as progress:
            told["data"] = export_data(
                request.run, folders[DATASET], request.rounds, request.terms, progress=progress
            )  # fmt: skip
    if request.policy:
        with request.console.stage("export policy"):
            told["policy"] = export_policy(request.run, folders[MODEL], request.round, request.terms_of_policy)
    return told


def _to_hub(request: _Request) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if request.data:
        told["data"] = _push_data(request)
    if request.policy:
        told["policy"] = _push_policy(request)
    return told


def _push_data(request: _Request) -> dict[str, Any]:
    """A revision a round, oldest first; each has the rounds before it."""
    run = request.run
    numbers = [made.number for _, made in open_rounds(run, request.rounds)]
    prepared: list[Path] = []
    pushes: list[dict[str, Any]] = []
    told: dict[str, Any] = {}
    for at in range(len(numbers)):
        tag = f"round-{numbers[at]:03d}"
        folder = _prepared(run, "data", tag, request.terms, [*numbers[: at + 1], *sorted(request.overrides)])
        with request.console.stage(f"data {tag}") as progress:
            told = export_data(
                run, folder, numbers[: at + 1], request.terms, keep=True, earlier=prepared[-1:], progress=progress
            )
            said = f"Run {run.name}, rounds up to {numbers[at]}"
            pushed = _push(request, folder, DATASET, said, tag, progress)
        prepared.append(folder)
        pushes.append(pushed)
    return {**told, "pushed": pushes}


def _push_policy(request: _Request) -> dict[str, Any]:
    run = request.run
    entries, _ = find_policy(run, request.round)
    tag = f"round-{entries[-1]['round']:03d}"
    folder = _prepared(run, "policy", tag, request.terms_of_policy)
    earlier = [each for each in sorted(folder.parent.glob(f"{tag}-*")) if each != folder]
    with request.console.stage(f"policy {tag}") as progress:
        told = export_policy(run, folder, request.round, request.terms_of_policy, keep=True, earlier=earlier)
        pushed = _push(request, folder, MODEL, f"Run {run.name}, policy of round {told['round']}", tag, progress)
    return {**told, "pushed": [pushed]}


def _push(request: _Request, folder: Path, kind: Kind, message: str, tag: str, progress: Progress) -> dict[str, Any]:
    """What was pushed, as the answer has it; the stage ends with that, and not with what was waited for last."""
    pushed = push(
        folder, request.terms.repo, kind, message=message, private=request.private, tag=tag,
        move_tag=request.move_tags, progress=progress,
    )  # fmt: skip
    if kind == DATASET:
        note_push(folder, pushed)
    told = _summary(pushed)
    progress(0, 0, _files(told))
    return told


def _prepared(run: Run, kind: str, tag: str, terms: Terms, what: Sequence[Any] = ()) -> Path:
    """Where what ``tag`` will name is prepared. A card says how the run stood when it was written, and a tag holds it:
    written over for another repository, it could not be written again."""
    return run.workspace / EXPORTS / run.name / kind / f"{tag}-{digest([asdict(terms), *what])[:8]}"


def _summary(pushed: Pushed) -> dict[str, Any]:
    return {
        "url": pushed.url, "kind": pushed.kind, "tag": pushed.tag, "commit": pushed.commit, "private": pushed.private,
        "sent": len(pushed.sent), "present": pushed.present, "deleted": len(pushed.deleted), "bytes": pushed.bytes,
    }  # fmt: skip


def _pushed(each: Mapping[str, Any]) -> str:
    seen = "private" if each["private"] else "public"
    return f"  {each['tag']}: {escape(each['url'])} ({seen}; {_files(each)})"


def _files(each: Mapping[str, Any]) -> str:
    return f"{each['sent']} files sent, {each['present']} there already"
