"""A prompt's conversation, in any of the forms that data sets write one."""

import re
from collections.abc import Mapping
from typing import Any

from pipeline.types import Message

TURN = re.compile(r"\n\n(Human|Assistant):")
ASSISTANT = "\n\nAssistant:"
ROLES = {
    "human": "user", "user": "user", "Human": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "Assistant": "assistant",
    "system": "system",
}  # fmt: skip
"""What ShareGPT's ``from`` and hh-rlhf's transcripts call the roles."""
SPEAKERS = ("system", "user", "assistant")
OF_TOOLS = ("tool_calls", "function_call", "tool_call_id")
"""What a message says beside its role and its content."""


class Unusable(Exception):
    """Why a row cannot be a prompt. Never leaves this package."""


def is_transcript(content: Any) -> bool:
    """Whether this is a string of turns, as hh-rlhf has them (arXiv 2204.05862)."""
    return isinstance(content, str) and TURN.match(content) is not None


def read_turns(content: Any, column: str) -> tuple[Message, ...]:
    """The messages of a list or of a transcript, whoever speaks last.

    Raises:
        Unusable: it is neither.
    """
    if isinstance(content, str):
        _, *parts = TURN.split(content)
        spoken = [(ROLES[who], text.strip()) for who, text in zip(parts[::2], parts[1::2], strict=True)]
        if spoken[-1] == ("assistant", ""):
            spoken.pop()  # the answer's place, not an answer
        return tuple(Message(role=role, content=text) for role, text in spoken)
    try:
        messages = tuple(_message(turn) for turn in content)
    except (TypeError, KeyError):
        raise Unusable(
            f"{column!r} is neither a string nor a list of messages with role and content, or from and value"
        ) from None
    if not all(isinstance(part, str) for turn in messages for part in (turn["role"], turn["content"])):
        raise Unusable(f"{column!r} has a message whose role or content is no string")
    return messages


def _message(turn: Any) -> Message:
    if isinstance(turn, Mapping) and "from" in turn:
        if turn["from"] not in ROLES:
            raise Unusable(f"has a message from {turn['from']!r}; allowed: {', '.join(ROLES)}")
        return Message(role=ROLES[turn["from"]], content=turn["value"])
    return Message(role=turn["role"], content=turn["content"])


def check_turns(content: Any, count: int) -> None:
    """Refuse what a prompt cannot hold, which would be lost without a word, in the first ``count`` messages of what
    :func:`read_turns` has read.

    Raises:
        Unusable: a message calls a tool, or is of somebody else than ``SPEAKERS``.
    """
    for turn in [] if isinstance(content, str) else content[:count]:
        if of_tools := [name for name in OF_TOOLS if turn.get(name)]:
            raise Unusable(f"has a message with {of_tools[0]!r}; prompts hold role and content alone")
        if "from" not in turn and turn["role"] not in SPEAKERS:
            raise Unusable(f"has a message of {turn['role']!r}; allowed: {', '.join(SPEAKERS)}")


def before_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation without the assistant's messages at its end."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]
