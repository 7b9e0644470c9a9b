"""Rules: what can be checked without a model."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from pipeline.config.base import Pattern, Strict
from pipeline.config.judge.constraints import CONSTRAINTS, check_arguments


class _Rule(Strict):
    when: Pattern | None = None
    """Only for prompts this pattern is found in."""
    unless: Pattern | None = None
    """Not for prompts this pattern is found in."""
    score: float = 1.0
    """Given where the rule fires."""


class RegexRule(_Rule):
    """Fires where the whole completion matches ``pattern`` (surrounding white space aside)."""

    type: Literal["regex"]
    pattern: Pattern


class LengthRule(_Rule):
    """Fires where the completion has ``minimum`` to ``maximum`` words."""

    type: Literal["length"]
    minimum: int = Field(0, ge=0)
    maximum: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _some_length_is_allowed(self) -> Self:
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum: {self.maximum} is not allowed; allowed: at least minimum, {self.minimum}")
        return self


class FinalAnswerRule(_Rule):
    """Fires where the completion's final answer equals the prompt's reference answer, as GSM8K is scored.

    The last match of ``pattern`` is the answer, its first group where it has one; numbers are compared as numbers.
    The reference may be the bare answer or a worked solution. On a prompt without one the judge abstains.
    """

    type: Literal["final_answer"]
    pattern: Pattern | None = None
    """None: what follows ``####``, else ``\\boxed{…}``, else "the answer is …", else the last number."""
    tolerance: float = Field(1e-6, ge=0.0)
    """Relative, of numbers."""


class JsonSchemaRule(_Rule):
    """Fires where the completion is one JSON document that ``schema`` accepts (a Markdown fence around it aside).

    NaN, infinite numbers and repeated keys are no JSON. The dialect is the one ``$schema`` names, else 2020-12;
    ``format`` is not checked; a ``$ref`` never leaves the schema.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    file: str | None = None
    """A file with the schema, in place of ``schema``: read once, so that what is kept of the recipe is its content."""

    @model_validator(mode="before")
    @classmethod
    def _file_becomes_schema(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("file"), str):
            return value
        if value.get("schema") is not None:
            raise ValueError("schema and file exclude each other; give one")
        return {key: part for key, part in value.items() if key != "file"} | {"schema": _read(value["file"])}

    @model_validator(mode="after")
    def _is_a_schema(self) -> Self:
        if self.schema_ is None:
            raise ValueError("schema: is missing; allowed: a table with a JSON schema, or file, the path of one")
        check_schema(self.schema_)
        return self


class ConstraintRule(_Rule):
    """Fires where the completion keeps one checkable instruction, named and defined as in IFEval (2311.07911)."""

    type: Literal["constraint"]
    id: str
    """As in IFEval, e.g. ``punctuation:no_comma``."""
    args: dict[str, Any] = {}
    """Its keyword arguments, e.g. ``{ num_words = 300, relation = "at least" }``."""

    @field_validator("id")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in CONSTRAINTS:
            raise ValueError(f"is not allowed; allowed: {', '.join(CONSTRAINTS)}")
        return value

    @model_validator(mode="after")
    def _takes_its_arguments(self) -> Self:
        check_arguments(self.id, self.args)
        return self


Rule = Annotated[
    RegexRule | LengthRule | FinalAnswerRule | JsonSchemaRule | ConstraintRule, Field(discriminator="type")
]


class RulesJudge(Strict):
    """Score = sum of the scores of the rules that fire. A rule that cannot tell makes its candidate an abstention."""

    type: Literal["rules"]
    rules: dict[str, Rule] = Field(min_length=1)
    """Named rules; the names appear in each judgment's votes."""


def _read(file: str) -> Any:
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"file: {file!r} cannot be read: {error.strerror}; allowed: a JSON schema's file") from None
    except ValueError as error:
        raise ValueError(f"file: {file!r} is not JSON: {error}") from None


def check_schema(schema: dict[str, Any]) -> None:
    """Raises ValueError where ``schema`` is no JSON schema, or refers to what is not in it."""
    # Only a recipe with such a rule pays for the import.
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    dialect = validator_for(schema, default=Draft202012Validator)
    try:
        dialect.check_schema(schema)
    except SchemaError as error:
        where = ".".join(["schema", *map(str, error.absolute_path)])
        raise ValueError(f"{where}: is not a JSON schema: {error.message}") from None
    root = DRAFT202012.create_resource(schema)
    waiting = [(root, REGISTRY.resolver_with_root(root))]
    while waiting:
        resource, resolver = waiting.pop()
        for keyword in ("$ref", "$dynamicRef"):
            reference = resource.contents.get(keyword) if isinstance(resource.contents, dict) else None
            if reference is not None:
                try:
                    resolver.lookup(reference)
                except Unresolvable:
                    raise ValueError(f"schema: {keyword} {reference!r} names nothing in the schema") from None
        waiting += [(part, resolver.in_subresource(part)) for part in resource.subresources()]
