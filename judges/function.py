"""A user's own function as a judge: ``f(prompt, completions, **args) -> list[float | None]``."""

import inspect
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from pipeline.config import CallableJudge
from pipeline.errors import ConfigError, JudgeError
from pipeline.functions import resolve
from pipeline.types import Group, Judgment, Prompt

OFFERED = ("answer", "messages")
"""What of the prompt a function may have besides its text, by naming a parameter so."""


class FunctionJudge:
    """Calls the function once a group, with the prompt's text and the candidates' texts; None is an abstention.

    A function with a parameter ``answer`` also gets the prompt's reference answer (None where it has none), one with a
    parameter ``messages`` the conversation (a list of ``{"role", "content"}``, empty for a plain prompt), both by name,
    unless the recipe's ``args`` give a value of that name.

    What the function returns is checked, because a NaN or a score too few would go unnoticed into the pairs.
    """

    def __init__(self, config: CallableJudge, name: str) -> None:
        """Raises ConfigError where the function cannot be found, or cannot be called so."""
        self.name = name
        self._label = config.call.function
        self._function = resolve(config.call)
        self._wanted = self._asked_for(config.call.args.keys())

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        """Raises JudgeError where the function raises, or returns anything but a finite number or None a candidate."""
        return [Judgment(group.prompt.id, self.name, self._scores(group)) for group in groups]

    def close(self) -> None:
        """Nothing is open."""

    def _asked_for(self, given: Iterable[str]) -> list[str]:
        try:
            signature = inspect.signature(self._function)
            named = [name for name in OFFERED if name not in given and _takes(signature, name)]
            signature.bind("", [], **dict.fromkeys(named))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"judge function {self._label!r} cannot be called with (prompt, completions) and its args:"
                f" {error.__cause__ or error}"
            ) from None
        return named

    def _scores(self, group: Group) -> tuple[float | None, ...]:
        completions = [candidate.text for candidate in group.candidates]
        wanted = {name: _offer(group.prompt, name) for name in self._wanted}
        try:
            returned = self._function(group.prompt.text, completions, **wanted)
        except Exception as error:
            raise JudgeError(
                f"judge function {self._label!r} raised {error!r} on prompt {group.prompt.id!r}"
            ) from error
        if not isinstance(returned, Iterable) or isinstance(returned, str | bytes | dict):
            raise JudgeError(f"judge function {self._label!r} returned {returned!r}; allowed: a list of scores")
        values = list(returned)
        if len(values) != len(group.candidates):
            raise JudgeError(
                f"judge function {self._label!r} returned {len(values)} scores for {len(group.candidates)} completions"
                f" of prompt {group.prompt.id!r}: {values!r}"
            )
        return tuple(self._checked(value) for value in values)

    def _checked(self, value: Any) -> float | None:
        if value is None:
            return None
        if not isinstance(value, Real) or not math.isfinite(value):
            raise JudgeError(
                f"judge function {self._label!r} returned the score {value!r}; allowed: a finite number, or None"
            )
        return float(value)


def _takes(signature: inspect.Signature, name: str) -> bool:
    parameter = signature.parameters.get(name)
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _offer(prompt: Prompt, name: str) -> Any:
    return prompt.answer if name == "answer" else [dict(message) for message in prompt.messages]
