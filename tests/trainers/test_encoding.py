from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from tests.tiny import BOS, EOS
from tests.trainers.examples import make_pair
from trainers.encoding import Row, pad, pair_rows, special_ids, split_by_budget

A, B = 7, 8
ENDS = frozenset({EOS})


def test_a_pair_becomes_its_own_sampled_ids() -> None:
    chosen, rejected = pair_rows(make_pair((A, EOS), (B, B), (BOS, A)), BOS, ENDS)
    assert chosen == Row((BOS, A), (A, EOS))
    assert rejected == Row((BOS, A), (B, B))
    assert (len(chosen), len(rejected)) == (4, 4)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "complaint"),
    [
        ((BOS, BOS, A), (A,), (B,), r"pair p: prompt \(1, 1, 7\)… must be .* one BOS \(1\) at most"),
        ((), (A,), (B,), r"pair p: prompt \(\)… must be non-empty"),
        ((BOS,), (), (B,), "pair p: chosen completion .* must be non-empty"),
        ((BOS,), (A,), (), "pair p: rejected completion .* must be non-empty"),
        ((BOS,), (A, EOS, A), (B,), r"chosen completion \(7, 2, 7\)… .* EOS \(2\) nowhere but at its end"),
        ((BOS,), (A,), (EOS, EOS), r"rejected completion \(2, 2\)… .* nowhere but at its end"),
    ],
)
def test_ids_that_no_policy_can_have_seen_are_refused(
    prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        pair_rows(make_pair(chosen, rejected, prompt), BOS, ENDS)


@pytest.mark.parametrize(
    ("prompt", "bos"),
    [
        ((BOS, A, EOS, BOS, A), BOS),  # a template that begins every turn with a BOS and ends it with an EOS
        ((A,), BOS),  # a template without BOS
        ((A, A), None),  # a tokenizer without BOS
    ],
)
def test_what_chat_templates_really_render_is_accepted(prompt: tuple[int, ...], bos: int | None) -> None:
    assert pair_rows(make_pair((EOS,), (A,), prompt), bos, ENDS) == (Row(prompt, (EOS,)), Row(prompt, (A,)))


@pytest.mark.parametrize(
    ("of_tokenizer", "of_generation", "found"),
    [
        ({"bos_token_id": 1, "eos_token_id": 2}, {"eos_token_id": [2, 5]}, (1, {2, 5})),
        ({"bos_token_id": None, "eos_token_id": 2}, {"eos_token_id": 5}, (None, {2, 5})),
        ({"bos_token_id": 1, "eos_token_id": None}, {"eos_token_id": None}, (1, set())),
        ({"bos_token_id": 1, "eos_token_id": 2}, None, (1, {2})),
    ],
)
def test_every_id_that_ends_a_completion_is_known(of_tokenizer: Any, of_generation: Any, found: Any) -> None:
    generation = of_generation and SimpleNamespace(**of_generation)
    tokenizer: Any = SimpleNamespace(**of_tokenizer)
    model: Any = SimpleNamespace(generation_config=generation)
    assert special_ids(tokenizer, model) == found


def test_padding_is_on_the_right_and_only_completions_count() -> None:
    batch = pad([Row((1, 5), (6, 2)), Row((1,), (9, 9, 9, 2)), Row((1,), (2,))], pad_id=0)
    assert batch.input_ids.tolist() == [[1, 5, 6, 2, 0], [1, 9, 9, 9, 2], [1, 2, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.completion_mask.int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert batch.completion_mask.dtype == torch.bool


lengths = st.lists(st.integers(1, 60), max_size=40)
budgets = st.integers(1, 200)


@given(lengths, budgets)
def test_every_item_is_in_one_group_and_no_group_is_over_the_budget_but_a_lone_item(
    costs: list[int], budget: int
) -> None:
    groups = split_by_budget(costs, int, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(costs)))
    for group in groups:
        assert max(costs[index] for index in group) * len(group) <= budget or len(group) == 1


@given(lengths, budgets, st.randoms(use_true_random=False))
def test_groups_hold_the_same_lengths_whatever_the_order_of_the_items(
    costs: list[int], budget: int, random: Any
) -> None:
    shuffled = random.sample(costs, len(costs))
    contents = [[[given[index] for index in group] for group in split_by_budget(given, int, budget)]
                for given in (costs, shuffled)]  # fmt: skip
    assert contents[0] == contents[1]


def test_groups_are_filled_up_to_the_budget_and_no_further() -> None:
    assert split_by_budget([5, 10, 5, 10, 1], int, 20) == [[1, 3], [0, 2, 4]]
    assert split_by_budget([3, 3, 3], int, 9) == [[0, 1, 2]]
    assert split_by_budget([3, 3, 3], int, 8) == [[0, 1], [2]]
