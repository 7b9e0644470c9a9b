"""Which artifacts' pairs a place holds: an export or a part of one, or a repository that this workspace pushed one to.

A folder says it itself. Of a repository nothing is known but what was pushed to it from here: each push of a data set
leaves a record beside what it pushed, ``exports/<run>/data/<tag>-<digest>.pushed.json``.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.export.folder import read_lineage
from pipeline.hub import Pushed
from pipeline.remote import MAIN
from pipeline.store import MANIFEST, write_json

EXPORTS = "exports"
"""Folder of a workspace with what was prepared for the Hub, by run."""
PUSHED = ".pushed.json"
ROUND = re.compile(r"/train-(\d+)-")
"""In the name of an export's shard."""
DEPTH = 3
"""Folders between an export and its shards, itself included."""
COMMIT = 7
"""Digits that name a commit, at least."""


def pairs_in(path: Path) -> tuple[str, ...]:
    """Keys of the artifacts whose pairs are in a file or folder: it is an artifact or an export of some, or lies in
    one. Of a file or folder of an export, those of its rounds."""
    place = path.parent.resolve() / path.name  # a file of an export may be a link into a cache
    for folder in (place, *place.parents[:DEPTH]):
        try:
            if (folder / MANIFEST).is_file():
                return (str(json.loads((folder / MANIFEST).read_text())["key"]),)
            if (lineage := read_lineage(folder)) is not None:
                return tuple(_of_part(lineage, place.relative_to(folder).as_posix()))
        except (OSError, ValueError, KeyError, TypeError):
            return ()
    return ()


def _of_part(lineage: Mapping[str, Any], part: str) -> Iterator[str]:
    names = [name for name in lineage["files"] if part in (".", name) or name.startswith(f"{part}/")]
    numbers = {int(found[1]) for name in names if (found := ROUND.search(name))}
    for each in lineage["rounds"]:
        if each["round"] in numbers:
            yield str(each["artifacts"]["pairs"])


def note_push(folder: Path, pushed: Pushed) -> None:
    """Write down that the data set in ``folder``, one that was prepared for the Hub, was pushed."""
    said = {"repo": pushed.repo, "tag": pushed.tag, "commit": pushed.commit, "pairs": pairs_in(folder)}
    write_json(folder.with_name(folder.name + PUSHED), said)


def pairs_pushed(workspace: Path, repo: str, revision: str | None = None) -> tuple[str, ...]:
    """Keys of the artifacts whose pairs this workspace pushed to a data set's repository; none where it pushed none.

    Args:
        revision: a tag or a commit; None is the newest round that was pushed, as on the Hub.
    """
    records = []
    for file in workspace.glob(f"{EXPORTS}/*/*/*{PUSHED}"):
        try:
            said = json.loads(file.read_text())
            if said["repo"] == repo and _names(revision, said):
                records.append((len(said["tag"]), said["tag"], file.stat().st_mtime, tuple(said["pairs"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(records)[-1] if records else ()


def _names(revision: str | None, said: Mapping[str, Any]) -> bool:
    if revision in (None, MAIN, said["tag"]):
        return True
    return len(str(revision)) >= COMMIT and str(said["commit"]).startswith(str(revision))
