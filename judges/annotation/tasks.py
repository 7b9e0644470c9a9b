"""What people are asked: which of two candidates for a prompt is better.

A :class:`Task` is named by its content alone: the conversation and the two texts, whichever way round. So a vote finds
its candidates again in any group, file or run that holds the same texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

from pipeline.store import digest
from pipeline.types import Message, Prompt

Side = Literal["first", "second"]
Outcome = Literal["first", "second", "tie", "both_bad"]
"""How a comparison ended; ``both_bad``: neither should be learnt from."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
SWAPPED: Mapping[Outcome, Outcome] = {"first": "second", "second": "first", "tie": "tie", "both_bad": "both_bad"}


@dataclass(frozen=True, slots=True)
class Task:
    id: str
    """Digest of the conversation and both texts."""
    conversation: tuple[Message, ...]
    """A plain prompt is one turn of the user."""
    first: str
    """The candidate whose digest is the smaller: which is first says nothing about either."""
    second: str
    known: Outcome | None = None
    """The right answer of a calibration item."""
    prompt_id: str | None = None

    def text(self, side: Side) -> str:
        return self.first if side == "first" else self.second


def is_outcome(value: object) -> TypeGuard[Outcome]:
    return value in OUTCOMES


def conversation_of(prompt: Prompt) -> tuple[Message, ...]:
    return prompt.messages or (Message(role="user", content=prompt.text),)


def compare(
    prompt: str | Sequence[Message], one: str, other: str, known: Outcome | None = None, prompt_id: str | None = None
) -> Task:
    """The task of comparing ``one`` with ``other``; ``known`` is said of that order: first is ``one``."""
    conversation = (Message(role="user", content=prompt),) if isinstance(prompt, str) else tuple(prompt)
    swapped = text_key(other) < text_key(one)
    first, second = (other, one) if swapped else (one, other)
    known = SWAPPED[known] if swapped and known else known
    return Task(digest([list(conversation), first, second]), conversation, first, second, known, prompt_id)


def text_key(text: str) -> str:
    return digest(text)
