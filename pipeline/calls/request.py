"""What is asked of a language model, and what comes back: plain records, no network.

A :class:`Request` is all that an answer depends on, so its key names the answer for ever: asked again, today or in
another run, it is read from the ledger. A :class:`Reply` is the provider's own JSON, kept raw, because parsing changes
and answers are paid for once. A :class:`Failure` is a call given up; it is never stored as an answer.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.types import Message


@dataclass(frozen=True, slots=True)
class Request:
    model: str
    base_url: str
    """Two servers may serve different weights under one name."""
    messages: tuple[Message, ...]
    body: Mapping[str, Any] = field(default_factory=dict)
    """All other fields of the request: temperature, max_tokens, response_format, logprobs, seed, …"""
    sample: int = 0
    """Number of this draw where the same is asked several times."""

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON."""
        content = [self.base_url, self.model, list(self.messages), dict(self.body), self.sample]
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    key: str
    raw: Mapping[str, Any]
    """The provider's JSON: a chat completion."""

    @property
    def text(self) -> str:
        """Of the first choice; empty where the provider sent none."""
        content = self._message.get("content")
        return content if isinstance(content, str) else ""

    @property
    def refusal(self) -> str | None:
        refusal = self._message.get("refusal")
        return refusal if isinstance(refusal, str) else None

    @property
    def finish_reason(self) -> str | None:
        reason = self._choice.get("finish_reason")
        return reason if isinstance(reason, str) else None

    @property
    def logprobs(self) -> list[Mapping[str, Any]]:
        """A token each, with ``token``, ``logprob`` (nats) and ``top_logprobs``; empty where there are none."""
        tokens = _mapping(self._choice.get("logprobs")).get("content")
        return [_mapping(token) for token in tokens] if isinstance(tokens, list) else []

    @property
    def _choice(self) -> Mapping[str, Any]:
        choices = self.raw.get("choices")
        return _mapping(choices[0]) if isinstance(choices, list) and choices else {}

    @property
    def _message(self) -> Mapping[str, Any]:
        return _mapping(self._choice.get("message"))


def _mapping(value: Any) -> Mapping[str, Any]:
    """Providers send what they like: where an object should be and is not, there is an empty one."""
    return value if isinstance(value, Mapping) else {}


@dataclass(frozen=True, slots=True)
class Failure:
    key: str
    reason: str
    """Short and countable: timeout, server_error, rate_limited, bad_json, no_choice, …"""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Desk:
    """What all paid judges of a process share: a ledger, and whose money they spend."""

    ledger: str
    """The SQLite file."""
    account: str
    """Whom calls are booked to: the run's name."""
    budget: float | None = None
    """Money the account may ever spend, in the currency of the endpoints' prices; None: no limit."""
