"""Batches: every example once an epoch, neighbours of one group together, nothing but seed and epoch decides."""

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from trainers.batches import batches_of_epoch
from trainers.examples import Example, Pair, Row, Single

lengths = st.integers(1, 9)
groups = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["", "p", "q"]), st.lists(lengths, min_size=1, max_size=4)),
    max_size=12,
)
"""Prompt, prompt id, and the examples' lengths; few enough prompts that neighbours and strangers share them."""
seeds, sizes = st.integers(0, 2**40), st.integers(1, 9)


def make(groups: list[tuple[int, str, list[int]]]) -> list[Example]:
    examples: list[Example] = []
    for prompt, prompt_id, lengths in groups:
        for length in lengths:
            row = Row((prompt,), (5,) * length)
            other = Row((prompt,), (6,))
            pair = Pair(row, other, prompt_id=prompt_id)
            examples.append(pair if length % 2 else Single(row, True, prompt_id=prompt_id))
    return examples


def group_of(example: Example) -> tuple[str, tuple[int, ...]]:
    return example.prompt_id, example.rows[0].prompt


def tokens_of(example: Example) -> int:
    return sum(len(row.completion) for row in example.rows)


@given(groups, seeds, sizes, st.none() | st.integers(1, 40))
def test_every_example_comes_once_an_epoch(
    groups: list[tuple[int, str, list[int]]], seed: int, size: int, tokens: int | None
) -> None:
    examples = make(groups)
    batches = batches_of_epoch(examples, 3, seed, size, tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(examples)))
    assert batches == batches_of_epoch(examples, 3, seed, size, tokens)


@given(groups, seeds, sizes)
def test_neighbours_of_one_group_follow_each_other_in_their_order(
    groups: list[tuple[int, str, list[int]]], seed: int, size: int
) -> None:
    examples = make(groups)
    order = [index for batch in batches_of_epoch(examples, 0, seed, size) for index in batch]
    runs = [list(run) for _, run in groupby(range(len(examples)), lambda index: group_of(examples[index]))]
    for run in runs:
        start = order.index(run[0])
        assert order[start : start + len(run)] == run


@given(groups.filter(bool), seeds, sizes, st.none() | st.integers(1, 40))
def test_a_batch_is_full_when_it_has_its_examples_or_its_tokens_and_never_before(
    groups: list[tuple[int, str, list[int]]], seed: int, size: int, tokens: int | None
) -> None:
    examples = make(groups)
    batches = batches_of_epoch(examples, 0, seed, size, tokens)
    loads = [[tokens_of(examples[index]) for index in batch] for batch in batches]
    assert all(1 <= len(batch) <= size for batch in batches)
    if tokens is not None:
        assert all(sum(load[:-1]) < tokens for load in loads)
    for batch, load in zip(batches[:-1], loads[:-1], strict=True):
        assert len(batch) == size or (tokens is not None and sum(load) >= tokens)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    examples = make([(prompt % 4, str(prompt), [1]) for prompt in range(30)])
    orders = [
        tuple(index for batch in batches_of_epoch(examples, epoch, seed, 4) for index in batch)
        for epoch in range(3)
        for seed in range(3)
    ]
    assert len(set(orders)) == 9
