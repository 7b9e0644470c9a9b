"""Bounds that are bounds, prices that are never too low, and a dry run's sums."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.calls.estimate import TURN_TOKENS, estimate, price, size
from pipeline.calls.request import Request
from pipeline.config import Endpoint

PRICED = Endpoint(model="m", price_in=2.5, price_out=10.0)


def request(text: str, sample: int = 0, **body: object) -> Request:
    return Request("m", "http://localhost", ({"role": "user", "content": text},), body, sample)


@given(st.text())
def test_no_text_has_more_tokens_than_the_bound(text: str) -> None:
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    worst = Tokenizer(models.BPE(alphabet, []))  # no merges: every byte a token
    worst.pre_tokenizer, worst.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    extent = size(request(text, max_tokens=1))
    assert len(worst.encode(text).ids) <= extent.most_prompt
    assert extent.prompt <= extent.most_prompt


def test_english_is_estimated_at_four_bytes_a_token() -> None:
    assert size(request("word " * 80, max_tokens=1)).prompt == 100 + TURN_TOKENS


@pytest.mark.parametrize(
    ("body", "most"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7, "max_tokens": 5}, 7),
        ({"max_tokens": 5, "n": 3}, 15),
        ({}, None),
    ],
)
def test_the_longest_reply_is_what_the_body_allows(body: dict[str, int], most: int | None) -> None:
    assert size(request("x", **body)).most_reply == most


def test_a_schema_counts_as_prompt() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "verdict" * 50}}
    assert (
        size(request("x", max_tokens=1, response_format=schema)).prompt > size(request("x", max_tokens=1)).prompt + 80
    )


@given(st.integers(0, 10**7), st.integers(0, 10**6), st.floats(0.0, 100.0), st.floats(0.0, 100.0))
def test_prices_are_rounded_up_to_a_billionth(read: int, written: int, price_in: float, price_out: float) -> None:
    exact = (read * price_in + written * price_out) / 1e6
    billionths = price(Endpoint(model="m", price_in=price_in, price_out=price_out), read, written)
    assert exact - 1e-9 <= billionths / 1e9 <= exact + 1.01e-9 + exact * 1e-12


def test_a_batch_is_half_the_price() -> None:
    assert price(PRICED, 1000, 100) == 3_500_000
    assert price(PRICED.model_copy(update={"batch": True}), 1000, 100) == 1_750_000


def test_an_estimate_counts_each_call_once_and_what_is_answered_as_free() -> None:
    asked = [request("a" * 400, max_tokens=50), request("a" * 400, max_tokens=50), request("b" * 400, max_tokens=50),
             request("a" * 400, 1, max_tokens=50)]  # fmt: skip
    found = estimate(PRICED, asked, answered={asked[2].key})
    assert (found.calls, found.answered, found.most_reply_tokens) == (3, 1, 100)
    assert not found.batch and estimate(PRICED.model_copy(update={"batch": True}), asked).batch
    assert found.prompt_tokens == 2 * (100 + TURN_TOKENS)
    assert found.low is not None and found.high is not None
    assert 0 < found.low < found.high
    assert found.high == 2 * price(PRICED, size(asked[0]).most_prompt, 50) / 1e9


def test_without_prices_there_is_no_cost() -> None:
    found = estimate(Endpoint(model="m"), [request("a", max_tokens=5)])
    assert (found.low, found.high, found.calls) == (None, None, 1)
