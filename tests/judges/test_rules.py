import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from judges import make_judge
from pipeline.config import JsonSchemaRule, JudgeConfig, RulesJudge
from pipeline.errors import ConfigError
from pipeline.types import Candidate, Group, Judgment, Prompt
from pipeline.validation import validate


def group(prompt: str, *texts: str, answer: str | None = None) -> Group:
    candidates = tuple(Candidate(i, (5,), text, "stop", seed=i) for i, text in enumerate(texts))
    return Group(Prompt(prompt, prompt, (1, 2), answer=answer), candidates)


def judged(rules: dict[str, Any], of: Group) -> Judgment:
    config = TypeAdapter(JudgeConfig).validate_python({"type": "rules", "rules": rules})
    (judgment,) = make_judge(config, "rules").judge([of])
    return judgment


def fired(rule: dict[str, Any], *completions: str) -> list[bool]:
    return [score == 1.0 for score in judged({"one": rule}, group("a prompt", *completions)).scores]


FOOD = {
    "pizza": {"type": "regex", "pattern": "pizza", "when": "^ravin", "score": 1.0},
    "others": {"type": "regex", "pattern": "pizza", "unless": "^ravin", "score": -0.5},
    "short": {"type": "length", "minimum": 1, "maximum": 2, "score": 0.25},
}


def test_the_score_is_the_sum_of_the_rules_that_fire_and_the_votes_name_them() -> None:
    judgment = judged(FOOD, group("ravin likes", " pizza", " pizza a lot", " ice cream", ""))
    assert judgment.prompt_id == "ravin likes"
    assert judgment.judge == "rules"
    assert judgment.scores == (1.25, 0.0, 0.25, 0.0)
    assert [vote["fired"] for vote in judgment.votes] == [["pizza", "short"], [], ["short"], []]


def test_when_and_unless_look_at_the_prompt_whatever_the_rule() -> None:
    assert judged(FOOD, group("ravin likes", "pizza")).scores == (1.25,)
    assert judged(FOOD, group("anna likes", "pizza")).scores == (-0.25,)
    brief = {"brief": {"type": "length", "maximum": 1, "when": "in a word"}}
    assert judged(brief, group("Say it in a word.", "yes")).scores == (1.0,)
    assert judged(brief, group("Say it.", "yes")).scores == (0.0,)


@pytest.mark.parametrize(
    ("completion", "fires"),
    [("pizza", True), ("  pizza\n", True), ("pizzas", False), ("a pizza", False), ("pizza\npizza", False)],
)
def test_a_pattern_must_match_the_whole_completion_but_for_white_space_around_it(completion: str, fires: bool) -> None:
    assert fired({"type": "regex", "pattern": "pizza"}, completion) == [fires]


def test_length_counts_words_and_both_ends_are_allowed() -> None:
    completions = ["  word " * words for words in (0, 1, 3, 4)]
    assert fired({"type": "length", "minimum": 1, "maximum": 3}, *completions) == [False, True, True, False]


# ---------------------------------------------------------------------------------------------- final answer
def test_a_final_answer_is_compared_with_the_reference_be_it_bare_or_worked_out() -> None:
    for answer in ("1,800", "He has 9 * 200.\n#### 1,800", "9 * 200 are\n1800"):
        of = group("How many?", "#### 1800", "#### 18", "That makes $1,800.00.", answer=answer)
        assert judged({"right": {"type": "final_answer"}}, of).scores == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("answer", [None, "", "no number\nin any line"])
def test_a_group_without_a_reference_answer_is_an_abstention_with_its_reason_never_a_low_score(
    answer: str | None,
) -> None:
    rules = {"short": {"type": "length", "maximum": 9}, "right": {"type": "final_answer"}}
    judgment = judged(rules, group("How many?", "#### 1800", "", answer=answer))
    assert judgment.scores == (None, None)
    assert list(judgment.votes) == [{"abstained": "no_reference_answer", "rule": "right"}] * 2


def test_a_prompt_the_rule_is_not_meant_for_needs_no_reference_answer() -> None:
    rule = {"type": "final_answer", "when": "^How many"}
    assert judged({"right": rule}, group("Write a poem.", "Roses")).scores == (0.0,)


# ---------------------------------------------------------------------------------------------- JSON
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}
ACCEPTED = [
    '{"name": "Ann"}',
    ' {"name": "Ann", "age": 3}\n',
    '```json\n{"name": "Ann"}\n```',
    '```\n{"name": "Ann"}```',
]
REFUSED = [
    "",
    "Ann",
    "{}",
    '{"name": "Ann", "age": -1}',
    '{"name": "Ann", "age": "3"}',
    '{"name": "Ann", "age": NaN}',
    '{"name": "Ann", "age": Infinity}',
    '{"name": "Ann", "name": "Bob"}',
    '{"name": "Ann"} {"name": "Bob"}',
    'Here you are: {"name": "Ann"}',
    "{'name': 'Ann'}",
    '{"name": "Ann",}',
    '```json\n{"name": "Ann"}\n``` as asked',
    "```",
]


def test_a_document_the_schema_accepts_fires_and_nothing_else_does() -> None:
    rule = {"type": "json_schema", "schema": PERSON}
    assert fired(rule, *ACCEPTED) == [True] * len(ACCEPTED)
    assert fired(rule, *REFUSED) == [False] * len(REFUSED)


@pytest.mark.parametrize("document", ["NaN", "-Infinity", "1e999", '[{"a": 1, "a": 1}]', "1" * 5000])
def test_what_one_parser_forgives_another_refuses_so_it_is_no_json_even_where_anything_goes(document: str) -> None:
    assert fired({"type": "json_schema", "schema": {}}, document, "1e3") == [False, True]


def test_a_document_nested_too_deeply_is_an_abstention() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    judgment = judged({"any": {"type": "json_schema", "schema": {}}}, group("a prompt", deep, "[]"))
    assert judgment.scores == (None, 1.0)
    assert judgment.votes[0] == {"abstained": "nested_too_deeply", "rule": "any"}


def test_a_schema_from_a_file_is_kept_as_its_content_so_that_a_changed_file_is_another_judge(tmp_path: Path) -> None:
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))
    rule = JsonSchemaRule.model_validate({"type": "json_schema", "file": str(file)})
    assert (rule.schema_, rule.file) == (PERSON, None)
    file.unlink()
    assert JsonSchemaRule.model_validate_json(rule.model_dump_json()) == rule


# ---------------------------------------------------------------------------------------------- wrong rules
@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ({"type": "regex", "pattern": "("}, r"rules.one.pattern: \"\(\" is not a regular expression"),
        ({"type": "length", "minimum": 3, "maximum": 2}, r"maximum: 2 is not allowed; allowed: at least minimum, 3"),
        ({"type": "final_answer", "tolerance": -1.0}, r"rules.one.tolerance: -1.0 is not allowed"),
        ({"type": "json_schema"}, r"rules.one: schema: is missing; allowed: .* or file"),
        ({"type": "json_schema", "schema": {"type": "text"}}, r"schema.type: is not a JSON schema: 'text'"),
        ({"type": "json_schema", "schema": {"$ref": "#/$defs/a"}}, r"\$ref '#/\$defs/a' names nothing in the schema"),
        ({"type": "json_schema", "schema": {"$ref": "http://localhost/a"}}, r"'http://localhost/a' names nothing"),
        ({"type": "json_schema", "file": "none.json"}, r"file: 'none.json' cannot be read"),
        ({"type": "json_schema", "schema": {}, "file": "none.json"}, r"schema and file exclude each other"),
        (
            {"type": "constraint", "id": "no_comma"},
            r"rules.one.id: \"no_comma\" is not allowed; .*punctuation:no_comma",
        ),
        (
            {"type": "constraint", "id": "startend:end_checker", "args": {"end": "x"}},
            r"rules.one: args: 'startend:end_checker' takes no 'end'; allowed: end_phrase",
        ),
        (
            {"type": "constraint", "id": "length_constraints:number_words", "args": {"num_words": 2, "relation": "<"}},
            r"rules.one: args.relation: '<' is not allowed; allowed: 'at least', 'less than'",
        ),
    ],
)
def test_a_wrong_rule_is_refused_when_the_recipe_is_read_with_its_key_and_what_is_allowed(
    rule: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as refused:
        validate(RulesJudge, {"type": "rules", "rules": {"one": rule}}, "recipe")
    assert "\n" not in str(refused.value)


def test_a_constraint_fires_where_it_is_kept() -> None:
    rule = {
        "type": "constraint",
        "id": "length_constraints:number_words",
        "args": {"num_words": 2, "relation": "less than"},
    }
    assert fired(rule, "one", "one two", "") == [True, False, False]
