"""Replies for the tests: chat completions that are right, and a thousand ways in which they are not."""

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from judges.llm.scales import Scale, Structured, written
from pipeline.calls.request import Reply

RATING = Scale.rating(1, 9)
COMPARISON = Scale.comparison(ties=True)
JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 7, 7.5, 10**400, 1e308, float("nan"), float("inf"), "", "7", "A", "[[A]]", "[[7]]", "C",
    [], [7], {}, {"score": 7}, {"verdict": "A"}, "\ud800", "\x00", "￿", "[" * 5000, '{"score": 7}', "length",
)  # fmt: skip
SNIPPETS = (
    "[[", "]]", "[[A]]", "[[7]]", "[[10]]", "[[]]", "[[[A]]]", '"', "{", "}", '{"score": 7}', '{"verdict": "A"}', "7",
    "A", "true", "NaN", "-", "e999", "\\", "\\u0041", "```", "```json\n", "\n", "\u2028", "９", ",", '"score": 8,',
    '"verdict": "B",', "null",
)  # fmt: skip


def completion(content: Any, **choice: Any) -> dict[str, Any]:
    """A chat completion with one choice; ``choice`` has its further fields."""
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": content}} | choice]}


def reply(content: Any, **choice: Any) -> Reply:
    return Reply("key", completion(content, **choice))


def with_logprobs(tokens: list[str], place: int, alternatives: Mapping[str, float]) -> Reply:
    """A reply of ``tokens``; at number ``place`` the log-probabilities are those of ``alternatives``."""
    entries = [{"token": token, "logprob": -0.01, "top_logprobs": []} for token in tokens]
    listed = [{"token": token, "logprob": logprob} for token, logprob in alternatives.items()]
    entries[place] |= {"top_logprobs": listed, "logprob": alternatives.get(tokens[place], -0.5)}
    return reply("".join(tokens), logprobs={"content": entries})


def fuzzed(scale: Scale, structured: Structured, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Completions that began as good ones, their text or their structure spoilt at up to three places."""
    draw = random.Random(f"{scale.key} {structured} {seed}")
    for _ in range(count):
        label = draw.choice(list(scale.values))
        text = written(scale, label, structured, draw.choice([None, "It is good.", "Not [[B]], nor [[3]], but"]))
        for _ in range(draw.randrange(4)):
            text = _spoilt(text, draw)
        tokens = [{"token": each, "logprob": -0.1, "top_logprobs": [{"token": "7", "logprob": -0.2}]} for each in text]
        finish = draw.choice(["stop", "stop", "stop", "length", "content_filter", None])
        made = completion(text, finish_reason=finish, logprobs=draw.choice([None, {"content": tokens[:50]}]))
        for _ in range(draw.choice([0, 0, 0, 1, 2])):
            _plant(made, draw)
        yield made


def _spoilt(text: str, draw: random.Random) -> str:
    at, upto = sorted(draw.randrange(len(text) + 1) for _ in range(2))
    return draw.choice([
        text[:at], text[at:], text[:at] + text[upto:], text[:at] + draw.choice(SNIPPETS) + text[at:],
        text[:at] + draw.choice(SNIPPETS) + text[upto:], text + draw.choice(SNIPPETS), text + text, text.swapcase(),
        "".join(chr(draw.randrange(1, 0xD7FF)) for _ in range(draw.randrange(30))), json.dumps(text),
    ])  # fmt: skip


def _plant(document: Any, draw: random.Random) -> None:
    """Junk in place of one node anywhere in the completion."""
    while True:
        keys = list(document) if isinstance(document, dict) else range(len(document))
        if not keys:
            return
        key = draw.choice(list(keys))
        if not isinstance(document[key], dict | list) or draw.random() < 0.3:
            document[key] = draw.choice(JUNK)
            return
        document = document[key]
