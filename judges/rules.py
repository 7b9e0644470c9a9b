"""The smallest real judge: named rules, each worth a score where it fires."""

import re
from collections.abc import Callable, Sequence
from typing import Any, assert_never

from judges.checks.answers import is_correct, reference_answer
from judges.checks.constraints import checker
from judges.checks.documents import parse_json
from pipeline import config as knobs
from pipeline.types import Candidate, Group, Judgment, Prompt

Check = Callable[[Prompt, str], bool]
"""Whether a rule fires on a completion of the prompt. Raises CannotTell where that cannot be known."""


class CannotTell(Exception):
    """A rule has nothing to judge by; the message is a short, countable reason."""


class RulesJudge:
    """Scores a candidate with the sum of the scores of the rules that fire on it; 0 where none does.

    Abstains where a rule cannot tell: on a whole group whose prompt has no reference answer to compare with, and on a
    candidate that is nested too deeply to check. Each judgment's votes hold, a candidate, ``fired``: the names of the
    rules that fired; or ``abstained``: the reason, and ``rule``: the name of the one that could not tell.
    """

    def __init__(self, config: knobs.RulesJudge, name: str) -> None:
        self.name = name
        self.rules = config.rules
        self._checks = {name: check_of(rule) for name, rule in config.rules.items()}

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        return [self._judge_group(group) for group in groups]

    def close(self) -> None:
        """Nothing is open."""

    def _judge_group(self, group: Group) -> Judgment:
        names = [name for name, rule in self.rules.items() if applies(rule, group.prompt.text)]
        judged = [self._judge_candidate(names, group.prompt, candidate) for candidate in group.candidates]
        return Judgment(
            group.prompt.id, self.name, tuple(score for score, _ in judged), tuple(vote for _, vote in judged)
        )

    def _judge_candidate(
        self, names: Sequence[str], prompt: Prompt, candidate: Candidate
    ) -> tuple[float | None, dict[str, Any]]:
        fired = []
        for name in names:
            try:
                if self._checks[name](prompt, candidate.text):
                    fired.append(name)
            except CannotTell as reason:
                return None, {"abstained": str(reason), "rule": name}
            except RecursionError:
                return None, {"abstained": "nested_too_deeply", "rule": name}
        return float(sum(self.rules[name].score for name in fired)), {"fired": fired}


def applies(rule: knobs.Rule, prompt: str) -> bool:
    """Whether ``rule`` is meant for ``prompt``."""
    return (rule.when is None or re.search(rule.when, prompt) is not None) and (
        rule.unless is None or re.search(rule.unless, prompt) is None
    )


def check_of(rule: knobs.Rule) -> Check:
    """What ``rule`` asks of a completion, white space around it aside, of a prompt that it applies to."""
    match rule:
        case knobs.RegexRule(pattern=pattern):
            compiled = re.compile(pattern)
            return lambda _, completion: compiled.fullmatch(completion.strip()) is not None
        case knobs.LengthRule(minimum=minimum, maximum=maximum):
            most = float("inf") if maximum is None else maximum
            return lambda _, completion: minimum <= len(completion.split()) <= most
        case knobs.FinalAnswerRule():
            return lambda prompt, completion: _answers(rule, prompt, completion)
        case knobs.JsonSchemaRule(schema_=schema):
            assert schema is not None, "the config reads a file into its schema"
            return _accepted_by(schema)
        case knobs.ConstraintRule(id=constraint, args=args):
            keeps = checker(constraint, args)
            return lambda _, completion: keeps(completion)
        case _:
            assert_never(rule)


def _answers(rule: knobs.FinalAnswerRule, prompt: Prompt, completion: str) -> bool:
    reference = reference_answer(prompt.answer)
    if reference is None:
        raise CannotTell("no_reference_answer")
    return is_correct(completion, reference, rule.pattern, rule.tolerance)


def _accepted_by(schema: dict[str, Any]) -> Check:
    from jsonschema.validators import Draft202012Validator, validator_for
    from jsonschema_specifications import REGISTRY

    # A registry of its own, so that no reference is ever looked up on the network.
    validator = validator_for(schema, default=Draft202012Validator)(schema, registry=REGISTRY)

    def accepted(_: Prompt, completion: str) -> bool:
        try:
            return bool(validator.is_valid(parse_json(completion)))
        except ValueError:
            return False

    return accepted
