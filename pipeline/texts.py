"""Text made fit to read on a page: long ones folded, unprintable ones made visible, settings written as TOML."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LEAD = 420
"""Characters of a text shown before it is folded away."""
LIMIT = 8000
"""Characters of a text the report holds at all: it is for reading, the artifact has the rest."""

PICTURES = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}, 127: 0x2421,
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Text:
    lead: str
    """All of a short text, the beginning of a long one."""
    whole: str = ""
    """A long text; empty for a short one."""
    length: int = 0
    """Characters, before any cut."""


def fold(text: str | None) -> Text:
    """``text`` with its first lines apart, where it is too long to show at once."""
    text = _visible(text or "")
    if len(text) <= LEAD * 1.3 and text.count("\n") <= 12:
        return Text(text, length=len(text))
    lead = "\n".join(text[:LEAD].split("\n")[:8]).rstrip()
    whole = text if len(text) <= LIMIT else f"{text[:LIMIT]}… (cut here; the artifact has all of it)"
    return Text(f"{lead} …", whole, len(text))


def _visible(text: str) -> str:
    """Control characters as their pictures, and no bidirectional override that could reorder the page."""
    return text.translate(PICTURES)


def short(value: float) -> str:
    """A number in running text, where no column has to line up."""
    return f"{value:.4g}".replace("-", "−")


def one_line(text: str | None) -> str:
    """``text`` on one line, cut where it gets long."""
    line = " ".join(_visible(text or "").split())
    return line if len(line) <= 160 else f"{line[:160]} …"


def toml_lines(values: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """``values`` as dotted TOML keys, one a line: each can be given to ``--set``, all together are a recipe."""
    for name, value in values.items():
        key = at + (name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name))
        if isinstance(value, Mapping) and value:
            yield from toml_lines(value, f"{key}.")
        elif value is None:
            yield f"# {key} is not set"
        else:
            yield f"{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(name)} = {_toml(part)}" for name, part in value.items() if part is not None)
        return "{ " + ", ".join(pairs) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(part) for part in value if part is not None) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
