"""What one call came to: pure reading of a status and a body, for calls and for lines of a batch alike.

Only the envelope is read here. A chat completion that came to its end is an answer whatever its content, a refusal or
prose too: what it says is the judge's concern.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

GONE = {401, 402, 404}
"""Statuses after which no call can work: the key, the money, the model."""
NEVER = {400, 405, 410, 411, 413, 414, 415, 422}
"""Statuses that say this request will never do."""
CROWDED = {429, 503, 529}
QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated"}
BROKEN_OFF = ("abort", "error")
"""Why a completion that came with status 200 is half of one: vLLM says so of what was under way when it was paused or
ended, OpenRouter where the provider behind it failed. Its words would pass for a whole answer."""
LONGEST_DETAIL = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    reason: str = ""
    """Why there is no answer: short and countable."""
    detail: str = ""
    """The server's own words."""
    text: str | None = None
    """The answer's JSON as it came."""
    raw: Mapping[str, Any] | None = None
    """The same, read."""
    tokens: tuple[int, int] | None = None
    """Of prompt and reply, as the provider counted them; None where it did not say."""
    billed: bool = False
    """Whether there may be a bill: what was read or written is paid for even where it was lost on the way."""
    again: bool = True
    """Whether another try may do better."""
    fatal: bool = False
    """No call can work."""


def of_body(text: str) -> Outcome:
    """Of a body that came with status 200."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return Outcome("bad_json", text, billed=True)
    if not isinstance(body, dict):
        return Outcome("bad_json", text, billed=True)
    tokens = _usage(body)
    choices = body.get("choices")
    if body.get("error"):  # OpenRouter's way of saying that the provider behind it failed
        return Outcome("server_error", _words(body), tokens=tokens, billed=True)
    if not isinstance(choices, list) or not choices:
        return Outcome("no_choice", text, tokens=tokens, billed=True)
    if not isinstance(choices[0], dict) or not isinstance(choices[0].get("message"), dict):
        return Outcome("no_choice", text, tokens=tokens, billed=True)
    if (ended := choices[0].get("finish_reason")) in BROKEN_OFF:
        return Outcome("cut_off", f"finish_reason {ended!r}", tokens=tokens, billed=True)
    return Outcome(text=text, raw=body, tokens=tokens, billed=True)


def of_status(status: int, body: Any, works: bool) -> Outcome:
    """Of any other status. ``works``: the endpoint has answered before, so its key and model are good."""
    words = f"{status}: {_words(body)}"
    if status == 429 and _code(body) & QUOTA:
        return Outcome("no_quota", words, fatal=True)
    if status in GONE or (status == 403 and not works):
        return Outcome("refused_access", words, fatal=True)
    if status in CROWDED:
        return Outcome("rate_limited" if status == 429 else "server_error", words)
    if status in NEVER or status == 403:  # once it has worked, a 403 is about this text
        return Outcome("bad_request", words, again=False)
    return Outcome("server_error", words)


def showable(words: str, secret: str) -> str:
    """A server's words for a ledger and for people: short, without the key, and storable whatever it sent."""
    words = words.replace(secret, "[key]") if secret else words
    return words[:LONGEST_DETAIL].encode(errors="replace").decode()


def _usage(body: Mapping[str, Any]) -> tuple[int, int] | None:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (read, written) if _is_count(read) and _is_count(written) else None


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _error(body: Any) -> Any:
    """The error object, however the server wraps it: vLLM, OpenAI and proxies differ."""
    return body.get("error", body) if isinstance(body, dict) else body


def _words(body: Any) -> str:
    error = _error(body)
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else None
    return str(message or error)


def _code(body: Any) -> set[str]:
    error = _error(body)
    return {str(error.get("code")), str(error.get("type"))} if isinstance(error, dict) else set()
