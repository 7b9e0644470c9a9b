"""A document into one of the config's models, or one line that says what is wrong with it.

The line is put together from the model's JSON schema rather than from pydantic's wording: the dotted key, the value as
TOML would have it, and what is allowed there.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a string, in quotes"}
LONGEST_VALUE = 120
"""Characters of an offending value that an error quotes."""


def validate(model: type[M], document: Mapping[str, Any], name: str) -> M:
    """``document`` as a ``model``. Raises ConfigError, one line that begins with ``name``."""
    # By way of JSON, where pydantic's strict mode takes arrays for tuples but neither true nor "3" for a number.
    try:
        return model.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as invalid:
        errors = _ranked(invalid.errors(include_url=False))
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(f"{name}: {_explain(errors[0], model.model_json_schema())}{more}") from None


def _ranked(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without echoes (an array short of the very entries that were refused), and unknown keys first: a misspelt key
    often makes a missing one too."""
    places = [error["loc"] for error in errors]
    own = [
        error
        for error in errors
        if not any(len(place) > len(error["loc"]) and place[: len(error["loc"])] == error["loc"] for place in places)
    ]
    return sorted(own, key=lambda error: error["type"] != "extra_forbidden")


def _explain(error: ErrorDetails, schema: dict[str, Any]) -> str:
    value = show(error["input"])
    if error["loc"][-1:] == ("[key]",):  # after the table and the name in it
        return f"{_locate(error['loc'][:-2], schema)[0]}: {value} is no name; allowed: {error['ctx']['pattern']}"
    key, node, siblings = _locate(error["loc"], schema)
    match error["type"]:
        case "extra_forbidden":
            return f"{key}: there is no such key (its value is {value}){choices(str(error['loc'][-1]), siblings)}"
        case "missing":
            return f"{key}: is missing; allowed: {_allowed(node)}"
        case "union_tag_not_found":
            return f"{join(key, 'type')}: is missing from {value}; allowed: {_kinds(node)}"
        case "union_tag_invalid":
            tag = show(error["input"]["type"])
            return f"{join(key, 'type')}: {tag} is not allowed; allowed: {_kinds(node)}"
        case "value_error":
            reason = str(error["ctx"]["error"])
            if not key:
                return reason  # a check across tables: it names its keys itself
            return f"{key}: {reason}" if isinstance(error["input"], dict) else f"{key}: {value} {reason}"
        case _:
            return f"{key}: {value} is not allowed; allowed: {_allowed(node)}"


def _locate(place: Sequence[int | str], schema: dict[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """Dotted key, JSON schema and sibling keys of an error's place, without the union tags pydantic puts in it."""
    key, node, siblings = "", _resolve(schema, schema), list[str]()
    for part in place:
        if "discriminator" in node:
            node = _resolve({"$ref": node["discriminator"]["mapping"][part]}, schema)
            continue
        key = join(key, part)
        siblings = list(node.get("properties", ()))
        inside = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
        patterns: dict[str, Any] = node.get("patternProperties", {})
        entries = node.get("additionalProperties") or next(iter(patterns.values()), None)
        node = _resolve(inside or entries or {}, schema)
    return key, node, siblings


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """``node`` with its reference followed and None, which TOML cannot say, taken out of its choices."""
    if "$ref" in node:
        return _resolve(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    options = [option for option in node.get("anyOf", ()) if option != {"type": "null"}]
    return _resolve(options[0], schema) if len(options) == 1 else node


def _kinds(node: Mapping[str, Any]) -> str:
    return ", ".join(show(tag) for tag in node["discriminator"]["mapping"])


def _allowed(node: Mapping[str, Any]) -> str:
    if "discriminator" in node:
        return f"a table whose type is one of {_kinds(node)}"
    if "const" in node or "enum" in node:
        return ", ".join(show(choice) for choice in node.get("enum", [node.get("const")]))
    kind = node.get("type")
    if kind == "object" and "properties" in node:
        return f"a table with the keys {', '.join(node['properties'])}"
    if kind in ("object", "array"):
        least = node.get("minItems", node.get("minProperties", 0))
        return ("a table" if kind == "object" else "an array") + (f" with at least {least} entry" if least else "")
    limits = [f"{sign} {node[name]:g}" for name, sign in LIMITS.items() if name in node]
    return " ".join([KINDS.get(str(kind), "another value"), " and ".join(limits)]).strip()


# ---------------------------------------------------------------------------------------------- wording
def choices(wrong: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """``; allowed: …``, with the one of ``known`` that ``wrong`` may have meant."""
    near = difflib.get_close_matches(wrong, list(known), n=1)
    hint = f"; did you mean {near[0]!r}? allowed" if near else "; allowed"
    return f"{hint}: {', '.join(sorted(known)) or 'none'}"


def show(value: Any) -> str:
    """A value as TOML would have it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"


def join(*parts: str | int) -> str:
    """A dotted key."""
    return ".".join(str(part) for part in parts if part != "")
