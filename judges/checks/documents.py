"""A completion as a JSON document, read strictly: what one parser forgives another refuses, so none of it is JSON."""

import json
import math
from typing import Any, NoReturn


def parse_json(text: str) -> Any:
    """The one JSON document that ``text`` is, white space and a Markdown fence around it aside.

    Raises:
        ValueError: it is none; NaN, infinity, a number beyond float64 and an object that repeats a key are none.
        RecursionError: it is nested too deeply to tell.
    """
    return json.loads(
        unfenced(text), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_repeats
    )


def unfenced(text: str) -> str:
    """``text`` without a Markdown fence, bare or marked ``json``, around the whole of it."""
    body = text.strip()
    if len(body) < 6 or not (body.startswith("```") and body.endswith("```")):
        return body
    body = body[3:-3]
    return body[4:] if body[:4].lower() == "json" else body


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal} is beyond float64")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("an object repeats a key")
    return document
