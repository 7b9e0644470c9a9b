"""IFEval's 25 instructions: texts that keep and break each, and every instruction of its 541 prompts."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from judges.checks.constraints import CHECKS, checker
from judges.checks.sentences import count_sentences, language_of
from pipeline.config.judge.constraints import CONSTRAINTS, RELATIONS
from pipeline.errors import ConfigError

ENGLISH = "the weather in the mountains was clear, so we walked to the lake and had our lunch there"
CASES: dict[str, list[tuple[dict[str, Any], list[str], list[str]]]] = {
    # id: arguments, texts that keep it, texts that break it
    "keywords:existence": [({"keywords": ["mom", "C++"]}, ["Mom writes c++."], ["Mom writes C.", "C++"])],
    "keywords:frequency": [
        ({"keyword": "war", "frequency": 2, "relation": "at least"}, ["War and war"], ["War and peace"]),
        ({"keyword": "war", "frequency": 2, "relation": "less than"}, ["War", "peace"], ["war, war", "war war war"]),
    ],
    "keywords:forbidden_words": [({"forbidden_words": ["rock", "a.b"]}, ["a rocket", "aXb"], ["Rock!", "x a.b"])],
    "keywords:letter_frequency": [
        ({"letter": "q", "let_frequency": 2, "let_relation": "at least"}, ["Quite quick"], ["quick"]),
        ({"letter": "#", "let_frequency": 1, "let_relation": "less than"}, ["no hash"], ["#1"]),
    ],
    "language:response_language": [
        ({"language": "de"}, ["Das Wetter war schön und wir gingen lange spazieren."], [ENGLISH, "1 2 3", "…"]),
        ({"language": "hi"}, ["मौसम बहुत अच्छा था और हम झील तक गए।"], ["Mausam bahut achchha tha"]),
        ({"language": "zh"}, ["今天天气很好，我们一起去湖边散步。"], ["今日は天気がいいので、歩きました。"]),
    ],
    "length_constraints:number_sentences": [
        ({"num_sentences": 2, "relation": "at least"}, ["One. Two!", "One? Two. Three"], ["Mr. One has 2.5", "One"]),
        ({"num_sentences": 2, "relation": "less than"}, ["One, e.g. two."], ["One. Two."]),
    ],
    "length_constraints:number_paragraphs": [
        ({"num_paragraphs": 2}, ["a\n***\nb", "a *** b ***", "***\na\n\na***b"], ["a\n\nb", "a***b***c", "a******b"])
    ],
    "length_constraints:number_words": [
        ({"num_words": 3, "relation": "at least"}, ["one, two - three"], ["one - two"]),
        ({"num_words": 3, "relation": "less than"}, ["one two"], ["one two three"]),
    ],
    "length_constraints:nth_paragraph_first_word": [
        (
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Summary"},
            ["Text.\n\n\"summary\", it says.", "Text.\n\n\n\nSummary"],
            ["Summary.\n\nText.", "Text.\n\nSummary\n\nText.", "Text.\nSummary", "Text.\n\nSummaries"],
        )
    ],
    "detectable_content:number_placeholders": [
        ({"num_placeholders": 2}, ["[name] at [address]", "[a] [b] [c]"], ["[name]", "[name", "[na\nme] [x]"])
    ],
    "detectable_content:postscript": [
        ({"postscript_marker": "P.S."}, ["Bye.\nP.S. More", "p. s. more"], ["Bye.", "PS more", "P.S more"]),
        ({"postscript_marker": "P.P.S"}, ["Bye.\nP.P.S More", "p. p.s. more"], ["P.S. more"]),
        ({"postscript_marker": "NB:"}, ["nb: more"], ["NB more"]),
    ],
    "detectable_format:number_bullet_lists": [
        ({"num_bullets": 2}, ["* a\n* b", "text\n - a\n\n - b\n---\n**bold**"], ["* a", "* a\n* b\n- c", "+ a\n+ b"])
    ],
    "detectable_format:constrained_response": [
        ({}, ["My answer is no.", "Well: My answer is maybe."], ["no", "My answer is not known."])
    ],
    "detectable_format:number_highlighted_sections": [
        ({"num_highlights": 2}, ["*a* and **b**", "*a b*, *c*"], ["*a*", "** ** *a*", "*a\nb* *c*", "* a\n* b\n* c"])
    ],
    "detectable_format:multiple_sections": [
        ({"section_spliter": "Day", "num_sections": 2}, ["Day 1\nx\nDay 2", "Day1 Day2"], ["Day 1", "Day one, Day two"])
    ],
    "detectable_format:json_format": [
        ({}, ['{"a": [null]}', '```json\n{"a": 1}\n```', "```\n[]\n```"], ["{'a': 1}", "Here: {}", "[NaN]", "``` ```"])
    ],
    "detectable_format:title": [({}, ["<<Joy>>\ntext", "x << a >>"], ["<Joy>", "<<>>", "<< >>", "<<a\nb>>"])],
    "combination:two_responses": [
        ({}, ["a\n******\nb", "a******b******"], ["a", "a******a", "a******b******c", "a****b", "******a"])
    ],
    "combination:repeat_prompt": [
        ({"prompt_to_repeat": "Write a poem. "}, ["write a poem.\nA"], ["A. Write a poem.", "Write"])
    ],
    "startend:end_checker": [
        ({"end_phrase": "Peace!"}, ["Bye. peace! ", '"Bye. Peace!"'], ["Peace! Bye.", "Bye. Peace"])
    ],
    "startend:quotation": [({}, [' "all of it" ', '""'], ['"half" of it', "'all'", '"', "all"])],
    "change_case:capital_word_frequency": [
        (
            {"capital_frequency": 2, "capital_relation": "at least"},
            ["I saw NASA", "TOP-SECRET U.S.A. file"],
            ["I saw Nasa", "1 2 3", "I'm NASA's"],
        ),
        ({"capital_frequency": 1, "capital_relation": "less than"}, ["none here"], ["ONE here"]),
    ],
    "change_case:english_capital": [({}, [ENGLISH.upper()], [ENGLISH, "DAS WETTER WAR SCHÖN UND WIR GINGEN.", "123"])],
    "change_case:english_lowercase": [({}, [ENGLISH], [ENGLISH.title(), "das wetter war schön, wir gingen.", "123"])],
    "punctuation:no_comma": [({}, ["a b; c", "a，b"], ["a, b"])],
}  # fmt: skip
EACH = [pytest.param(name, *case, id=f"{name}-{i}") for name, cases in CASES.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize(("name", "args", "keep", "broken"), EACH)
def test_each_instruction_is_kept_and_broken(
    name: str, args: dict[str, Any], keep: list[str], broken: list[str]
) -> None:
    check = checker(name, args)
    assert [text for text in keep if not check(text)] == []
    assert [text for text in [*broken, "", " \n"] if check(text)] == []


def test_there_are_25_and_config_and_checks_agree_on_names_and_arguments() -> None:
    assert len(CHECKS) == 25
    assert CASES.keys() == CHECKS.keys() == CONSTRAINTS.keys()
    for name, check in CHECKS.items():
        _, *takes = inspect.signature(check).parameters
        assert set(takes) == CONSTRAINTS[name].keys()


def test_every_instruction_of_the_541_real_prompts_has_a_checker(shared_data: Path) -> None:
    rows = [
        json.loads(line) for line in (shared_data / "verifiable" / "ifeval_input_data.jsonl").read_text().splitlines()
    ]
    asked = [each for row in rows for each in zip(row["instruction_id_list"], row["kwargs"], strict=True)]
    for name, args in asked:
        assert checker(name, args)("A text.") in (True, False)
    assert (len(rows), len(asked)) == (541, 834)
    assert {name for name, _ in asked} == CHECKS.keys()


@pytest.mark.parametrize(
    ("name", "args", "complaint"),
    [
        ("punctuation:no_commas", {}, r"'punctuation:no_commas' is not known; allowed: keywords:existence, .*no_comma"),
        ("punctuation:no_comma", {"n": 1}, r"takes no 'n'; allowed: none"),
        ("detectable_format:number_bullet_lists", {}, r"args.num_bullets: is missing; allowed: a whole number ≥ 1"),
        ("detectable_format:number_bullet_lists", {"num_bullets": 0}, r"args.num_bullets: 0 .* whole number ≥ 1"),
        ("detectable_format:number_bullet_lists", {"num_bullets": True}, r"args.num_bullets: True is not allowed"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "over"}, r"'over' .* 'at least', 'less than'"),
        ("language:response_language", {"language": "English"}, r"args.language: 'English' .* de, el, en"),
        ("keywords:existence", {"keywords": "mom"}, r"args.keywords: 'mom' .* an array of strings, at least one"),
        ("keywords:forbidden_words", {"forbidden_words": []}, r"args.forbidden_words: \[\] is not allowed"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            r"args.nth_paragraph: 3 is not allowed; allowed: at most num_paragraphs, 2",
        ),
    ],
)
def test_a_wrong_name_or_argument_is_refused_with_the_value_and_what_is_allowed(
    name: str, args: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        checker(name, args)


@pytest.mark.parametrize("relation", RELATIONS)
def test_at_least_and_less_than_part_every_count_between_them(relation: str) -> None:
    check = checker("length_constraints:number_words", {"num_words": 3, "relation": relation})
    assert [check("word " * n) for n in (1, 2, 3, 4)] == (
        [False, False, True, True] if relation == "at least" else [True, True, False, False]
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Mr. Smith went. He left.", 2),
        ("It cost 3.5 dollars. OK?", 2),
        ("this is one. and this is two", 2),
        ("He said no. See No. 5.", 2),
        ("1. Bread\n2. Milk", 1),
        ("This is 5. That is 6.", 2),
        ("Hello... are you there? Wait... What?!", 3),
        ("He lives in the U.S. and works. J. K. Rowling wrote.", 2),
        ("“Go!” he said. She ran.", 2),
        ("これは本です。それは何？", 2),
        ("**Bold.** _Not._", 2),
        ("---\n...", 0),
        ("", 0),
    ],
)  # fmt: skip
def test_sentences_are_counted_as_people_count_them(text: str, count: int) -> None:
    assert count_sentences(text) == count


def test_a_text_is_always_told_to_be_in_the_same_language() -> None:
    for text in ("ok", "la la la", "no no", ENGLISH):
        first = language_of(text)
        language_of.cache_clear()
        assert language_of(text) == first
    assert [language_of(text) for text in (ENGLISH, "123 …", "https://example.org/a")] == ["en", None, None]


def test_runs_of_marks_take_no_quadratic_time() -> None:
    """With the naive patterns each of these takes minutes; the suite would not end."""
    for junk in ("!" * 300_000 + "x", "[" * 100_000 + "x", "<<" * 100_000, " " * 300_000 + "x", "*" * 300_000):
        for name in CHECKS.keys() - {"detectable_format:json_format"}:
            checker(name, CASES[name][0][0])(junk)
