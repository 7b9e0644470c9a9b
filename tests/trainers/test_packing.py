"""Packs: every prompt once, every completion once, every target predicted where its own context ends."""

from collections import Counter
from itertools import pairwise

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from trainers.examples import Row
from trainers.packing import Pack, PromptGroup, Tokens, group_rows, pack, split_by_budget
from trainers.rounding import up_finely

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple)  # so few that many are equal
rows = st.lists(st.builds(Row, tokens, tokens), max_size=12)
groups = rows.filter(bool).map(group_rows)
sizes = st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(1, 20), min_size=1, max_size=4)), max_size=15)


def group_of(size: tuple[int, list[int]], number: int) -> PromptGroup:
    prompt, completions = size
    return PromptGroup((number,) * prompt, tuple((which,) * length for which, length in enumerate(completions)))


def contexts(packed: Pack) -> list[Tokens]:
    """What each predictor sees, read off the spans: its prompt, and its own completion up to itself."""
    ids = packed.input_ids[0].tolist()
    found, predictors = [], iter(packed.predictors.tolist())
    for group, span in zip(packed.groups, packed.spans, strict=True):
        prompt_end = span.start + span.prompt
        for completion, (start, length) in zip(group.completions, span.branches, strict=True):
            for number, _ in enumerate(completion):
                place = next(predictors)
                if number == 0:
                    assert place == prompt_end - 1
                    found.append(tuple(ids[span.start : prompt_end]))
                else:
                    assert start <= place < start + length
                    found.append(tuple(ids[span.start : prompt_end] + ids[start : place + 1]))
    assert next(predictors, None) is None
    return found


# ---------------------------------------------------------------------------------------------- groups
@given(rows)
def test_rows_are_grouped_by_prompt_each_once_in_order_of_appearance(rows: list[Row]) -> None:
    found = group_rows(rows)
    assert [group.prompt for group in found] == list(dict.fromkeys(row.prompt for row in rows))
    for group in found:
        mine = [row.completion for row in rows if row.prompt == group.prompt]
        assert list(group.completions) == list(dict.fromkeys(mine))
    assert Counter(row for group in found for row in group.rows) == Counter(set(rows))


# ---------------------------------------------------------------------------------------------- packs
@given(groups)
def test_a_pack_has_each_prompt_once_and_no_completions_last_token(groups: list[PromptGroup]) -> None:
    packed = pack(groups)
    cost = sum(len(g.prompt) + sum(len(completion) - 1 for completion in g.completions) for g in groups)
    assert packed.input_ids.shape == packed.position_ids.shape == (1, up_finely(cost))
    assert sum(group.tokens for group in groups) == cost
    places = [
        place
        for span in packed.spans
        for start, length in ((span.start, span.prompt), *span.branches)
        for place in range(start, start + length)
    ]
    assert sorted(places) == list(range(cost))  # spans cover the row but for what rounds it up, none twice


@given(groups)
@example([PromptGroup((1,), ((2,),))])
def test_every_target_is_predicted_once_where_its_context_ends(groups: list[PromptGroup]) -> None:
    packed = pack(groups)
    wanted = [
        (row.prompt + row.completion[:number], token)
        for group in groups
        for row in group.rows
        for number, token in enumerate(row.completion)
    ]
    seen = contexts(packed)
    assert list(zip(seen, packed.targets.tolist(), strict=True)) == wanted
    assert packed.position_ids[0, packed.predictors].tolist() == [len(context) - 1 for context in seen]
    assert packed.lengths == tuple(len(row.completion) for row in packed.rows)
    assert packed.rows == [row for group in groups for row in group.rows]


@given(groups)
def test_positions_go_on_where_the_prompt_ends(groups: list[PromptGroup]) -> None:
    packed = pack(groups)
    for span in packed.spans:
        positions = packed.position_ids[0]
        assert torch.equal(positions[span.start : span.start + span.prompt], torch.arange(span.prompt))
        for start, length in span.branches:
            assert torch.equal(positions[start : start + length], span.prompt + torch.arange(length))


@given(groups, st.integers(1, 30))
def test_chunks_are_runs_of_whole_groups_that_cover_the_pack_within_the_limit(
    groups: list[PromptGroup], limit: int
) -> None:
    packed = pack(groups)
    chunks = packed.chunks(limit)
    targets = [index for part, _ in chunks for index in range(part.start, part.stop)]
    completions = [index for _, part in chunks for index in range(part.start, part.stop)]
    assert targets == list(range(len(packed.targets)))
    assert completions == list(range(len(packed.lengths)))
    by_prompt = []
    for part, which in chunks:
        mine = packed.rows[which]
        assert part.stop - part.start == sum(len(row.completion) for row in mine)
        prompts = {row.prompt for row in mine}
        assert part.stop - part.start <= limit or len(prompts) == 1
        by_prompt.append(prompts)
    for (part, _), (_, after) in pairwise(chunks):
        prompt = packed.rows[after.start].prompt
        following = sum(len(row.completion) for row in packed.rows if row.prompt == prompt)
        assert part.stop - part.start + following > limit  # no chunk ends before it must
    assert sum(map(len, by_prompt)) == len(set().union(*by_prompt)) == len(groups)  # no group in two chunks


# ---------------------------------------------------------------------------------------------- budget
@given(sizes, st.integers(1, 200), st.integers(1, 4))
@example([(6, [1])] * 3, 10, 1)  # 18 tokens would fit in two lists of 10, but no two groups do
def test_a_split_keeps_every_group_and_the_budget(
    sizes: list[tuple[int, list[int]]], budget: int, multiple: int
) -> None:
    groups = [group_of(size, number) for number, size in enumerate(sizes)]
    lists = split_by_budget(groups, budget, multiple)
    assert Counter(group for part in lists for group in part) == Counter(groups)
    assert all(len(part) == 1 or sum(group.tokens for group in part) <= budget for part in lists)
    assert len(lists) % multiple == 0
    assert sum(not part for part in lists) < multiple or not groups  # an empty one is a forward pass for nothing
    assert split_by_budget(groups, budget, multiple) == lists


def test_a_split_makes_lists_of_about_equal_size() -> None:
    """100 groups of 5 to 104 tokens; the largest list is within a smallest group of the mean."""
    groups = [group_of((5 + number * 37 % 100, [1]), number) for number in range(100)]
    lists = split_by_budget(groups, 600)
    loads = [sum(group.tokens for group in part) for part in lists]
    assert len(loads) == -(-sum(loads) // 600)
    assert max(loads) - min(loads) <= 20
