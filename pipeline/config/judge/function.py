"""A user's own function as a judge."""

from typing import Literal

from pipeline.config.base import Call, Strict


class CallableJudge(Strict):
    """A function ``f(prompt: str, completions: list[str], **args) -> list[float | None]``, called once a prompt.

    It returns a finite score a completion, in their order; higher is better, True is 1, None abstains. Where it has a
    parameter ``answer`` or ``messages``, it is given the prompt's reference answer (or None) or conversation (a list of
    ``{"role", "content"}``) by name. It should depend on nothing but these and its own file, whose content names the
    judgments. An exception, a NaN or a wrong number of scores stops the run; what cannot be judged is None.
    """

    type: Literal["callable"]
    call: Call
