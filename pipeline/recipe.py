"""From a recipe's name or file, and ``--set`` overrides, to a validated :class:`~pipeline.config.RunConfig`.

A recipe is TOML. Relative paths inside it are relative to the working directory, wherever the file lies. An optional
``[vars]`` table at its top names values: ``${name}`` inside any string is replaced, and a string that is nothing but
``${name}`` takes the variable's own type. A variable left "" must be given (``--set vars.name=…``) before it is used.

Only pydantic is imported here, so a wrong recipe is refused within a moment, with one line.
"""

import datetime
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from pipeline.calls.keys import secret
from pipeline.config import (
    Call,
    DataConfig,
    Endpoint,
    JudgeFile,
    PairingConfig,
    RewardTrainerConfig,
    RunConfig,
    TrainerConfig,
)
from pipeline.errors import ConfigError, JudgeError
from pipeline.functions import source_file
from pipeline.validation import choices, join, show, validate

Config = TypeVar("Config", bound=BaseModel)
Part = TypeVar("Part", bound=BaseModel)
VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")


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
    return _recipe(RunConfig, name_or_path, recipes, overrides)


def load_data_recipe(name_or_path: str, recipes: Path, overrides: Sequence[str] = ()) -> DataConfig:
    """The preference data a recipe describes. Arguments and errors as of :func:`load_recipe`."""
    return _recipe(DataConfig, name_or_path, recipes, overrides)


def _recipe(kind: type[Config], name_or_path: str, recipes: Path, overrides: Sequence[str]) -> Config:
    document = _read(_find(name_or_path, recipes))
    declared = _variables(document)
    for position, override in enumerate(overrides):
        _apply(override, document, earlier=overrides[:position])
    variables = _variables(document)
    for name in variables.keys() - declared.keys():
        raise ConfigError(f"--set vars.{name}: {name_or_path} has no such variable{choices(name, declared)}")
    document.pop("vars", None)
    return validate(kind, _fill(document, variables, ""), name_or_path)


def load_trainer(file: str | None, overrides: Sequence[str] = ()) -> TrainerConfig:
    """The trainer of a training without rounds: the keys of a recipe's ``[trainer]``.

    Args:
        file: such keys alone, or a recipe, of which nothing else is read.
        overrides: as of :func:`load_recipe`, with ``trainer.`` before the key or without.

    Raises:
        ConfigError: one line with the key, the value and what is allowed.
    """
    document = _settings_file(file)
    if "trainer" in document and document.keys() <= {*RunConfig.model_fields, "vars"}:
        document = _fill(document["trainer"], _variables(document), "trainer")
    return _settings(TrainerConfig, document, file, [override.removeprefix("trainer.") for override in overrides])


def load_reward_trainer(file: str | None, overrides: Sequence[str] = ()) -> RewardTrainerConfig:
    """How a reward model is trained: a file of its settings. Arguments and errors as of :func:`load_trainer`."""
    return _settings(RewardTrainerConfig, _settings_file(file), file, overrides)


def load_pairing(began: Mapping[str, Any], overrides: Sequence[str]) -> PairingConfig:
    """How a run's pairs are made anew.

    Args:
        began: what the run began with, as ``config.json`` has it; its ``pairing`` is read.
        overrides: as of :func:`load_recipe`, each of a key that begins with ``pairing.``.

    Raises:
        ConfigError: one line with the key, the value and what is allowed.
    """
    document = {"pairing": dict(began["pairing"])}
    for position, override in enumerate(overrides):
        if not override.startswith("pairing."):
            raise ConfigError(f"--set {override!r}: only pairs are made anew; allowed: pairing.KEY=VALUE")
        if override.startswith("pairing.replay"):
            raise ConfigError(f"--set {override!r} has no effect: what is replayed is drawn before a training")
        _apply(override, document, earlier=overrides[:position])
    return validate(PairingConfig, document["pairing"], "--set pairing")


def _settings_file(file: str | None) -> dict[str, Any]:
    if file is not None and not Path(file).is_file():
        raise ConfigError(f"--config {file!r} is not a file")
    return {} if file is None else _read(Path(file))


def _settings(kind: type[Config], document: dict[str, Any], file: str | None, overrides: Sequence[str]) -> Config:
    for position, override in enumerate(overrides):
        _apply(override, document, earlier=overrides[:position])
    return validate(kind, document, file or "--set")


def load_judge(name_or_path: str, recipes: Path, overrides: Sequence[str] = ()) -> RunConfig | JudgeFile:
    """What ``[judge]`` says, in a recipe or in a file with nothing else. Arguments and errors as of
    :func:`load_recipe`."""
    document = _read(_find(name_or_path, recipes))
    if document.keys() - {"judge", "vars"}:
        return load_recipe(name_or_path, recipes, overrides)
    for position, override in enumerate(overrides):
        _apply(override, document, earlier=overrides[:position])
    variables = _variables(document)
    document.pop("vars", None)
    return validate(JudgeFile, _fill(document, variables, ""), name_or_path)


def check_calls(config: BaseModel) -> None:
    """Refuse a function that is not there, before anything starts. Does not import the function's own file.

    Raises:
        ConfigError: with the key of the call.
    """
    for key, call in _parts(config, Call):
        try:
            source_file(call)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None


def check_endpoints(config: RunConfig | DataConfig) -> None:
    """Refuse an endpoint that could not be asked, before others have been paid or anything was trained.

    Raises:
        ConfigError: one needs a key and there is none, or the run has a budget and one no prices; with its place.
    """
    for key, endpoint in _parts(config, Endpoint):
        if config.limits.budget is not None and endpoint.price_in is None:
            raise ConfigError(
                f"{key}: {endpoint.model!r} has no prices, which limits.budget {config.limits.budget:g} needs; set"
                " price_in and price_out (0 where it costs nothing)"
            )
        try:
            secret(endpoint)
        except JudgeError as error:
            raise ConfigError(f"{key}: {error}") from None


def _parts(value: Any, kind: type[Part], key: str = "") -> Iterator[tuple[str, Part]]:
    """Every ``kind`` in a config, with its place."""
    if isinstance(value, kind):
        yield key, value
    elif isinstance(value, BaseModel):
        yield from _parts(dict(value), kind, key)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _parts(part, kind, join(key, name))
    elif isinstance(value, tuple):
        for index, part in enumerate(value):
            yield from _parts(part, kind, join(key, index))


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
            f"there is no recipe {name_or_path!r}{choices(name_or_path, known)}, or a path to a .toml file"
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
            inner = join("", *parents[: depth + 1])
            raise ConfigError(
                f"--set {override!r}: {inner} is {show(table)}, not a table; allowed: --set {inner}=… as a whole"
            )
    if _changes_kind(path, table, value):
        for other in earlier:
            if _parse(other)[0][: len(parents)] == parents and _parse(other)[0] != path:
                raise ConfigError(
                    f"--set {override!r}: a new type starts {join('', *parents)} afresh; give it before {other!r}"
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
        raise ConfigError(f"vars: {show(variables)} is not allowed; allowed: a table of names and values")
    return dict(variables)


def _fill(value: Any, variables: Mapping[str, Any], key: str) -> Any:
    if isinstance(value, dict):
        return {name: _fill(part, variables, join(key, name)) for name, part in value.items()}
    if isinstance(value, list):
        return [_fill(part, variables, join(key, index)) for index, part in enumerate(value)]
    if not isinstance(value, str):
        return value
    if whole := VARIABLE.fullmatch(value):
        return _variable(whole[1], variables, key)
    return VARIABLE.sub(lambda match: _text(_variable(match[1], variables, key)), value)


def _variable(name: str, variables: Mapping[str, Any], key: str) -> Any:
    if name not in variables:
        raise ConfigError(f"{key}: there is no variable {name!r}{choices(name, variables)}")
    if variables[name] == "":
        raise ConfigError(f"{key}: the variable {name!r} is empty; give it with --set vars.{name}=…")
    return variables[name]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
