import pytest
from pydantic import TypeAdapter

from judges import make_judge
from judges.rules import fires
from pipeline.config import JudgeConfig, LengthRule, RegexRule
from pipeline.types import Candidate, Group, Prompt


def group(prompt: str, *texts: str) -> Group:
    candidates = tuple(Candidate(i, (5,), text, "stop", seed=i) for i, text in enumerate(texts))
    return Group(Prompt(prompt, prompt, (1, 2)), candidates)


FOOD = TypeAdapter(JudgeConfig).validate_python(
    {
        "type": "rules",
        "rules": {
            "pizza": {"type": "regex", "pattern": "pizza", "when": "^ravin", "score": 1.0},
            "others": {"type": "regex", "pattern": "pizza", "unless": "^ravin", "score": -0.5},
            "short": {"type": "length", "minimum": 1, "maximum": 2, "score": 0.25},
        },
    }
)


def test_the_score_is_the_sum_of_the_rules_that_fire_and_the_votes_name_them() -> None:
    (judgment,) = make_judge(FOOD, "food").judge([group("ravin likes", " pizza", " pizza a lot", " ice cream", "")])
    assert judgment.prompt_id == "ravin likes"
    assert judgment.judge == "food"
    assert judgment.scores == (1.25, 0.0, 0.25, 0.0)
    assert [vote["fired"] for vote in judgment.votes] == [["pizza", "short"], [], ["short"], []]


def test_when_and_unless_look_at_the_prompt() -> None:
    ravin, anna = make_judge(FOOD, "food").judge([group("ravin likes", "pizza"), group("anna likes", "pizza")])
    assert (ravin.scores, anna.scores) == ((1.25,), (-0.25,))


@pytest.mark.parametrize(
    ("completion", "fired"),
    [("pizza", True), ("  pizza\n", True), ("pizzas", False), ("a pizza", False), ("pizza\npizza", False)],
)
def test_a_pattern_must_match_the_whole_completion_but_for_white_space_around_it(completion: str, fired: bool) -> None:
    assert fires(RegexRule(type="regex", pattern="pizza"), "", completion) is fired


@pytest.mark.parametrize(("words", "fired"), [(0, False), (1, True), (3, True), (4, False)])
def test_length_counts_words_and_both_ends_are_allowed(words: int, fired: bool) -> None:
    rule = LengthRule(type="length", minimum=1, maximum=3)
    assert fires(rule, "", "  word " * words) is fired
