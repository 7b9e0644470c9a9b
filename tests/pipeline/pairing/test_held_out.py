"""Which prompts' pairs are held out depends on the prompt and the share, and on nothing else."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pairing.held_out import ENOUGH, SHARE, is_held_out, share_held_out

prompts = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8).map(tuple)


@given(prompts, st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_share_holds_out_some_of_what_a_larger_one_does(
    prompt: tuple[int, ...], one: float, two: float
) -> None:
    assert is_held_out(prompt, min(one, two)) <= is_held_out(prompt, max(one, two))
    assert is_held_out(prompt, one) == is_held_out(list(prompt), one)
    assert not is_held_out(prompt, 0.0)
    assert is_held_out(prompt, 1.0)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_share_is_held_out_of_many_prompts(share: float) -> None:
    count = sum(is_held_out((1, number), share) for number in range(4000))
    assert abs(count / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_where_nobody_says_pairs_are_held_out_of_rounds_with_enough_different_prompts() -> None:
    different = [(1, number) for number in range(ENOUGH)]
    assert share_held_out(None, different, 0) == share_held_out(None, different, ENOUGH) == SHARE
    assert share_held_out(None, different[1:], 0) == 0.0
    assert share_held_out(None, different[1:] * 9, 0) == 0.0  # asked again and again
    assert share_held_out(None, different * 9, ENOUGH - 1) == 0.0
    assert share_held_out(0.3, different[:2], 1) == 0.3
    assert share_held_out(0.0, different, 0) == 0.0


def test_no_more_prompts_are_read_than_it_takes() -> None:
    def endless() -> Iterator[tuple[int, ...]]:
        number = 0
        while True:
            yield (number := number + 1,)

    assert share_held_out(None, endless(), 0) == SHARE
    assert share_held_out(None, endless(), 10) == 0.0
