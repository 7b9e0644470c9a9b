"""What a reply says: one label of the scale, or an abstention with a reason. Pure; no network.

A verdict exists only where the reply holds it in the form that was asked for; anything else abstains: it is never a
tie and never a low score. Replies are stored raw, so a better reading costs no call: it gets a new ``VERSION``, which
is part of a judge's identity.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from judges.llm.scales import Scale, Structured
from pipeline.calls.request import Reply

VERSION = 1
REASONS = (
    "refused", "empty", "truncated", "unreadable", "duplicate_key", "missing_key", "wrong_type", "not_a_number",
    "out_of_scale",
)  # fmt: skip
"""Why an answered call gives no verdict; of several, the first that is met:

refused        the provider marked it as a refusal, or its content filter did
empty          no text
truncated      the token limit came before the verdict was complete
unreadable     not the form asked for: prose, or no JSON object
duplicate_key  a JSON object that says something twice
missing_key    a JSON object without the verdict
wrong_type     a number as a string, a boolean as a number, a list, …
not_a_number   NaN or infinity
out_of_scale   a number, or a letter, that is no label of the scale
"""
LEAST_MASS = 0.5
"""Of the probability at the verdict's token: with less on all labels together, the label itself counts."""
MARKER = re.compile(r"\[\[([^\[\]]*)\]\]")
CODE_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
NUMBER_OR_LETTER = re.compile(r"[+-]?\d+([.,/]\d+)*|[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Verdict:
    value: float | None
    """Worth of the label, or the expected worth over the labels' probabilities; None: abstains."""
    label: str | None = None
    """As the reply gave it."""
    mass: float | None = None
    """Probability on all labels together at the verdict's token; None: not known, or not used."""
    abstained: str | None = None
    """One of ``REASONS``, or why the call failed."""

    def vote(self) -> dict[str, Any]:
        named = {"value": self.value, "label": self.label, "mass": self.mass, "abstained": self.abstained}
        return {name: each for name, each in named.items() if each is not None}


@dataclass(frozen=True, slots=True)
class _Found:
    label: str
    lead: str
    """The reply's characters right before the label."""


class _Unreadable(Exception):
    """Says in one of ``REASONS`` why there is no verdict."""


def read(reply: Reply, scale: Scale, structured: Structured) -> Verdict:
    """The verdict that ``reply`` holds. Raises nothing, whatever the reply is."""
    try:
        found = _find(reply, scale, structured)
    except _Unreadable as reason:
        return Verdict(None, abstained=str(reason))
    soft = expectation(reply.logprobs, found.label, found.lead, scale.values)
    value, mass = soft if soft is not None else (scale.values[found.label], None)
    return Verdict(value, found.label, mass)


def _find(reply: Reply, scale: Scale, structured: Structured) -> _Found:
    text, cut = reply.text.strip(), reply.finish_reason == "length"
    if reply.refusal or reply.finish_reason == "content_filter":
        raise _Unreadable("refused")
    if not text:
        raise _Unreadable("truncated" if cut else "empty")
    if structured == "json_schema":
        return _in_json(text, scale, cut)
    if cut:  # "1" may have been going to be "10", and a quoted [[A]] need not be the last word
        raise _Unreadable("truncated")
    if structured == "choice":
        return _Found(_label(text, scale), "")
    markers = list(MARKER.finditer(text))
    if not markers:
        raise _Unreadable("unreadable")
    last = markers[-1]  # a judge quotes candidates, and itself, before it decides
    return _Found(_label(last[1].strip(), scale), text[: last.start(1)])


def _label(written: str, scale: Scale) -> str:
    if written in scale.values:
        return written
    raise _Unreadable("out_of_scale" if NUMBER_OR_LETTER.fullmatch(written) else "unreadable")


def _in_json(text: str, scale: Scale, cut: bool) -> _Found:
    """A reply cut off after its object is complete is whole: weak models pad with white space to the limit."""
    fenced = CODE_FENCE.fullmatch(text)
    try:
        document = json.loads(fenced[1] if fenced else text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):  # recursion: nested a thousand deep
        raise _Unreadable("truncated" if cut else "unreadable") from None
    if not isinstance(document, Mapping):
        raise _Unreadable("truncated" if cut else "unreadable")
    if scale.key not in document:
        raise _Unreadable("missing_key")
    label = _json_label(document[scale.key], scale)
    # Where the verdict is the object's last entry, as asked, its place in the text is known.
    place = re.search(rf'"{scale.key}"\s*:\s*"?(?={re.escape(label)}"?\s*\}}\W*\Z)', text)
    return _Found(label, text[: place.end()] if place else "\0")


def _without_duplicates(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(entries)
    if len(document) < len(entries):
        raise _Unreadable("duplicate_key")
    return document


def _json_label(value: Any, scale: Scale) -> str:
    if scale.key == "verdict":
        if not isinstance(value, str):
            raise _Unreadable("wrong_type")
        label = value
    else:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _Unreadable("wrong_type")
        if not math.isfinite(value):
            raise _Unreadable("not_a_number")
        label = str(int(value)) if value == int(value) else str(value)  # 7.0 is 7 in JSON
    if label not in scale.values:
        raise _Unreadable("out_of_scale")
    return label


def expectation(
    tokens: list[Mapping[str, Any]], label: str, lead: str, values: Mapping[str, float]
) -> tuple[float, float] | None:
    """Expected worth over the labels' probabilities at the label's token, and their mass before renormalisation.

    Σ p(label) · value(label) / Σ p(label), as in G-Eval (2303.16634), section 2. White space and punctuation that a
    tokenizer joins to a label are looked through, and such tokens of one label are added up.

    Args:
        tokens: the reply's, each with ``token``, ``logprob`` (nats) and ``top_logprobs``.
        label: as read from the text.
        lead: the text before it; where it ends, the label's token is looked for.

    Returns:
        None where the tokens do not tell: none given; the label's token not found, or not the whole label; a mass
        below ``LEAST_MASS`` or, rounding aside, above 1; one label the beginning of another (1 and 10) and no token
        seen that is all of a longer one, so that the 1 might go on.
    """
    place = _token_of(label, lead, [str(each.get("token", "")) for each in tokens])
    if place is None:
        return None
    chances: dict[str, float] = {}
    for token, logprob in _alternatives(tokens[place]).items():
        bare = _bare(token)
        if bare in values:
            chances[bare] = chances.get(bare, 0.0) + math.exp(logprob)
    mass = math.fsum(chances.values())
    might_go_on = any(other != seen and other.startswith(seen) for seen in chances for other in values)
    if not LEAST_MASS <= mass <= 1.01 or (might_go_on and all(len(seen) == 1 for seen in chances)):
        return None
    return math.fsum(chance * values[seen] for seen, chance in chances.items()) / mass, mass


def _token_of(label: str, lead: str, texts: list[str]) -> int | None:
    """Number of the token that holds ``label`` whole, in its last place after the end of ``lead``.

    Only the last characters of ``lead`` are compared: tokens that are part of a letter have no text of their own.
    """
    beginning = lead[-8:]
    start = "".join(texts).rfind(beginning + label) if lead else 0
    if start < 0:
        return None
    start += len(beginning)
    end = 0
    for number, text in enumerate(texts):
        end += len(text)
        if end > start and _bare(text):
            return number if _bare(text) == label else None
    return None


def _bare(token: str) -> str:
    return token.strip(" \t\r\n\"'`[]{}():,.")


def _alternatives(entry: Mapping[str, Any]) -> dict[str, float]:
    """Log-probabilities by token; the drawn one may be missing from the list of the likeliest."""
    listed = entry.get("top_logprobs")
    found: dict[str, float] = {}
    for each in [*(listed if isinstance(listed, list) else []), entry]:
        if isinstance(each, Mapping) and isinstance(each.get("token"), str):
            logprob = each.get("logprob")
            if isinstance(logprob, int | float) and not isinstance(logprob, bool) and -1e6 < logprob < 1e-3:
                found.setdefault(each["token"], logprob)
    return found
