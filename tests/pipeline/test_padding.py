import pytest

from pipeline.padding import by_length, padded, padding_id


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [3, 9, 1, 4, 4, 30, 2]
    made = list(by_length(lengths, token_budget=12))
    assert sorted(position for batch in made for position in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[p] for p in batch) <= 12 for batch in made)
    assert [5] in made  # longer than the budget: by itself
    assert len(made) < len(lengths)


@pytest.mark.parametrize(("own", "expected"), [(7, 7), (None, 3)])
def test_a_model_without_a_padding_id_gets_one_that_ends_no_row(own: int | None, expected: int) -> None:
    assert padding_id([[5, 0], [3, 1], [4, 2], [9, 2]], own) == expected


def test_rows_are_padded_on_the_right() -> None:
    assert padded([[1, 2, 3], [4]], 9) == ([[1, 2, 3], [4, 9, 9]], [[1, 1, 1], [1, 0, 0]])
