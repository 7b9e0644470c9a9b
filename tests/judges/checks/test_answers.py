"""Final answers: each way of writing one, and the real solutions and verdicts of GSM8K's own files."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.checks.answers import first_number, is_correct, reference_answer, stated_answer


@pytest.mark.parametrize(
    "completion",
    [
        "She has 10 + 8 = <<10+8=18>>18 left.\n#### 18",
        "#### 18\n",
        "####18.",
        "#### $18 per day for 3 ducks",
        "#### 18.00",
        "#### 36/2",
        "#### 17 2/2",
        "A: 18",
        "Answer: **18**",
        "The answer is 18. It took 3 steps.",
        "The final answer is:\n\n$18",
        "So the answer is 10 + 8 = 18.",
        "The answer is 17. No: the answer is 18.",
        "Thus \\boxed{18}.",
        "\\boxed{\\text{18 dollars}} and not 19",
        "\\boxed{\\frac{36}{2}} of 7",
        "\\(\\boxed{\\$18\\%}\\)",
        "#### 3. Conclude\nTogether that is \\boxed{18}.",
        "First 3, then 5, and at last 18.",
        "It is $18.00/day",
        "18 eggs",
    ],
)
def test_a_completion_whose_final_answer_is_18_is_correct(completion: str) -> None:
    assert is_correct(completion, "18")


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "#### ",
        "eighteen",
        "#### 17\nor 18",  # the last statement counts, not the last number
        "#### 18\n#### 17",
        "The answer is 18. No: the answer is 17.",
        "#### 18 + 2",
        "#### 18-20",
        "#### 18x",
        "#### 1,8",
        "#### 180",
        "#### -18",
        "#### 18.5",
        "#### 18/0",
        "18 or 17",
        "A: 18+John's age",
        "#### " + "18" * 5000,
    ],
)
def test_a_completion_whose_final_answer_is_not_18_is_not(completion: str) -> None:
    assert not is_correct(completion, "18")


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1,234,567", Fraction(1234567)),
        ("1,00,000", Fraction(100000)),
        ("1{,}000", Fraction(1000)),
        ("10\\,000", Fraction(10000)),
        ("−7", Fraction(-7)),
        ("-$5", Fraction(-5)),
        ("$-5.50.", Fraction(-11, 2)),
        ("€ 5", Fraction(5)),
        ("50\\%", Fraction(50)),
        (".5", Fraction(1, 2)),
        ("-3/4", Fraction(-3, 4)),
        ("1 1/2 hours", Fraction(3, 2)),
        ("\\dfrac{3}{4}", Fraction(3, 4)),
        ("1.5e3", Fraction(1500)),
        ("5m", Fraction(5)),
        ("x = 12", Fraction(12)),
        ("3, 4 and 5", Fraction(3)),
        ("2x", None),
        ("\\frac{1}{0}", None),
        ("2020-05-01", None),
        ("none", None),
    ],
)
def test_numbers_are_read_as_people_write_them(written: str, number: Fraction | None) -> None:
    assert first_number(written) == number


def test_numbers_may_differ_by_the_tolerance_times_the_reference() -> None:
    assert is_correct("#### 33.33", "33.333", tolerance=1e-3)
    assert not is_correct("#### 33.33", "33.333")
    assert not is_correct("#### 0.0001", "0", tolerance=0.5)


def test_the_last_match_of_a_pattern_is_the_answer_and_its_first_group_where_it_has_one() -> None:
    assert is_correct("<5> <18> 7", "18", pattern=r"<(\d+)>")
    assert is_correct("<5> <18> 7", "18", pattern=r"\b1\d\b")
    assert not is_correct("#### 18", "18", pattern=r"<(\d+)>")


@pytest.mark.parametrize(
    ("completion", "reference", "correct"),
    [
        ("The answer is (b).", "B", True),
        ("\\boxed{\\text{Paris}}", "paris", True),
        ("Paris.", "Paris", True),
        ("It is Paris, I think", "Paris", False),
        ("The answer is C.", "B", False),
        ("#### 2x + 5", "2x + 3", False),
        ("#### 2x + 3", "2x + 3", True),
        ("", "Paris", False),
    ],
)
def test_answers_in_words_are_compared_as_words(completion: str, reference: str, correct: bool) -> None:
    assert is_correct(completion, reference) is correct


def test_a_box_ends_at_its_own_brace() -> None:
    assert stated_answer("\\boxed{\\frac{1}{2}} {3}") == "\\frac{1}{2}"
    assert stated_answer("\\boxed{1} then \\boxed{2") == "1"


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("18", "18"),
        ("She has 9.\n#### 1,800", "1,800"),
        ("Nine eggs.\nThat makes 18", "18"),
        ("Paris", "Paris"),
        ("No number\nin any line", None),
        (" \n", None),
        (None, None),
    ],
)
def test_a_reference_may_be_bare_or_worked_out_or_missing(answer: str | None, reference: str | None) -> None:
    assert reference_answer(answer) == reference


PIECES = st.sampled_from([
    "#### ", "\\boxed{", "}", "\\frac{", "answer is ", "A:", "\n", ".", ",", "-", "/", "=", "$", "%", "1", "23", "e9",
    "٣", "²", " ", "x", "Paris",
])  # fmt: skip


@given(st.lists(PIECES, max_size=40).map("".join), st.lists(PIECES, min_size=1, max_size=10).map("".join))
def test_no_text_makes_it_raise(completion: str, answer: str) -> None:
    reference = reference_answer(answer)
    if reference is not None:
        assert is_correct(completion, reference) in (True, False)


@given(st.fractions(max_denominator=1000), st.sampled_from(["#### {}", "\\boxed{{{}}}", "The answer is {}.", "{}"]))
def test_any_fraction_is_found_in_any_form_and_no_other_equals_it(value: Fraction, form: str) -> None:
    assert is_correct(form.format(value), str(value), tolerance=0)
    assert not is_correct(form.format(value + 1), str(value), tolerance=0)


def test_it_agrees_with_every_verdict_on_the_real_solutions(shared_data: Path) -> None:
    verdicts = disagreements = 0
    for line in (shared_data / "verifiable" / "gsm8k_example_model_solutions.jsonl").read_text().splitlines():
        row = json.loads(line)
        reference = reference_answer(row["ground_truth"])
        assert reference is not None
        for model in row.keys() - {"question", "ground_truth"}:
            verdicts += 1
            disagreements += is_correct(row[model]["solution"], reference) != row[model]["is_correct"]
    assert (verdicts, disagreements) == (4 * 1319, 0)


def test_every_real_reference_answer_is_read_as_its_number(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "verifiable" / "gsm8k_train.jsonl").read_text().splitlines()]
    for row in rows:
        reference = reference_answer(row["answer"])
        assert reference is not None
        assert first_number(reference) == int(row["answer"].rpartition("####")[2].replace(",", ""))
        assert is_correct(row["answer"], reference)
    assert len(rows) == 7473
