"""Language models as judges, over any OpenAI-compatible endpoint."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Strict
from pipeline.config.endpoint import Endpoint


class JudgeEndpoint(Endpoint):
    """A language model that judges: a call given up is an abstention."""

    structured: Literal["json_schema", "choice", "none"] = "json_schema"
    """How the verdict's form is asked for: ``response_format`` (OpenAI, vLLM), vLLM's ``structured_outputs`` choices
    (no reasoning, soft labels), or by the prompt alone."""
    logprobs: bool = False
    """Ask for the verdict tokens' log-probabilities: the score becomes an expected value."""


class _LlmJudge(Strict):
    endpoints: tuple[JudgeEndpoint, ...] = Field(min_length=1)
    """One judge model, or several: a jury, whose scores are the mean of those that did not abstain."""
    quorum: int = Field(1, ge=1)
    """Fewest models of a jury that must have given a verdict; else it abstains."""
    rubric: str = ""
    """What is good, in words; goes into the template. Empty: helpfulness, correctness and clarity."""
    template: str | None = None
    """A Jinja file with the judge's prompt, in place of one of ``judges/llm/templates``, or extending it."""
    reasoning: bool = True
    """Ask for reasons before the verdict. With ``structured = "choice"`` there are none."""
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    samples: int = Field(1, ge=1)
    """Times each model is asked the same; the mean counts."""
    max_tokens: int = Field(1024, ge=1)
    """Of a reply."""
    seed: int | None = 0
    """Sent with each call; the sample's number is added. None sends none."""

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> Self:
        if self.quorum > len(self.endpoints):
            raise ValueError(f"quorum: {self.quorum} of {len(self.endpoints)} endpoints; allowed: up to their number")
        if self.samples > 1 and self.temperature == 0.0:
            raise ValueError(f"samples: {self.samples} at temperature 0 are one; allowed: 1, or a temperature above 0")
        return self


class PointwiseJudge(_LlmJudge):
    """Rates each candidate alone on a scale. The score is the expected value over the labels' log-probabilities where
    the endpoint gives them, else the label itself."""

    type: Literal["pointwise"]
    lowest: int = Field(1, ge=0, le=99)
    highest: int = Field(9, ge=1, le=100)
    """Above 9 there is an expected value only where the model's tokenizer writes each label as one token."""

    @model_validator(mode="after")
    def _scale_has_two_ends(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest: {self.lowest} with highest {self.highest}; allowed: less than highest")
        return self


class PairwiseJudge(_LlmJudge):
    """Compares two candidates at a time, in both orders, and takes the mean: a plain verdict that changes
    with the order is a tie, a probability is averaged."""

    type: Literal["pairwise"]
    schedule: Literal["all_pairs", "knockout"] = "all_pairs"
    """``all_pairs``: n (n − 1) / 2 comparisons and Bradley-Terry strengths; ``knockout``: best and worst by two
    knockouts in about 3 n / 2 comparisons, scores 1 and −1, 0 between."""
    ties: bool = True
    """Whether the judge may call a tie."""


LlmJudge = Annotated[PointwiseJudge | PairwiseJudge, Field(discriminator="type")]
