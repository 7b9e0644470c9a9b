"""What a status and a body come to: every body has an outcome, and nothing but a completion is an answer."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calls.outcomes import of_body, of_status, showable

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
PARTS = st.fixed_dictionaries({}, optional=dict.fromkeys(("choices", "usage", "error", "message"), JSON))


@given(st.text() | JSON.map(json.dumps) | PARTS.map(json.dumps))
def test_any_body_has_an_outcome_and_is_an_answer_only_with_a_message(text: str) -> None:
    outcome = of_body(text)
    if outcome.raw is None:
        assert outcome.reason in ("bad_json", "no_choice", "server_error", "cut_off")
        assert outcome.again and not outcome.fatal
    else:
        assert isinstance(outcome.raw["choices"][0]["message"], dict)
        assert outcome.text == text
    assert outcome.tokens is None or all(0 <= count < 2**31 for count in outcome.tokens)


@pytest.mark.parametrize(("finish", "reason"), [("abort", "cut_off"), ("error", "cut_off"), ("length", ""), (None, "")])
def test_a_completion_that_was_broken_off_is_no_answer(finish: str | None, reason: str) -> None:
    choice = {"message": {"role": "assistant", "content": "The answer is"}, "finish_reason": finish}
    outcome = of_body(json.dumps({"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}))
    assert (outcome.reason, outcome.raw is None, outcome.tokens, outcome.billed) == (reason, bool(reason), (2, 3), True)


@given(st.integers(300, 599), JSON | PARTS, st.booleans())
def test_any_refusal_has_a_reason(status: int, body: Any, works: bool) -> None:
    outcome = of_status(status, body, works)
    assert outcome.reason and outcome.raw is None and not outcome.billed
    assert outcome.fatal <= (status in (401, 402, 403, 404, 429))


def test_nesting_that_no_parser_follows_is_bad_json() -> None:
    assert of_body("[" * 100_000).reason == "bad_json"


@pytest.mark.parametrize(
    ("status", "body", "reason", "again", "fatal"),
    [(429, {"error": {"code": "rate_limit_exceeded"}}, "rate_limited", True, False),
     (429, {"error": {"type": "insufficient_quota"}}, "no_quota", True, True),
     (401, {"error": {"message": "no"}}, "refused_access", True, True),
     (404, {"detail": "Not Found"}, "refused_access", True, True),
     (400, {"error": {"message": "no"}}, "bad_request", False, False),
     (413, None, "bad_request", False, False), (503, "busy", "server_error", True, False),
     (529, None, "server_error", True, False), (307, "", "server_error", True, False)],
)  # fmt: skip
def test_a_status_says_whether_to_go_on(status: int, body: Any, reason: str, again: bool, fatal: bool) -> None:
    outcome = of_status(status, body, works=True)
    assert (outcome.reason, outcome.again, outcome.fatal) == (reason, again, fatal)


@given(st.text())
def test_words_can_be_stored_and_show_no_key(words: str) -> None:
    shown = showable(f"{words}sk-secret{words}", "sk-secret")
    assert "sk-secret" not in shown
    assert len(shown.encode()) >= len(shown) <= 300
