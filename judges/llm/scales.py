"""The labels a verdict may be, how a model is asked for one, and what each is worth."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, assert_never

Structured = Literal["json_schema", "choice", "none"]
TOP_LOGPROBS = 20
"""Alternatives asked for at each token: the most that OpenAI and a default vLLM server give."""
CHOICE_TOKENS = 16
"""Limit of a reply that is a label alone."""


@dataclass(frozen=True, slots=True)
class Scale:
    key: Literal["score", "verdict"]
    """Name of the label in JSON. A score is written as a whole number, a verdict as a string."""
    values: Mapping[str, float]
    """Worth of each label, by the label as it is written."""
    meaning: str
    """The labels explained, as the end of a sentence."""

    @classmethod
    def rating(cls, lowest: int, highest: int) -> Self:
        """Whole numbers; each is worth itself."""
        values = {str(number): float(number) for number in range(lowest, highest + 1)}
        return cls("score", values, f"a whole number from {lowest} (worst) to {highest} (best)")

    @classmethod
    def comparison(cls, ties: bool) -> Self:
        """A, B and, with ``ties``, C; worth the probability that the response shown first is the better one."""
        meaning = '"A" if response A is better, "B" if response B is better'
        if not ties:
            return cls("verdict", {"A": 1.0, "B": 0.0}, meaning)
        return cls("verdict", {"A": 1.0, "B": 0.0, "C": 0.5}, f'{meaning}, "C" if they are equally good')

    @property
    def labels(self) -> list[Any]:
        """As they stand in JSON."""
        return [int(label) for label in self.values] if self.key == "score" else list(self.values)


def form(scale: Scale, structured: Structured, reasoning: bool) -> str:
    """The sentences that tell a judge how to write its verdict; reasons come first, so that they can matter."""
    match structured:
        case "choice":
            return f"Answer with the {scale.key} alone, {scale.meaning}."
        case "json_schema":
            reasons = '"reasoning": "<your reasons in a few sentences>", ' if reasoning else ""
            return (
                f'Answer with one JSON object and nothing else: {{{reasons}"{scale.key}": <{scale.key}>}}'
                f" where <{scale.key}> is {scale.meaning}."
            )
        case "none":
            before = "First give your reasons in a few sentences. Then write" if reasoning else "Write only"
            example = next(iter(scale.values))
            return (
                f"{before} the {scale.key} in double square brackets, as in [[{example}]], and nothing after it:"
                f" {scale.meaning}."
            )
        case _:
            assert_never(structured)


def body(scale: Scale, structured: Structured, reasoning: bool, logprobs: bool) -> dict[str, Any]:
    """The fields of a request that ask for the form and, where wanted, for log-probabilities.

    With ``choice`` they are always asked for: vLLM renormalises them over the labels, which makes them soft labels.
    """
    fields: dict[str, Any] = {}
    if structured == "json_schema":
        described = {"name": scale.key, "strict": True, "schema": schema(scale, reasoning)}
        fields["response_format"] = {"type": "json_schema", "json_schema": described}
    elif structured == "choice":
        fields["structured_outputs"] = {"choice": list(scale.values)}
    if logprobs or structured == "choice":
        fields |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return fields


def schema(scale: Scale, reasoning: bool) -> dict[str, Any]:
    """JSON schema of a reply. Properties in the order they are to be written in: reasons before the verdict."""
    kind = "integer" if scale.key == "score" else "string"
    reasons = {"reasoning": {"type": "string"}} if reasoning else {}
    properties = reasons | {scale.key: {"type": kind, "enum": scale.labels}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def written(scale: Scale, label: str, structured: Structured, reasons: str | None = None) -> str:
    """A reply that gives ``label`` in the form asked for: what a perfect judge would send."""
    match structured:
        case "choice":
            return label
        case "json_schema":
            value = int(label) if scale.key == "score" else label
            return json.dumps(({} if reasons is None else {"reasoning": reasons}) | {scale.key: value})
        case "none":
            return f"{reasons or ''}\n[[{label}]]".lstrip()
        case _:
            assert_never(structured)
