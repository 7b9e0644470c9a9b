"""Who scores the candidates."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Call, Pattern, Precision, Strict


class RegexRule(Strict):
    """Fires where the whole completion matches ``pattern`` (surrounding white space aside)."""

    type: Literal["regex"]
    pattern: Pattern
    when: Pattern | None = None
    """Only for prompts this pattern is found in."""
    unless: Pattern | None = None
    """Not for prompts this pattern is found in."""
    score: float = 1.0


class LengthRule(Strict):
    """Fires where the completion has ``minimum`` to ``maximum`` words."""

    type: Literal["length"]
    minimum: int = Field(0, ge=0)
    maximum: int | None = Field(None, ge=0)
    score: float = 1.0


Rule = Annotated[RegexRule | LengthRule, Field(discriminator="type")]


class RulesJudge(Strict):
    """Score = sum of the scores of the rules that fire."""

    type: Literal["rules"]
    rules: dict[str, Rule] = Field(min_length=1)
    """Named rules; the names appear in each judgment's votes."""


class CallableJudge(Strict):
    """A function ``f(prompt: str, completions: list[str], **args) -> list[float | None]``; None abstains."""

    type: Literal["callable"]
    call: Call


class RewardModelJudge(Strict):
    """A sequence classifier with one logit: its raw logit is the score."""

    type: Literal["reward_model"]
    path: str
    """Hub name or directory."""
    revision: str | None = None
    dtype: Precision = "auto"
    max_tokens: int = Field(4096, ge=16)
    """Conversations longer than this abstain."""
    token_budget: int = Field(16384, ge=16)
    """Tokens a forward pass, padding included."""


JudgeConfig = Annotated[RulesJudge | CallableJudge | RewardModelJudge, Field(discriminator="type")]
