"""Rules: what can be checked without a model."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.base import Pattern, Strict


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


class FinalAnswerRule(_Rule):
    """Fires where the completion's final answer equals the prompt's reference answer, as GSM8K is scored.

    The last match of ``pattern`` is the answer, its first group where it has one; numbers are compared as numbers.
    Abstains on a prompt without a reference answer.
    """

    type: Literal["final_answer"]
    pattern: Pattern | None = None
    """None: what follows ``####``, else ``\\boxed{…}``, else "the answer is …", else the last number."""
    tolerance: float = Field(1e-6, ge=0.0)
    """Relative, of numbers."""


class JsonSchemaRule(_Rule):
    """Fires where the completion is one JSON document that ``schema`` accepts (a Markdown fence around it aside)."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    file: str | None = None
    """A file with the schema, in place of ``schema``."""


class ConstraintRule(_Rule):
    """Fires where the completion keeps one checkable instruction, named and defined as in IFEval (2311.07911)."""

    type: Literal["constraint"]
    id: str
    """As in IFEval, e.g. ``punctuation:no_comma``."""
    args: dict[str, Any] = {}
    """Its keyword arguments, e.g. ``{ num_words = 300, relation = "at least" }``."""


Rule = Annotated[
    RegexRule | LengthRule | FinalAnswerRule | JsonSchemaRule | ConstraintRule, Field(discriminator="type")
]


class RulesJudge(Strict):
    """Score = sum of the scores of the rules that fire."""

    type: Literal["rules"]
    rules: dict[str, Rule] = Field(min_length=1)
    """Named rules; the names appear in each judgment's votes."""
