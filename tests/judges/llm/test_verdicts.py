"""Reading replies: what is no verdict in the form asked for is an abstention with a name."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from judges.llm.scales import Scale, Structured, body, form, schema, written
from judges.llm.verdicts import REASONS, read
from tests.judges.replies import COMPARISON, RATING, fuzzed, reply, with_logprobs

STRUCTURED: tuple[Structured, ...] = ("json_schema", "choice", "none")
SCALES = (RATING, Scale.rating(0, 100), COMPARISON, Scale.comparison(ties=False))
FORMS = [(scale, structured) for scale in SCALES for structured in STRUCTURED]
NAMED = pytest.mark.parametrize(("scale", "structured"), FORMS)


def abstention(content: Any, scale: Scale, structured: Structured, **choice: Any) -> str | None:
    verdict = read(reply(content, **choice), scale, structured)
    assert (verdict.value is None) is (verdict.abstained is not None)
    return verdict.abstained


# ---------------------------------------------------------------------------------------------- good replies
@NAMED
@given(reasons=st.one_of(st.none(), st.text(max_size=60), st.sampled_from(["[[A]]", '{"score": 3}', '"score": 1}'])))
def test_every_label_in_the_form_asked_for_is_read_whatever_the_reasons_quote(
    scale: Scale, structured: Structured, reasons: str | None
) -> None:
    for label, worth in scale.values.items():
        verdict = read(reply(written(scale, label, structured, reasons)), scale, structured)
        assert (verdict.label, verdict.value, verdict.abstained) == (label, worth, None)


def test_the_last_marker_counts_not_one_quoted_before() -> None:
    verdict = read(reply("The user says [[A]] is best. It is not.\n[[B]]\nThat is all."), COMPARISON, "none")
    assert (verdict.label, verdict.value) == ("B", 0.0)


def test_a_code_fence_around_the_json_and_white_space_to_the_limit_do_no_harm() -> None:
    assert read(reply('```json\n{"score": 7}\n```'), RATING, "json_schema").value == 7.0
    assert read(reply('{"score": 7}' + " \n" * 40, finish_reason="length"), RATING, "json_schema").value == 7.0


def test_seven_point_nought_is_seven_in_json() -> None:
    assert read(reply('{"score": 7.0}'), RATING, "json_schema").label == "7"


# ---------------------------------------------------------------------------------------------- no verdict
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("I would say A.", "unreadable"),
        ('{"reasoning": "the first is', "unreadable"),
        ('Sure: {"verdict": "A"}', "unreadable"),
        ('{"verdict": "A"} {"verdict": "B"}', "unreadable"),
        ('["A"]', "unreadable"),
        ('"A"', "unreadable"),
        ("[" * 100_000, "unreadable"),
        ('{"colour": "red"}', "missing_key"),
        ('{"Verdict": "A"}', "missing_key"),
        ('{"x": {"verdict": "A"}}', "missing_key"),
        ('{"verdict": "A", "verdict": "A"}', "duplicate_key"),
        ('{"verdict": "A", "x": {"y": 1, "y": 2}}', "duplicate_key"),
        ('{"verdict": null}', "wrong_type"),
        ('{"verdict": 1}', "wrong_type"),
        ('{"verdict": true}', "wrong_type"),
        ('{"verdict": ["A"]}', "wrong_type"),
        ('{"verdict": "D"}', "out_of_scale"),
        ('{"verdict": "a"}', "out_of_scale"),
        ('{"verdict": ""}', "out_of_scale"),
        ("", "empty"),
        (" \n", "empty"),
        (None, "empty"),
    ],
)
def test_json_without_a_verdict_abstains_by_name(content: str | None, reason: str) -> None:
    assert abstention(content, COMPARISON, "json_schema") == reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("0", "out_of_scale"), ("10", "out_of_scale"), ("-7", "out_of_scale"), ("7.5", "out_of_scale"),
        ("1e300", "out_of_scale"), ("true", "wrong_type"), ("false", "wrong_type"), ('"7"', "wrong_type"),
        ("[7]", "wrong_type"), ("{}", "wrong_type"), ("null", "wrong_type"), ("NaN", "not_a_number"),
        ("Infinity", "not_a_number"), ("-Infinity", "not_a_number"), ("1e999", "not_a_number"),
        ("9" * 5000, "unreadable"), ("07", "unreadable"),
    ],
)  # fmt: skip
def test_a_score_that_is_no_label_abstains_by_name(value: str, reason: str) -> None:
    assert abstention(f'{{"reasoning": "fine", "score": {value}}}', RATING, "json_schema") == reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Both have their merits.", "unreadable"), ("[[A", "unreadable"), ("A", "unreadable"), ("[A]", "unreadable"),
        ("[[]]", "unreadable"), ("[[tie]]", "unreadable"), ("[[A]] or rather [[D]]", "out_of_scale"),
        ("[[A]], I mean [[a]]", "out_of_scale"), ("[[A or B]]", "unreadable"),
    ],
)  # fmt: skip
def test_prose_without_the_marker_abstains_by_name(content: str, reason: str) -> None:
    assert abstention(content, COMPARISON, "none") == reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [("11", "out_of_scale"), ("7/10", "out_of_scale"), ("seven", "unreadable"), ("7, because", "unreadable")],
)
def test_a_choice_that_was_not_offered_abstains_by_name(content: str, reason: str) -> None:
    assert abstention(content, RATING, "choice") == reason


@NAMED
def test_a_refusal_or_a_filter_abstains_whatever_else_was_sent(scale: Scale, structured: Structured) -> None:
    good = written(scale, next(iter(scale.values)), structured)
    assert abstention(good, scale, structured, message={"content": good, "refusal": "No."}) == "refused"
    assert abstention(None, scale, structured, message={"content": None, "refusal": "No."}) == "refused"
    assert abstention(good, scale, structured, finish_reason="content_filter") == "refused"


@NAMED
def test_a_reply_cut_off_at_any_place_abstains_as_truncated(scale: Scale, structured: Structured) -> None:
    good = written(scale, list(scale.values)[-1], structured, "[[A]] is wrong")
    for end in range(len(good)):
        assert abstention(good[:end], scale, structured, finish_reason="length") == "truncated"


def test_a_whole_number_cut_short_is_not_taken_for_another() -> None:
    assert abstention("1", Scale.rating(1, 10), "choice", finish_reason="length") == "truncated"


# ---------------------------------------------------------------------------------------------- fuzz
def holds(raw: Any, label: str, scale: Scale, structured: Structured) -> bool:
    """Whether the completion holds ``label`` in the form asked for: said in another way than the parser says it."""
    text = raw["choices"][0]["message"]["content"].strip()
    if structured == "choice":
        return text == label
    if structured == "none":
        return re.search(rf"(?s)\[\[\s*{label}\s*\]\](?!.*\[\[[^\[\]]*\]\])", text) is not None
    fenced = re.sub(r"(?s)\A```(?:json)?[ \t]*\n(.*)\n[ \t]*```\Z", r"\1", text)
    entries = json.JSONDecoder(object_pairs_hook=tuple).decode(fenced)
    (value,) = [value for key, value in entries if key == scale.key]
    wanted: Any = int(label) if scale.key == "score" else label
    return type(value) is not bool and value == wanted


@NAMED
def test_a_thousand_fuzzed_replies_raise_nothing_and_no_verdict_is_invented(
    scale: Scale, structured: Structured
) -> None:
    seen: set[str | None] = set()
    for raw in fuzzed(scale, structured, 1000, seed=0):
        answer = reply("")
        object.__setattr__(answer, "raw", raw)
        verdict = read(answer, scale, structured)
        seen.add(verdict.abstained)
        if verdict.value is None:
            assert verdict.abstained in REASONS
            continue
        assert verdict.label is not None
        assert holds(raw, verdict.label, scale, structured)
        assert min(scale.values.values()) <= verdict.value <= max(scale.values.values())
        assert not raw["choices"][0]["message"].get("refusal")
    assert {None, "unreadable", "truncated", "refused", "empty"} <= seen  # the fuzz reaches both sides


# ---------------------------------------------------------------------------------------------- how it is asked
@NAMED
def test_the_schema_accepts_what_the_parser_reads_and_nothing_beside_the_scale(
    scale: Scale, structured: Structured
) -> None:
    for reasoning in (True, False):
        validator = Draft202012Validator(schema(scale, reasoning))
        Draft202012Validator.check_schema(schema(scale, reasoning))
        for label in scale.values:
            assert validator.is_valid(json.loads(written(scale, label, "json_schema", "so" if reasoning else None)))
        assert not validator.is_valid({"reasoning": "so", scale.key: 101})
    assert list(schema(scale, reasoning=True)["properties"]) == ["reasoning", scale.key]  # reasons come first


def test_each_form_asks_for_what_it_reads() -> None:
    assert body(RATING, "choice", False, logprobs=False) == {
        "structured_outputs": {"choice": [str(label) for label in range(1, 10)]}, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    assert body(COMPARISON, "none", True, logprobs=False) == {}
    asked = body(COMPARISON, "json_schema", True, logprobs=True)
    assert asked["response_format"]["json_schema"]["strict"] is True
    assert asked["logprobs"] is True
    assert "[[A]]" in form(COMPARISON, "none", reasoning=True)
    assert '"verdict"' in form(COMPARISON, "json_schema", reasoning=False)
    assert "reason" not in form(COMPARISON, "json_schema", reasoning=False)


# ---------------------------------------------------------------------------------------------- log-probabilities
def test_the_expected_value_is_taken_over_the_labels_renormalised() -> None:
    tokens = ["{", '"', "score", '":', " ", "7", "}"]
    chances = {"7": math.log(0.5), "8": math.log(0.3), "x": math.log(0.1)}
    verdict = read(with_logprobs(tokens, 5, chances), RATING, "json_schema")
    assert verdict.value == pytest.approx((0.5 * 7 + 0.3 * 8) / 0.8)
    assert (verdict.label, verdict.mass) == ("7", pytest.approx(0.8))


@pytest.mark.parametrize(
    ("tokens", "place", "structured"),
    [
        (["A"], 0, "choice"),
        ([" A"], 0, "choice"),
        (['{"verdict": "', "A", '"}'], 1, "json_schema"),
        (['{"reasoning": "say \\"verdict\\": \\"A\\"", "verdict":', ' "A', '"}'], 1, "json_schema"),
        (['{"verdict":"', 'A"}'], 1, "json_schema"),
        (["Not [[", "B", "]]. [[", "A", "]]"], 3, "none"),
        (["Is it so: [[", "A", "]]? Yes, it so: [[", "A", "]]"], 3, "none"),
    ],
)
def test_the_label_is_found_whatever_its_tokens_are(tokens: list[str], place: int, structured: Structured) -> None:
    chances = {tokens[place]: math.log(0.6), tokens[place].replace("A", "B"): math.log(0.2)}
    verdict = read(with_logprobs(tokens, place, chances), COMPARISON, structured)
    assert verdict.value == pytest.approx(0.75)


def test_a_token_that_is_more_than_the_label_tells_nothing_of_its_chance() -> None:
    verdict = read(with_logprobs(["so [[A", "]]"], 0, {"so [[A": -0.1}), COMPARISON, "none")
    assert (verdict.value, verdict.mass) == (1.0, None)


@pytest.mark.parametrize(
    "chances",
    [{"Well": -0.1, "7": -4.0}, {}, {"7": float("nan")}, {"7": 5.0}, {"7": -(10**400)}, {"7": True}],
    ids=str,
)
def test_without_enough_mass_on_the_labels_the_label_itself_counts(chances: dict[str, float]) -> None:
    answer = with_logprobs(["7"], 0, chances)
    answer.logprobs[0]["logprob"] = -4.0  # type: ignore[index]
    verdict = read(answer, RATING, "choice")
    assert (verdict.value, verdict.mass) == (7.0, None)


def test_one_and_ten_are_told_apart_only_where_ten_is_seen_to_be_one_token() -> None:
    scale = Scale.rating(1, 10)
    digits = read(with_logprobs(["1", "0"], 0, {"1": -0.1, "2": -3.0}), scale, "choice")
    assert (digits.label, digits.value, digits.mass) == ("10", 10.0, None)
    unsure = read(with_logprobs(["1"], 0, {"1": -0.1, "2": -3.0}), scale, "choice")
    assert (unsure.value, unsure.mass) == (1.0, None)
    whole = read(with_logprobs(["1"], 0, {"1": math.log(0.5), "10": math.log(0.5)}), scale, "choice")
    assert whole.value == pytest.approx(5.5)
    plain = read(with_logprobs(["7"], 0, {"7": math.log(0.5), "8": math.log(0.5)}), scale, "choice")
    assert plain.value == pytest.approx(7.5)


def test_tokens_that_are_parts_of_a_letter_do_not_hide_the_label() -> None:
    answer = with_logprobs(["caf\ufffd", "\ufffd", " is it [[", "8", "]]"], 3, {"8": math.log(0.5), "9": math.log(0.5)})
    whole = reply("café is it [[8]]", logprobs={"content": answer.logprobs})
    assert read(whole, RATING, "none").value == pytest.approx(8.5)
