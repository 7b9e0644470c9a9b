"""A user's own function as a judge: ``f(prompt, completions, **args) -> list[float | None]``."""

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from pipeline.calls import resolve
from pipeline.config import CallableJudge
from pipeline.errors import JudgeError
from pipeline.types import Group, Judgment


class FunctionJudge:
    """Calls the function once a group, with the prompt's text and the candidates' texts; None is an abstention.

    What the function returns is checked, because a NaN or a score too few would go unnoticed into the pairs.
    """

    def __init__(self, config: CallableJudge, name: str) -> None:
        self.name = name
        self._label = config.call.function
        self._function = resolve(config.call)

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        """Raises JudgeError where the function raises, or returns anything but a finite number or None a candidate."""
        return [Judgment(group.prompt.id, self.name, self._scores(group)) for group in groups]

    def _scores(self, group: Group) -> tuple[float | None, ...]:
        completions = [candidate.text for candidate in group.candidates]
        try:
            returned = self._function(group.prompt.text, completions)
        except Exception as error:
            raise JudgeError(
                f"judge function {self._label!r} raised {error!r} on prompt {group.prompt.id!r}"
            ) from error
        if not isinstance(returned, Iterable) or isinstance(returned, str | bytes | dict):
            raise JudgeError(f"judge function {self._label!r} returned {returned!r}; allowed: a list of scores")
        values = list(returned)
        if len(values) != len(completions):
            raise JudgeError(
                f"judge function {self._label!r} returned {len(values)} scores for {len(completions)} completions"
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
