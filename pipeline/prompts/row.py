"""One row of a source: a prompt, or the reason why it is none."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import Columns, PromptsConfig
from pipeline.prompts.turns import ASSISTANT, Unusable, before_answer, check_turns, is_transcript, read_turns
from pipeline.rows import Broken
from pipeline.store import digest
from pipeline.types import Message

OF_A_FUNCTION = Columns()
ANSWERED = Columns(answer="answer")
"""A function's rows are made for us: they may have an answer or not."""
NO_TOOLS: tuple[object, ...] = (None, [], {}, "", "[]", "{}", "null")
"""How data sets write that a conversation has no tools."""


@dataclass(frozen=True, slots=True)
class Row:
    source: str
    """Name of its member in a mixture, else ""."""
    number: int
    """Its place in its source, counted from 1."""
    content: str
    """Digest of what the row says, before ``prompts.system`` is added: equal prompts have equal ones."""
    own_id: str | None
    id_asked_for: bool
    """Whether the recipe names the id's column, or a function gave it: else it may be no name at all."""
    text: str
    messages: tuple[Message, ...]
    answer: str | None
    held_out: bool
    token_ids: tuple[int, ...] = ()

    def said(self) -> tuple[str, ...]:
        """The prompt's texts without system messages, which many prompts share."""
        if not self.messages:
            return (self.text,)
        return tuple(turn["content"] for turn in self.messages if turn["role"] != "system")


def parse(raw: Any, number: int, source: str, columns: Columns | None, config: PromptsConfig, bos: str | None) -> Row:
    """The prompt a row says, not encoded yet.

    Args:
        raw: a mapping; or bytes, of a line that should be JSON.
        columns: where the row has what; None for a function's rows.
        bos: the text that the policy's tokenizer takes for a beginning of sequence, where there is one.

    Raises:
        Unusable: it says none.
    """
    raw, made_for_us = mapping(raw), columns is None
    if columns is None:
        columns = OF_A_FUNCTION if raw.get("answer") in (None, "") else ANSWERED
    content, answer = _needed(raw, columns.prompt), columns.answer and _scalar(raw, columns.answer, needed=True)
    system = None if columns.system is None else _text_or_none(raw, columns.system)
    if config.template == "chat" and find(raw, "tools") not in NO_TOOLS:
        raise Unusable("has 'tools'; prompts hold messages alone")
    messages = _conversation(content, columns.prompt, system, config)
    text = messages[-1]["content"] if messages else _plain(content, config.cut_answers)
    if bos and not messages:
        text = text.removeprefix(bos)  # it gets its BOS as an id
    _check(text, messages, columns.prompt, bos)
    alone = len(messages) < 2  # a message alone is the same prompt as its text
    own_id = _scalar(raw, columns.id or "id", needed=bool(columns.id))
    return Row(
        source, number, digest(text if alone else messages), own_id, made_for_us or bool(columns.id), text,
        _with_system(messages, config.system), answer, held_out=raw.get("split") == "held_out",
    )  # fmt: skip


def mapping(raw: Any) -> Mapping[str, Any]:
    """The row as an object with keys. Raises Unusable where it is none."""
    if isinstance(raw, bytes):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"is not JSON: {error}") from None
    if isinstance(raw, Broken):
        raise Unusable(raw.reason)
    if not isinstance(raw, Mapping):
        raise Unusable(f"is a {type(raw).__name__}, not an object with keys")
    return raw


def find(row: Mapping[str, Any], path: str) -> Any:
    """What the row has under a column's name, or where dots lead from there; None for nothing, and for NaN."""
    value: Any = row
    for part in [path] if path in row else path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return None if isinstance(value, float) and math.isnan(value) else value


def prompt_texts(raw: Any, columns: Columns | None) -> tuple[str, ...]:
    """What a row of an evaluation set asks, turn by turn and whoever speaks last. Raises Unusable for nothing."""
    name = (columns or OF_A_FUNCTION).prompt
    content = _needed(mapping(raw), name)
    if isinstance(content, str) and not is_transcript(content):
        texts: tuple[str, ...] = (content,)
    else:
        texts = tuple(turn["content"] for turn in read_turns(content, name) if turn["role"] != "system")
    if not any(text.strip() for text in texts):
        raise Unusable(f"has an empty {name!r}")
    return texts


# ---------------------------------------------------------------------------------------------- its values
def _needed(row: Mapping[str, Any], path: str) -> Any:
    value = find(row, path)
    if value is None:
        raise Unusable(f"has no {path!r}; it has {', '.join(map(str, row)) or 'nothing'}")
    return value


def _scalar(row: Mapping[str, Any], path: str, needed: bool) -> str | None:
    value = _needed(row, path) if needed else find(row, path)
    if value is not None and not isinstance(value, str | int | float):
        raise Unusable(f"{path!r} is a {type(value).__name__}, not a string or a number")
    if value == "":  # how a table writes that there is none
        if needed:
            raise Unusable(f"has an empty {path!r}")
        value = None
    return None if value is None else _unicode(str(value), path)


def _text_or_none(row: Mapping[str, Any], path: str) -> str | None:
    value = find(row, path)
    if value is not None and not isinstance(value, str):
        raise Unusable(f"{path!r} is a {type(value).__name__}, not a string")
    return value or None


def _unicode(text: str, path: str) -> str:
    """``text``, unless it has half of a surrogate pair, which JSON can write and nothing can store."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable(f"{path!r} is no Unicode text: {error.reason}") from None
    return text


# ---------------------------------------------------------------------------------------------- its conversation
def _conversation(content: Any, column: str, system: str | None, config: PromptsConfig) -> tuple[Message, ...]:
    """The messages of a chat prompt, which must end with the user's turn; none for a plain prompt."""
    if config.template == "plain":
        if isinstance(content, str):
            return ()
        read_turns(content, column)
        raise Unusable(f'{column!r} is a list of messages, which needs prompts.template = "chat"')
    if isinstance(content, str) and not is_transcript(content):
        return _with_system((Message(role="user", content=content),), system)
    messages = read_turns(content, column)
    if config.cut_answers:
        messages = before_answer(messages)
    check_turns(content, len(messages))
    if not messages or messages[-1]["role"] != "user":
        last = messages[-1]["role"] if messages else "nobody"
        raise Unusable(f"{column!r} ends with a message of {last!r}; allowed: 'user'")
    return _with_system(messages, system)


def _plain(content: str, cut_answers: bool) -> str:
    if cut_answers and is_transcript(content) and ASSISTANT in content:
        return content[: content.rindex(ASSISTANT) + len(ASSISTANT)]
    return content


def _with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    if not messages or system is None or any(turn["role"] == "system" for turn in messages):
        return messages
    return (Message(role="system", content=system), *messages)


def _check(text: str, messages: tuple[Message, ...], column: str, bos: str | None) -> None:
    if not text.strip():
        raise Unusable(f"has an empty {column!r}")
    parts = [text, *(part for turn in messages for part in (turn["role"], turn["content"]))]
    for part in parts:
        _unicode(part, column)
    # Read as a token, it would begin the sequence anew in the middle.
    if bos and any(bos in part for part in parts):
        raise Unusable(f"has the BOS token {bos!r} in its {column!r}")
