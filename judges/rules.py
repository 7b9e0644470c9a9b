"""The smallest real judge: named rules, each worth a score where it fires."""

import re
from collections.abc import Sequence

from pipeline import config as knobs
from pipeline.types import Group, Judgment


class RulesJudge:
    """Scores a candidate with the sum of the scores of the rules that fire on it; 0 where none does. Never abstains.

    Each judgment's votes hold, a candidate, the names of the rules that fired.
    """

    def __init__(self, config: knobs.RulesJudge, name: str) -> None:
        self.name = name
        self.rules = config.rules

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        return [self._judge_group(group) for group in groups]

    def _judge_group(self, group: Group) -> Judgment:
        fired = [
            [name for name, rule in self.rules.items() if fires(rule, group.prompt.text, candidate.text)]
            for candidate in group.candidates
        ]
        scores = tuple(float(sum(self.rules[name].score for name in names)) for names in fired)
        return Judgment(group.prompt.id, self.name, scores, tuple({"fired": names} for names in fired))


def fires(rule: knobs.Rule, prompt: str, completion: str) -> bool:
    """Whether ``rule`` fires on ``completion`` (white space around it aside)."""
    match rule:
        case knobs.RegexRule():
            applies = (rule.when is None or re.search(rule.when, prompt) is not None) and (
                rule.unless is None or re.search(rule.unless, prompt) is None
            )
            return applies and re.fullmatch(rule.pattern, completion.strip()) is not None
        case knobs.LengthRule():
            words = len(completion.split())
            return rule.minimum <= words and (rule.maximum is None or words <= rule.maximum)
