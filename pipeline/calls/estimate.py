"""What calls will cost, before any is sent: pure arithmetic.

Tokens are bounded, not counted, because a provider's tokenizer is not at hand. A token of a byte-level vocabulary, and
of any other that falls back on bytes, stands for at least one byte of UTF-8, so a text has at most as many tokens as
bytes; the chat template's own tokens come on top. English has about four bytes a token.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.calls.accounts import BILLIONTHS
from pipeline.calls.request import Request
from pipeline.config import Endpoint

BATCH_DISCOUNT = 0.5
"""What the Batch API costs, as a share of the ordinary price."""
TEMPLATE_TOKENS = 128
"""More than the fixed part of any chat template seen: Llama 3's date line, gpt-oss's system message."""
TURN_TOKENS = 16
BYTES_PER_TOKEN = 4.0
"""Of ordinary English."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of one call, in tokens."""

    prompt: int
    """Likely."""
    most_prompt: int
    most_reply: int | None
    """None: the request sets no limit."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a set of calls to one endpoint would take."""

    model: str
    calls: int
    """Different ones."""
    answered: int
    """Of them: already in the ledger, free."""
    prompt_tokens: int
    """Of the rest, likely."""
    most_reply_tokens: int
    """If every reply is as long as it may be."""
    low: float | None
    """Money, where each reply is one token; None: the endpoint has no prices."""
    high: float | None
    """Money that a budget would have to hold: all bounds reached."""
    batch: bool
    """Whether they go through the Batch API, which answers within a day; else each is answered at once."""


def size(request: Request) -> Size:
    texts = sum(_bytes(message["content"]) for message in request.messages)
    forms = sum(_bytes(json.dumps(value)) for name, value in request.body.items() if isinstance(value, (dict, list)))
    turns = TURN_TOKENS * len(request.messages)
    likely = math.ceil((texts + forms) / BYTES_PER_TOKEN) + turns
    return Size(likely, texts + forms + turns + TEMPLATE_TOKENS, most_reply(request.body))


def most_reply(body: Mapping[str, Any]) -> int | None:
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    return None if limit is None else int(limit) * int(body.get("n") or 1)


def price(endpoint: Endpoint, tokens_in: int, tokens_out: int) -> int:
    """Billionths of the prices' currency, rounded up; 0 where the endpoint has no prices."""
    if endpoint.price_in is None or endpoint.price_out is None:
        return 0
    share = BATCH_DISCOUNT if endpoint.batch else 1.0
    millionths = tokens_in * endpoint.price_in + tokens_out * endpoint.price_out
    return math.ceil(millionths * share * BILLIONTHS / 1e6)


def estimate(endpoint: Endpoint, requests: Iterable[Request], answered: Collection[str] = ()) -> Estimate:
    """Of ``requests``, all to ``endpoint``; ``answered`` holds the keys the ledger has, as ``Ledger.answered`` gives
    them. A request that comes twice is one call."""
    sizes = {request.key: size(request) for request in requests}
    rest = [each for key, each in sizes.items() if key not in answered]
    prompt, replies = sum(each.prompt for each in rest), sum(each.most_reply or 0 for each in rest)
    low = high = None
    if endpoint.price_in is not None:
        low = price(endpoint, prompt, len(rest)) / BILLIONTHS
        high = sum(price(endpoint, each.most_prompt, each.most_reply or 0) for each in rest) / BILLIONTHS
    return Estimate(endpoint.model, len(sizes), len(sizes) - len(rest), prompt, replies, low, high, endpoint.batch)


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
