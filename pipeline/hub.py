"""Pushes a prepared folder to the Hugging Face Hub: one commit on ``main``, and a tag that keeps it.

A push makes the repository what the folder is, in one commit or in none: a reader of ``main`` never meets half an
export, which is why ``upload_folder`` is not used: it may split a folder over several commits, and it sends a commit
again whose answer was lost, which makes a second one. Here a commit names its parent, so the Hub takes it once; after
anything that went wrong the Hub is looked at anew, and what it has by then is not sent again. So a push that was
interrupted, however, is finished by pushing again.

Rounds are tags (``round-002``), not branches: ``load_dataset(name, revision="round-002")`` reads both, but a tag says
that it stays what it is. A round pushed again changes nothing; a tag that holds something else is moved only where that
is asked for. ``main`` has the newest: where the repository has a later round's tag, an older round is committed on a
branch beside ``main`` that lasts until it is tagged.

What a push brought is listed in the repository, in ``.ratchet-files``; the next one deletes what it lacks of these
files and leaves all others alone: a licence that somebody added stays.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError, HubError
from pipeline.protocols import Progress, silent
from pipeline.refusals import Refusal
from pipeline.remote import MAIN, OVERTAKEN, WAITS, Content, Kind, Remote, size_of

PREFIX = "hub:"
NAME = re.compile(r"(?=.{3,96}\Z)[a-zA-Z0-9](?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
TAG = re.compile(r"[a-zA-Z0-9](?:[\w.-]*\w)?", re.ASCII)
MANIFEST = ".ratchet-files"
"""The files that pushes brought, one path a line. Neither ``datasets`` nor ``transformers`` reads a file so named."""
HUBS_OWN = ".gitattributes"
SIDE = "pushing-"
"""What the branch beside ``main`` is called, before the tag."""


@dataclass(frozen=True, slots=True)
class Pushed:
    repo: str
    kind: Kind
    url: str
    commit: str
    """The commit that holds the folder."""
    tag: str | None
    private: bool
    """What the repository is, whatever was asked for."""
    sent: tuple[str, ...] = ()
    """Paths this push added or changed."""
    present: int = 0
    """Files the repository had already."""
    deleted: tuple[str, ...] = ()
    """Paths of older pushes that the folder lacks."""
    bytes: int = 0
    """Of the files sent."""
    moved_from: str | None = None
    """The commit the tag named before."""


@dataclass(frozen=True, slots=True)
class Change:
    """What makes one tree another."""

    sent: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    branch: str | None = None
    """Where it was committed."""


def parse_destination(to: str) -> Path | str:
    """Where an export goes: a folder, or for ``hub:org/name`` the repository's name, ``org/name``.

    Raises:
        ConfigError: ``hub:`` and something that cannot name a repository; an address; nothing.
    """
    if to.startswith(PREFIX):
        return _checked(to.removeprefix(PREFIX), to)
    if not to or to.startswith(("hf:", "http:", "https:")):
        raise ConfigError(f"destination {to!r} is neither a folder nor {PREFIX}org/name")
    return Path(to)


def _checked(repo: str, given: str) -> str:
    if not NAME.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise ConfigError(
            f"{given!r} names no repository: the form is {PREFIX}org/name, of letters, digits, '-', '_' and '.', at"
            " most 96 in all, with no '--' or '..', and no '-', '.' or '.git' at an end"
        )
    return repo


def push(
    folder: Path, repo: str, kind: Kind, *, message: str, private: bool = True, tag: str | None = None,
    move_tag: bool = False, progress: Progress = silent,
) -> Pushed:  # fmt: skip
    """Make the repository's ``main`` what ``folder`` is, and ``tag`` its name; one round a call.

    A repository that does not exist is made, private unless ``private`` is false. One that exists stays as it is: a
    public one is not pushed to where private was asked for, and ``Pushed.private`` says what it is.

    Args:
        message: the commit's one line; say what is in it, not where it came from on this machine.
        move_tag: let ``tag`` name this folder where it names something else.
        progress: gets bytes uploaded, bytes to upload, and the path under way or what is waited for.

    Raises:
        ConfigError: the repository, the tag or the commit cannot be called that.
        DataError: the folder is none, or has no files.
        HubError: the Hub refused or cannot be reached, or the push would change what must not change silently.
    """
    _checked(repo, repo)
    if tag is not None and (not TAG.fullmatch(tag) or ".." in tag or tag in ("main", "HEAD")):
        raise ConfigError(f"tag {tag!r} cannot be: it is made of letters, digits, '-', '_' and '.', and is not 'main'")
    if not message.strip() or "\n" in message:
        raise ConfigError(f"a commit's message is one line, not {message!r}")
    files = _contents(folder)
    remote = Remote(repo, kind, progress)
    with remote.session():
        private = remote.settle(private)
        if tag is None:
            held, (commit, change) = None, _mirror(files, message, remote, MAIN)
        else:
            held, commit, change = _push_tag(files, message, remote, tag, move_tag)
    sent = tuple(path for path in change.sent if path != MANIFEST)
    return Pushed(
        repo, kind, remote.url, commit, tag, private, sent, present=len(files) - 1 - len(sent), deleted=change.deleted,
        bytes=sum(size_of(files[path]) for path in sent), moved_from=held if held != commit else None,
    )  # fmt: skip


def _push_tag(
    files: Mapping[str, Content], message: str, remote: Remote, tag: str, move: bool
) -> tuple[str | None, str, Change]:
    """The commit that ``tag`` named, the one it names now, and what was changed to make that."""
    refs = remote.refs()
    if tag in refs.branches:
        raise HubError(f"{remote.repo!r} has a branch {tag!r}, which a tag would be mistaken for: push under another")
    held, side = refs.tags.get(tag), f"{SIDE}{tag}"
    differing = _change(files, held, remote).sent if held is not None else ()
    if held is not None and differing and not move:
        raise HubError(
            f"tag {tag!r} of {remote.repo!r} holds something else (commit {held[:12]}; {differing[0]!r} differs): push"
            " to another repository, or let the tag be moved (--move-tags)"
        )
    commit, change = held, Change()
    if commit is None or differing:
        branch = side if any(_later(each, tag) for each in refs.tags) else MAIN
        if branch == side:
            remote.make_branch(side)
        commit, change = _mirror(files, message, remote, branch)
        remote.put_tag(tag, commit, held)
    if side in refs.branches or change.branch == side:
        remote.drop_branch(side)
    return held, commit, change


def _later(one: str, other: str) -> bool:
    """``round-010`` is later than ``round-009``."""
    numbered = [re.fullmatch(r"(.*?)(\d+)", tag) for tag in (one, other)]
    match numbered:
        case [re.Match() as first, re.Match() as second]:
            return first[1] == second[1] and int(first[2]) > int(second[2])
    return False


def _contents(folder: Path) -> dict[str, Content]:
    """The folder's files by their path in it, and the list of them."""
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder that could be pushed")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    # The Hub takes nothing under these two: git's own, and what its client leaves where it downloads.
    found: dict[str, Content] = {
        path: file for path, file in files.items() if not {".git", ".cache"} & {*path.split("/")}
    }
    if not found:
        raise DataError(f"{str(folder)!r} has no files to push")
    if MANIFEST in found:
        raise DataError(f"{str(folder)!r} has a file {MANIFEST!r}, which is for the push to write: remove it")
    found[MANIFEST] = "".join(f"{path}\n" for path in found).encode()
    return found


def _mirror(files: Mapping[str, Content], message: str, remote: Remote, branch: str) -> tuple[str, Change]:
    """Make a branch's head what ``files`` are. The commit that is so, and what was changed to get there."""
    waits, done, made = list(WAITS), Change(branch=branch), None
    while True:
        head = remote.head(branch)
        change = _change(files, head, remote)
        if head is not None and not change.sent:
            return head, done
        if made is not None and made == head:
            raise HubError(f"the Hub took the commit without {change.sent[0]!r}: does a .gitignore there leave it out?")
        done = replace(change, branch=branch)
        try:
            made = remote.commit(branch, {path: files[path] for path in change.sent}, change.deleted, message, head)
        except Refusal as refusal:
            if not waits or not (refusal.passing or refusal.status in OVERTAKEN):
                raise
            remote.wait(waits.pop(0), refusal)


def _change(files: Mapping[str, Content], commit: str | None, remote: Remote) -> Change:
    """From a commit to ``files``. As these list themselves, there is nothing to delete where nothing is to be sent."""
    there = remote.tree(commit) if commit is not None else {}
    sent = tuple(path for path, content in files.items() if not _same(content, there.get(path)))
    if commit is None or MANIFEST not in sent or MANIFEST not in there:
        return Change(sent)
    brought = {*remote.read(MANIFEST, commit).splitlines()}
    return Change(sent, tuple(sorted(brought & {*there} - {*files, HUBS_OWN})))


def _same(content: Content, there: Any) -> bool:
    """Whether the Hub's file has this content: by SHA-256 where it is a large file, else by git's SHA-1."""
    if there is None or there.size != size_of(content):
        return False
    if there.lfs is not None:
        return _hash(content, hashlib.sha256()) == str(there.lfs.sha256)
    return _hash(content, hashlib.sha1(b"blob %d\0" % there.size)) == str(there.blob_id)


def _hash(content: Content, algorithm: Any) -> str:
    if isinstance(content, bytes):
        algorithm.update(content)
    else:
        with content.open("rb") as file:
            hashlib.file_digest(file, lambda: algorithm)
    return str(algorithm.hexdigest())
