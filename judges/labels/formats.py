"""Formats of preference files: the keys each is known by, and where in a row everything is. Nothing is judged here.

    name      keys                                              labels
    PandaLM   instruction, input, response1, response2          annotator1, annotator2, …: 1, 2, 0 for a tie
    LLMBar    input, output_1, output_2                         label: 1, 2
    simple    prompt, a, b                                      label, or labels = {annotator: label}: a, b, tie
    TRL       chosen, rejected (prompt)                         chosen; a preference or a false label may turn it round

``prompt`` is text or a list of messages. TRL's two responses are text, one message of the assistant, or conversations
whose last message alone differs; without a prompt they may be hh-rlhf's ``\\n\\nHuman: … \\n\\nAssistant: …``
dialogues. A simple row may name its ``annotator``, and any format a row's ``id`` (or ``idx``) and ``category``.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import DataError
from pipeline.store import digest

Label = Literal["a", "b", "tie"]
Row = Mapping[str, Any]

SIDES: Mapping[str, Label] = {"a": "a", "b": "b", "tie": "tie", "both_bad": "tie"}
NUMBERS: Mapping[str, Label] = {"1": "a", "2": "b", "0": "tie"}
ASSISTANT = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Raw:
    """What a row says, unchecked."""

    prompt: Any
    """Text, or a list of messages."""
    a: Any
    b: Any
    labels: Mapping[str, Any]
    """As written, by annotator; the name "" where the file names none."""
    known: Mapping[str, Label]
    """What the labels mean, by their text."""
    id: Any = None
    category: Any = None
    mismatch: bool = False
    """The two responses answer different prompts."""


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    keys: tuple[str, ...]
    read: Callable[[Row], Raw]


def format_of(row: Row, title: str) -> Format:
    """The format of a file with this row.

    Raises:
        DataError: it has the keys of none.
    """
    for each in FORMATS:
        if row.keys() >= set(each.keys):
            return each
    known = "; ".join(f"{', '.join(each.keys)} ({each.name})" for each in FORMATS)
    raise DataError(f"labels {title!r} have the keys {', '.join(map(str, row)) or 'none'}; allowed: {known}")


def label_of(raw: Raw, value: Any) -> Label | None:
    """What a label means; None where nothing does. JSON's true is no 1."""
    return None if isinstance(value, bool) else raw.known.get(str(value).strip().lower().replace(" ", "_"))


# ---------------------------------------------------------------------------------------------- the formats
def _pandalm(row: Row) -> Raw:
    parts = [row["instruction"], row.get("input") or ""]
    prompt = "\n\n".join(part for part in parts if part.strip()) if all(isinstance(p, str) for p in parts) else parts[0]
    labels = {name: value for name, value in row.items() if name.startswith("annotator")}
    category = row.get("category", row.get("motivation_app"))
    return Raw(prompt, row["response1"], row["response2"], labels, NUMBERS, _id(row), category)


def _llmbar(row: Row) -> Raw:
    return Raw(
        row["input"], row["output_1"], row["output_2"], {"": row.get("label")}, NUMBERS, _id(row), row.get("category")
    )


def _simple(row: Row) -> Raw:
    several = row.get("labels")
    labels = several if isinstance(several, Mapping) else {str(row.get("annotator") or ""): row.get("label", several)}
    return Raw(row["prompt"], row["a"], row["b"], labels, SIDES, _id(row), row.get("category"))


def _preferred(row: Row) -> Raw:
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        (of_chosen, chosen), (of_rejected, rejected) = _dialogue(chosen), _dialogue(rejected)
    else:
        (of_chosen, chosen), (of_rejected, rejected) = _conversation(prompt, chosen), _conversation(prompt, rejected)
    # Chosen always first would let a judge that always prefers the first look perfect. The side depends on the two
    # texts alone, so that a row that says the contrary of another gets the same sides.
    first, second = sorted([chosen, rejected], key=repr)
    sides = (first, second) if int(digest([repr(first), repr(second)])[:2], 16) % 2 else (second, first)
    better = _better(row)
    winner = {"chosen": chosen, "rejected": rejected}.get(better)
    label = better if winner is None else "ab"[sides.index(winner)]
    mismatch = of_chosen != of_rejected
    return Raw(of_chosen, *sides, {"": label}, SIDES, _id(row), row.get("category"), mismatch)


FORMATS = (
    Format("PandaLM", ("instruction", "response1", "response2", "annotator1"), _pandalm),
    Format("LLMBar", ("input", "output_1", "output_2"), _llmbar),
    Format("simple", ("prompt", "a", "b"), _simple),
    Format("TRL or hh-rlhf", ("chosen", "rejected"), _preferred),
)


def _id(row: Row) -> Any:
    return row.get("id", row.get("idx"))


def _better(row: Row) -> Any:
    """Which of chosen and rejected is the better one, or a value that is no label."""
    preference, label = row.get("preference"), row.get("label")
    if isinstance(preference, int | float) and not isinstance(preference, bool) and 0 <= preference <= 1:
        return "tie" if preference == 0.5 else "chosen" if preference > 0.5 else "rejected"
    if preference not in (None, ""):
        return preference
    return "rejected" if label is False else "chosen"


def _dialogue(text: str) -> tuple[Any, str]:
    """Messages before the last answer, and that answer; "" for the messages where there is no such dialogue."""
    head, marker, answer = text.rpartition(ASSISTANT)
    before, *turns = TURN.split(head)
    if not marker or not turns or before.strip():
        return "", text
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [{"role": ROLES[who], "content": words.strip()} for who, words in pairs], answer.strip()


def _conversation(prompt: Any, response: Any) -> tuple[Any, Any]:
    """The prompt of a response, and its text, or the response as it is where it has none."""
    if not isinstance(response, list) or not response:
        return prompt, response
    *turns, last = response
    spoken = isinstance(last, Mapping) and last.get("role") == "assistant"
    if turns:  # a text beside whole conversations only repeats their first turn
        prompt = [*prompt, *turns] if isinstance(prompt, list) else turns
    return prompt, last.get("content") if spoken else response
