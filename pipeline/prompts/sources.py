"""Where rows come from: functions, local files and data sets of the Hub, each read as a stream."""

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config import (
    CallablePrompts,
    Columns,
    FilePrompts,
    HubPrompts,
    MixturePrompts,
    PromptsConfig,
    SinglePrompts,
)
from pipeline.errors import DataError
from pipeline.functions import resolve, source_digest
from pipeline.rows import SUFFIXES, read_rows

BROKEN = (OSError, EOFError, UnicodeDecodeError, zlib.error, pa.ArrowException)
"""What reading a damaged file may raise."""


@dataclass(frozen=True, slots=True)
class Member:
    """One source of prompts."""

    name: str
    """In a mixture, else ""."""
    key: str
    """In the recipe."""
    source: SinglePrompts


def members(config: PromptsConfig) -> list[Member]:
    """A mixture's sources, or the one there is."""
    if not isinstance(config.source, MixturePrompts):
        return [Member("", "prompts.source", config.source)]
    return [
        Member(name, f"prompts.source.members.{name}.source", member.source)
        for name, member in config.source.members.items()
    ]


def columns_of(source: SinglePrompts) -> Columns | None:
    """Where its rows have what; None for a function, whose rows are made for us."""
    return None if isinstance(source, CallablePrompts) else source.columns


def read(source: SinglePrompts, key: str) -> Iterator[Any]:
    """Raw rows, one after another: mappings; bytes, where a line is no JSON; or whatever else was found.

    Raises:
        DataError: the source cannot be read; some only when it is reached.
    """
    match source:
        case CallablePrompts():
            yield from _of_function(source, key)
        case FilePrompts():
            yield from islice(_of_file(source, key), source.limit)
        case HubPrompts():
            yield from islice(_of_hub(source, key), source.limit)


def _of_function(source: CallablePrompts, key: str) -> Iterator[Any]:
    function = resolve(source.call)
    try:
        yield from function()
    except Exception as error:
        raise DataError(f"{key}: function {source.call.function!r} failed: {error!r}") from error


def _of_file(source: FilePrompts, key: str) -> Iterator[Any]:
    check_file(source, key)
    with _unreadable(f"{key}.path: {source.path!r} cannot be read", BROKEN):
        try:
            yield from read_rows(Path(source.path).expanduser())
        except DataError as error:  # it names the file alone
            raise DataError(f"{key}.path: {error}") from error


def _of_hub(source: HubPrompts, key: str) -> Iterator[Any]:
    import datasets

    folder = Path(source.path).expanduser()
    place = str(folder) if folder.is_dir() else source.path
    with _unreadable(f"{key}: data set {source.path!r} cannot be loaded", (Exception,)):  # it may raise anything
        yield from datasets.load_dataset(
            place, source.name, split=source.split, revision=source.revision, streaming=source.streaming
        )


@contextmanager
def _unreadable(title: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise DataError(f"{title}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


# ---------------------------------------------------------------------------------------------- before they are read
def check_sources(config: PromptsConfig) -> None:
    """Refuse a path that leads nowhere, before anything starts.

    Raises:
        DataError: with the key of the path.
    """
    for key, source in config.single_sources():
        match source:
            case FilePrompts():
                check_file(source, key)
            case HubPrompts(path=path) if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
                raise DataError(f"{key}.path: {path!r} is not a directory; allowed: a directory, or a name on the Hub")


def check_file(source: FilePrompts, key: str) -> None:
    if not Path(source.path).expanduser().is_file():
        raise DataError(f"{key}.path: {source.path!r} is not a file")
    if not source.path.endswith(SUFFIXES):
        raise DataError(f"{key}.path: {source.path!r} ends in none of {', '.join(SUFFIXES)}")


def settings_of(config: PromptsConfig) -> dict[str, Any]:
    """The settings that decide which prompts there are, with what local sources hold in place of where they lie.

    Raises:
        DataError: a file is not there.
    """
    unread = {"near_threshold"} if config.deduplicate != "near" else set()
    settings = config.model_dump(mode="json", exclude={"per_round", "source", "decontaminate", "bad_rows"} | unread)
    contents = {key: _content(source, key) for key, source in config.single_sources()}
    ngram = config.decontaminate and config.decontaminate.ngram
    # A mixture's members keep their order: the first of two with the same text is kept.
    return {**settings, "sources": list(contents.items()), "ngram": ngram}


def _content(source: SinglePrompts, key: str) -> dict[str, Any]:
    """What a source is known by: an edited file makes new prompts, a moved one does not."""
    match source:
        case CallablePrompts(call=call):
            return {**source.model_dump(mode="json"), "content": source_digest(call)}
        case FilePrompts():
            check_file(source, key)
            content: Any = _file_digest(Path(source.path).expanduser())
        case HubPrompts(path=path) if (folder := Path(path).expanduser()).is_dir():
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            content = [[str(file.relative_to(folder)), _file_digest(file)] for file in files]
        case HubPrompts():
            return source.model_dump(mode="json")
    return {**source.model_dump(mode="json", exclude={"path"}), "content": content}


def _file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
