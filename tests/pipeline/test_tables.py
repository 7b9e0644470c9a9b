"""Every record comes back from a Parquet file as it went in."""

import io
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tables
from pipeline.types import Candidate, Group, Judgment, PreferencePair, Prompt

T = TypeVar("T")
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
SCORES = st.floats(allow_nan=False)
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), max_size=3).map(tuple)
VOTES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
PROMPTS = st.builds(Prompt, st.text(), st.text(), IDS, MESSAGES, st.none() | st.text())
CANDIDATES = st.builds(
    Candidate,
    index=st.integers(0, 1023),
    token_ids=IDS,
    text=st.text(),
    finish_reason=st.sampled_from(["stop", "length"]),
    seed=st.integers(0, 2**63 - 1),
    cumulative_logprob=st.none() | SCORES,
)
PAIRS = st.builds(
    PreferencePair,
    st.text(),
    PROMPTS,
    CANDIDATES,
    CANDIDATES,
    SCORES,
    SCORES,
    st.integers(0, 1000),
    st.text(),
    st.text(),
)
JUDGMENTS = st.builds(
    Judgment,
    st.text(),
    st.text(),
    st.lists(st.none() | SCORES, max_size=4).map(tuple),
    st.lists(st.dictionaries(st.text(), VOTES, max_size=2), max_size=2).map(tuple),
)


def through_parquet(table: pa.Table) -> pa.Table:
    file = io.BytesIO()
    pq.write_table(table, file)
    return pq.read_table(file)


@given(st.lists(PROMPTS, max_size=3))
def test_prompts_come_back_as_they_went_in(prompts: list[Prompt]) -> None:
    assert tables.read_prompts(through_parquet(tables.prompts_table(prompts))) == prompts


@given(st.lists(st.tuples(PROMPTS, st.lists(CANDIDATES, min_size=1, max_size=3).map(tuple)), max_size=3))
def test_groups_come_back_in_order_with_their_candidates(rows: list[tuple[Prompt, tuple[Candidate, ...]]]) -> None:
    groups = list({prompt.id: Group(prompt, candidates) for prompt, candidates in rows}.values())
    prompts = {group.prompt.id: group.prompt for group in groups}
    assert tables.read_groups(through_parquet(tables.candidates_table(groups)), prompts) == groups


@given(st.lists(JUDGMENTS, max_size=3))
def test_judgments_come_back_with_abstentions_and_evidence(judgments: list[Judgment]) -> None:
    assert tables.read_judgments(through_parquet(tables.judgments_table(judgments))) == judgments


@given(st.lists(PAIRS, max_size=3))
def test_pairs_come_back_with_both_candidates_and_their_lineage(pairs: list[PreferencePair]) -> None:
    table = through_parquet(tables.pairs_table(pairs))
    assert tables.read_pairs(table) == pairs
    assert table["margin"].to_pylist() == pytest.approx([pair.margin for pair in pairs], nan_ok=True)


def test_drops_say_which_prompt_and_why() -> None:
    table = through_parquet(tables.drops_table([("p1", "tie", "1.0 = 1.0"), ("p2", "margin", "")]))
    assert table.to_pylist()[0] == {"prompt_id": "p1", "reason": "tie", "detail": "1.0 = 1.0"}
    assert table["reason"].to_pylist() == ["tie", "margin"]


@pytest.mark.parametrize(
    ("make", "schema"),
    [
        (tables.prompts_table, tables.PROMPTS),
        (tables.candidates_table, tables.CANDIDATES),
        (tables.judgments_table, tables.JUDGMENTS),
        (tables.pairs_table, tables.PAIRS),
        (tables.drops_table, tables.DROPS),
    ],
)
def test_an_empty_table_has_the_columns_of_a_full_one(make: Any, schema: pa.Schema) -> None:
    assert through_parquet(make([])).schema.equals(schema)
    pa.concat_tables([make([]), make([])])  # shards of one artifact fit together


def test_a_token_id_that_does_not_fit_is_refused_not_wrapped() -> None:
    with pytest.raises(pa.ArrowInvalid):
        tables.prompts_table([Prompt("p", "text", (2**31,))])
