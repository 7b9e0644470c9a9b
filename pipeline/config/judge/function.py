"""A user's own function as a judge."""

from typing import Literal

from pipeline.config.base import Call, Strict


class CallableJudge(Strict):
    """A function ``f(prompt: str, completions: list[str], **args) -> list[float | None]``; None abstains."""

    type: Literal["callable"]
    call: Call
