"""From a recipe's name or file, and ``--set`` overrides, to a validated :class:`~pipeline.config.RunConfig`.

A recipe is TOML. Relative paths inside it are relative to the working directory, wherever the file lies. An optional
``[vars]`` table at its top names values: ``${name}`` inside any string is replaced, and a string that is nothing but
``${name}`` takes the variable's own type. A variable left "" must be given (``--set vars.name=…``) before it is used.

Only pydantic is imported here, so a wrong recipe is refused within a moment, with one line.
"""

import datetime
import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.calls import source_file
from pipeline.config import Call, RunConfig
from pipeline.errors import ConfigError

VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a string, in quotes"}
LONGEST_VALUE = 120
"""Characters of an offending value that an error quotes."""


def load_recipe(name_or_path: str, recipes: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run a recipe describes.

    Args:
        name_or_path: a recipe in ``recipes`` (its file name without ``.toml``), or a path that ends in ``.toml``.
        recipes: directory of the packaged recipes.
        overrides: ``key=value`` each, applied from left to right. ``key`` is dotted; ``value`` is TOML, or a plain
            string where it is not. Setting a table's ``type`` to another kind starts that table afresh, since the
            kinds share no keys; so it has to come before other settings of the same table.

    Raises:
        ConfigError: one line with the key, the value and what is allowed.
    """
    document = _read(_find(name_or_path, recipes))
    declared = _variables(document)
    for position, override in enumerate(overrides):
        _apply(override, document, earlier=overrides[:position])
    variables = _variables(document)
    for name in variables.keys() - declared.keys():
        raise ConfigError(f"--set vars.{name}: {name_or_path} has no such variable{_choices(name, declared)}")
    document.pop("vars", None)
    return _validate(_fill(document, variables, ""), name_or_path)


def check_calls(config: RunConfig) -> None:
    """Refuse a function that is not there, before anything starts. Does not import the function's own file.

    Raises:
        ConfigError: with the key of the call.
    """
    for key, call in _calls(config, ""):
        try:
            source_file(call)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None


def _calls(value: Any, key: str) -> Iterator[tuple[str, Call]]:
    if isinstance(value, Call):
        yield key, value
    elif isinstance(value, BaseModel):
        yield from _calls(dict(value), key)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _calls(part, _join(key, name))
    elif isinstance(value, tuple):
        for index, part in enumerate(value):
            yield from _calls(part, _join(key, index))


# ---------------------------------------------------------------------------------------------- reading
def _find(name_or_path: str, recipes: Path) -> Path:
    if name_or_path.endswith(".toml"):
        file = Path(name_or_path)
        if not file.is_file():
            raise ConfigError(f"recipe file {name_or_path!r} does not exist")
        return file
    known = {file.stem: file for file in sorted(recipes.glob("*.toml"))}
    if name_or_path not in known:
        raise ConfigError(
            f"there is no recipe {name_or_path!r}{_choices(name_or_path, known)}, or a path to a .toml file"
        )
    return known[name_or_path]


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None


# ---------------------------------------------------------------------------------------------- --set
def _apply(override: str, document: dict[str, Any], earlier: Sequence[str]) -> None:
    path, value = _parse(override)
    *parents, last = path
    table = document
    for depth, part in enumerate(parents):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            inner = _join("", *parents[: depth + 1])
            raise ConfigError(
                f"--set {override!r}: {inner} is {_show(table)}, not a table; allowed: --set {inner}=… as a whole"
            )
    if _changes_kind(path, table, value):
        for other in earlier:
            if _parse(other)[0][: len(parents)] == parents and _parse(other)[0] != path:
                raise ConfigError(
                    f"--set {override!r}: a new type starts {_join('', *parents)} afresh; give it before {other!r}"
                )
        table.clear()
    table[last] = value


def _changes_kind(path: list[str], table: Mapping[str, Any], value: Any) -> bool:
    """Whether this makes a table of one kind into another. A ``type`` in ``vars`` or a user's ``args`` is no kind."""
    typed = path[-1] == "type" and path[0] != "vars" and "args" not in path
    return typed and isinstance(table.get("type"), str) and table["type"] != value


def _parse(override: str) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override!r} has no '='; allowed: key=value, e.g. trainer.beta=0.5")
    try:
        node: Any = tomllib.loads(f"{key} = 0")  # TOML's own grammar for dotted and quoted keys
    except tomllib.TOMLDecodeError:
        node = None
    path = []
    while isinstance(node, dict) and len(node) == 1:
        ((part, node),) = node.items()
        path.append(part)
    if node != 0:
        raise ConfigError(f"--set {override!r}: {key!r} is not a key; allowed: a dotted key, e.g. trainer.beta=0.5")
    return path, _value(text)


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # No setting is a date, so 2024-01-01 is a name; and a line break must not smuggle in other keys.
    is_plain = len(parsed) > 1 or isinstance(parsed["value"], datetime.date | datetime.time)
    return text if is_plain else parsed["value"]


# ---------------------------------------------------------------------------------------------- [vars]
def _variables(document: Mapping[str, Any]) -> dict[str, Any]:
    variables = document.get("vars", {})
    if not isinstance(variables, dict):
        raise ConfigError(f"vars: {_show(variables)} is not allowed; allowed: a table of names and values")
    return dict(variables)


def _fill(value: Any, variables: Mapping[str, Any], key: str) -> Any:
    if isinstance(value, dict):
        return {name: _fill(part, variables, _join(key, name)) for name, part in value.items()}
    if isinstance(value, list):
        return [_fill(part, variables, _join(key, index)) for index, part in enumerate(value)]
    if not isinstance(value, str):
        return value
    if whole := VARIABLE.fullmatch(value):
        return _variable(whole[1], variables, key)
    return VARIABLE.sub(lambda match: _text(_variable(match[1], variables, key)), value)


def _variable(name: str, variables: Mapping[str, Any], key: str) -> Any:
    if name not in variables:
        raise ConfigError(f"{key}: there is no variable {name!r}{_choices(name, variables)}")
    if variables[name] == "":
        raise ConfigError(f"{key}: the variable {name!r} is empty; give it with --set vars.{name}=…")
    return variables[name]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


# ---------------------------------------------------------------------------------------------- validation
def _validate(document: Mapping[str, Any], recipe: str) -> RunConfig:
    # By way of JSON, where pydantic's strict mode takes arrays for tuples but neither true nor "3" for a number.
    try:
        return RunConfig.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as invalid:
        errors = _ranked(invalid.errors(include_url=False))
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(f"{recipe}: {_explain(errors[0])}{more}") from None


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


def _explain(error: ErrorDetails) -> str:
    """One line for one of pydantic's errors, from the config's JSON schema rather than from pydantic's wording."""
    key, node, siblings = _locate(error["loc"])
    value = _show(error["input"])
    match error["type"]:
        case "extra_forbidden":
            return f"{key}: there is no such key (its value is {value}){_choices(str(error['loc'][-1]), siblings)}"
        case "missing":
            return f"{key}: is missing; allowed: {_allowed(node)}"
        case "union_tag_not_found":
            return f"{_join(key, 'type')}: is missing from {value}; allowed: {_kinds(node)}"
        case "union_tag_invalid":
            tag = _show(error["input"]["type"])
            return f"{_join(key, 'type')}: {tag} is not allowed; allowed: {_kinds(node)}"
        case "value_error":
            reason = str(error["ctx"]["error"])
            if not key:
                return reason  # a check across tables: it names its keys itself
            return f"{key}: {reason}" if isinstance(error["input"], dict) else f"{key}: {value} {reason}"
        case _:
            return f"{key}: {value} is not allowed; allowed: {_allowed(node)}"


def _locate(place: Sequence[int | str]) -> tuple[str, dict[str, Any], list[str]]:
    """Dotted key, JSON schema and sibling keys of an error's place, without the union tags pydantic puts in it."""
    schema = RunConfig.model_json_schema()
    key, node, siblings = "", _resolve(schema, schema), list[str]()
    for part in place:
        if "discriminator" in node:
            node = _resolve({"$ref": node["discriminator"]["mapping"][part]}, schema)
            continue
        key = _join(key, part)
        siblings = list(node.get("properties", ()))
        inside = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
        node = _resolve(inside or node.get("additionalProperties") or {}, schema)
    return key, node, siblings


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """``node`` with its reference followed and None, which TOML cannot say, taken out of its choices."""
    if "$ref" in node:
        return _resolve(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    choices = [choice for choice in node.get("anyOf", ()) if choice != {"type": "null"}]
    return _resolve(choices[0], schema) if len(choices) == 1 else node


def _kinds(node: Mapping[str, Any]) -> str:
    return ", ".join(_show(tag) for tag in node["discriminator"]["mapping"])


def _allowed(node: Mapping[str, Any]) -> str:
    if "discriminator" in node:
        return f"a table whose type is one of {_kinds(node)}"
    if "const" in node or "enum" in node:
        return ", ".join(_show(choice) for choice in node.get("enum", [node.get("const")]))
    kind = node.get("type")
    if kind == "object" and "properties" in node:
        return f"a table with the keys {', '.join(node['properties'])}"
    if kind in ("object", "array"):
        least = node.get("minItems", node.get("minProperties", 0))
        return ("a table" if kind == "object" else "an array") + (f" with at least {least} entry" if least else "")
    limits = [f"{sign} {node[name]:g}" for name, sign in LIMITS.items() if name in node]
    return " ".join([KINDS.get(str(kind), "another value"), " and ".join(limits)]).strip()


# ---------------------------------------------------------------------------------------------- wording
def _choices(wrong: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, list(known), n=1)
    hint = f"; did you mean {near[0]!r}? allowed" if near else "; allowed"
    return f"{hint}: {', '.join(sorted(known)) or 'none'}"


def _show(value: Any) -> str:
    """A value as TOML would have it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"


def _join(*parts: str | int) -> str:
    return ".".join(str(part) for part in parts if part != "")
