"""What of a run's records may be published: no secret, no place on this machine or in its network, and no text that
breaks its page."""

import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Any

from pipeline.commands import MASK, masked, masked_settings
from pipeline.texts import one_line

PLACE = re.compile(r"(?<![\w.:/~<-])(?:file://)?~?/(?:[^\s/'\"`|,;()<>]+/)*(?P<last>[^\s/'\"`|,;()<>]+)/?")
"""An absolute path within a text; a web address and a Hub name are none."""
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.I)
"""In the names of environment variables whose values are nobody's business."""
SHORTEST = 8
"""Characters from which such a value is known again in a text."""
HOST = re.compile(r"(?<=://)(?P<user>[^\s/@'\"]*@)?(?P<host>\[[\da-f:.]+\]|[\w.-]+)", re.I)
"""Of an address."""
INNER = ("internal", "local", "lan", "corp", "home", "intranet", "private")
"""Last parts of names that only a network of one's own knows."""
OWN = "host"
"""Stands for such a name."""
FREE = frozenset({"title", "description", "reason", "line"})
"""Settings that people write as they like: a path may stand anywhere in them."""
UNTOLD = frozenset({"extra", "exclude"})
"""Settings that go into requests as they are, and may hold anything; and names of people whose votes do not count."""
EXCLUDED = re.compile(r"(?<=exclude=)\[[^\]]*\]")
"""Names of people, where a command leaves out their votes."""
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$])")


def public(value: Any, name: str = "") -> Any:
    """``value``, as JSON holds it, with secrets masked and absolute paths cut to their last part, and without names
    of machines."""
    match value:
        case Mapping():
            return {key: type(part)() if key in UNTOLD else public(part, key) for key, part in value.items()}
        case list() | tuple():
            return [public(part, name) for part in value]
        case str():
            known = masked_settings(value, name)
            if known == MASK:
                return MASK
            return public_text(known) if name in FREE else _setting(known)
    return value


def public_text(text: str) -> str:
    """Running text, or a command, without secrets, absolute paths and names of machines."""
    return PLACE.sub(lambda match: match["last"], without_secrets(EXCLUDED.sub("[]", text)))


def public_judge(name: str) -> str:
    """A judge's name: its model or models, each of which may be a folder, or its function, which may be in a file."""
    return " + ".join(map(_setting, name.split(" + ")))


def without_secrets(text: str) -> str:
    """``text`` with whatever looks like a token masked, every secret of this environment, and names of machines in
    addresses."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, MASK)
    return HOST.sub(lambda match: f"{match['user'] or ''}{_host(match['host'])}", masked(text))


def _host(name: str) -> str:
    """A name that the world knows, or that means each reader's own machine, stays; any other is nobody's business."""
    try:
        return name if ipaddress.ip_address(name.strip("[]")).is_loopback else OWN
    except ValueError:
        last = name.lower().rpartition(".")[2]
        return OWN if (last == name.lower() and last != "localhost") or last in INNER else name


def _setting(value: str) -> str:
    """A setting is a path or holds none: cut within, an expression would become another one."""
    value = without_secrets(value)
    if re.match(r"(file://)?(~|/)", value) and "\n" not in value:
        return value.rstrip("/").rpartition("/")[2]
    if "://" in value:
        return value.partition("?")[0]  # what comes after may be a key
    return value


# ---------------------------------------------------------------------------------------------- markdown
def plain(value: Any) -> str:
    """``value`` on one line that Markdown shows as it is, in a table too."""
    return re.sub(r"^(?=[-+=])", r"\\", SPECIAL.sub(r"\\\1", one_line(str(value))))


def code(value: Any) -> str:
    """``value`` as code on one line, in a table too."""
    text = one_line(str(value)).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    pad = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else ""


def fenced(text: str, language: str = "") -> str:
    """``text`` as a block of code that nothing within it can end."""
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text}\n{fence}"
