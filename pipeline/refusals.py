"""What the Hub's client lets out when a call fails, in one line a user can act on.

The failed request has the token in its headers, and an upload's address is signed: neither is kept or said.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from pipeline.calls.limits import retry_after
from pipeline.errors import HubError

PASSING = {408, 429, 500, 502, 503, 504}
LOG_IN = "set HF_TOKEN, or run `hf auth login`"
LATER = "push again later: what has arrived is not sent again"


class Refusal(HubError):
    """One call of the Hub's client that failed. Holds no request, no response and no other exception."""

    def __init__(self, message: str, status: int | None = None, passing: bool = False, pause: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.passing = status, passing
        self.pause = pause
        """Seconds the Hub asks to wait."""


def refusal_of(doing: str, error: BaseException, plain: Callable[[str], str]) -> Refusal:
    """The failed call in one line a user can act on."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # the wrapping of an upload's thread
        error = error.__cause__
    said = plain(f"{type(error).__name__}: {error}")
    match error:
        case HfHubHTTPError():
            return _answered(doing, error, plain)
        case OfflineModeIsEnabled():
            return Refusal(f"{doing}: HF_HUB_OFFLINE is set: unset it")
        case httpx2.TimeoutException() | httpx2.NetworkError() | httpx2.RemoteProtocolError():
            return Refusal(f"{doing}: the Hub cannot be reached or hung up ({said}); {LATER}", passing=True)
        case json.JSONDecodeError():  # a gateway's page in place of the Hub's answer
            return Refusal(f"{doing}: the Hub's answer is no JSON; {LATER}", passing=True)
    return Refusal(f"{doing}: {said}")


def _answered(doing: str, error: Any, plain: Callable[[str], str]) -> Refusal:
    from huggingface_hub.utils import parse_ratelimit_headers

    status, headers = error.response.status_code, error.response.headers
    said = f"({status}: {plain(error.server_message)})" if error.server_message else f"({status})"
    if status in PASSING:
        limit, pause = parse_ratelimit_headers(headers), retry_after(headers.get("retry-after"))
        if pause is None and limit is not None and limit.remaining == 0:
            pause = float(limit.reset_in_seconds)
        why = f"{doing}: the Hub is overloaded or out of order {said}; {LATER}"
        return Refusal(why, status, passing=True, pause=pause or 0.0)
    match status:
        case 401:
            what = f"the Hub does not accept the token {said}: {LOG_IN}"
        case 403:
            what = f"the token may not do that {said}: {LOG_IN}, with a token that may write there"
        case 404:
            what = f"the Hub has none that this token may see {said}: is the name right?"
        case _:
            what = f"the Hub refuses {said}"
    return Refusal(f"{doing}: {what}", status)


def one_line(text: str) -> str:
    """Without the query of an address: an upload's is signed."""
    return " ".join(re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text).split())[:300]
