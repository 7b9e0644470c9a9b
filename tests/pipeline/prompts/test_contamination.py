"""No prompt of the rounds shares thirteen words in a row with an evaluation set."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.prompts import load_prompts
from pipeline.prompts.contamination import Evaluations
from tests.pipeline.prompts.given import Source, texts, write_jsonl

TWENTY = " ".join(f"w{number}" for number in range(20))


def words_of(text: str, start: int, end: int) -> str:
    return " ".join(text.split()[start:end])


def shares(evaluation: str, prompt: str, ngram: int = 13) -> bool:
    evaluations = Evaluations(ngram)
    evaluations.add([evaluation])
    return evaluations.share_text_with([prompt])


@pytest.mark.parametrize(("start", "end"), [(0, 13), (4, 17), (7, 20), (0, 20)])
def test_thirteen_words_in_a_row_are_too_many(start: int, end: int) -> None:
    assert shares(TWENTY, f"so: {words_of(TWENTY, start, end)} and more")
    assert not shares(TWENTY, f"so: {words_of(TWENTY, start, end).replace('w10', 'v10')}") or end - start > 13


def test_twelve_words_in_a_row_are_not() -> None:
    assert not shares(TWENTY, f"{words_of(TWENTY, 0, 12)} x {words_of(TWENTY, 12, 20)}")
    assert shares(TWENTY, f"{words_of(TWENTY, 0, 12)} x", ngram=12)


def test_case_and_punctuation_hide_nothing() -> None:
    assert shares(TWENTY, words_of(TWENTY, 0, 13).upper().replace(" ", ", "))


def test_shorter_text_matches_whole_and_a_very_short_one_only_a_whole_prompt() -> None:
    eight, seven = words_of(TWENTY, 0, 8), words_of(TWENTY, 0, 7)
    assert shares(eight, f"tell me: {eight}?")
    assert not shares(eight, f"tell me: {seven}?")
    assert not shares(seven, f"tell me: {seven}?")
    assert shares(seven, f"{seven.title()}?")
    assert not shares("?!", "…")


def test_short_turn_of_a_conversation_is_no_whole_prompt() -> None:
    evaluations = Evaluations(13)
    evaluations.add(["what is a fig, exactly?", "yes", ""])
    assert not evaluations.share_text_with(["who?", "yes", "", "why?"])
    assert evaluations.share_text_with(["What is a fig", "exactly. Yes"])


def test_contaminated_prompts_are_counted_and_those_marked_held_out_stay(source: Source, tmp_path: Path) -> None:
    evaluation = write_jsonl(tmp_path / "test.jsonl", [{"question": TWENTY}])
    against = {"against": [{"type": "file", "path": evaluation, "columns": {"prompt": "question"}}]}
    rows = [{"prompt": f"x {TWENTY}"}, {"prompt": "clean"}, {"prompt": TWENTY, "split": "held_out"}]
    found = load_prompts(source(rows, decontaminate=against, held_out=1), None)
    assert (texts(found.rounds), texts(found.held_out)) == (["clean"], [TWENTY])
    assert found.dropped == {"contaminated": 1}


def test_every_turn_of_both_is_compared_and_no_system_message(source: Source, tmp_path: Path) -> None:
    def turns(*said: str) -> list[dict[str, str]]:
        return [{"from": who, "value": text} for who, text in zip(("system", "human", "gpt", "human"), said)]  # noqa: B905

    rules = TWENTY.replace("w", "r")
    evaluation = [{"prompt": turns(rules, "hi", TWENTY)}, {"prompt": f"\n\nHuman: {TWENTY.replace('w', 'v')}"}]
    against = {"against": [{"type": "file", "path": write_jsonl(tmp_path / "test.jsonl", evaluation)}]}
    rows: list[Any] = [
        {"prompt": turns(rules, "clean", "yes", "good")},
        {"prompt": turns("", TWENTY, "no", "bad")},
        {"prompt": turns("", "so", "yes", TWENTY.replace("w", "v"))},
    ]
    found = load_prompts(source(rows, template="chat", decontaminate=against), None)
    assert texts(found.rounds) == ["good"]
    assert found.dropped == {"contaminated": 2}


def test_evaluation_set_that_cannot_be_read_is_never_taken_for_clean(source: Source, tmp_path: Path) -> None:
    against = {"against": [{"type": "file", "path": write_jsonl(tmp_path / "test.jsonl", [{"question": TWENTY}])}]}
    with pytest.raises(DataError, match=r"^prompts.decontaminate.against.0: 1 of 1 rows are unusable.*has no 'prompt'"):
        load_prompts(source([{"prompt": "a"}], decontaminate=against), None)
    write_jsonl(tmp_path / "test.jsonl", [])
    with pytest.raises(DataError, match=r"^prompts.decontaminate.against.0: it has no rows"):
        load_prompts(source([{"prompt": "a"}], decontaminate=against), None)


def test_rows_of_an_evaluation_set_that_cannot_be_read_are_named(source: Source, tmp_path: Path) -> None:
    rows = [*({"prompt": f"{TWENTY} {number}"} for number in range(30)), {"prompt": None}]
    against = {"against": [{"type": "file", "path": write_jsonl(tmp_path / "test.jsonl", rows)}]}
    found = load_prompts(source([{"prompt": "clean"}], decontaminate=against), None)
    assert (found.dropped, len(found.rounds)) == ({}, 1)
    assert found.bad == ("prompts.decontaminate.against.0 row 31: has no 'prompt'; it has prompt",)
