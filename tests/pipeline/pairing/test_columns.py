"""Shards whose columns lie in several pieces are read as if they lay in one."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pairing.columns import joined, taken
from pipeline.tables import IDS

from .rounds import group, judged, shard_of

PIECES = st.lists(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=3), max_size=4), min_size=1, max_size=3)


@given(PIECES, st.data())
def test_rows_are_taken_piece_by_piece_as_of_one_piece(pieces: list[list[list[int]]], data: Any) -> None:
    arrays = []
    rows: list[int] = []
    for piece in pieces:
        before = data.draw(st.integers(0, len(piece)))  # a piece may be the end of a larger array
        start = sum(map(len, arrays))
        arrays.append(pa.array(piece, IDS).slice(before))
        if len(arrays[-1]):
            rows += [start + row for row in data.draw(st.lists(st.integers(0, len(arrays[-1]) - 1), max_size=5))]
    whole = [row for array in arrays for row in array.to_pylist()]
    found = taken(pa.chunked_array(arrays, IDS), np.array(rows, np.int64))
    found.validate(full=True)
    assert found.type == IDS and found.to_pylist() == [whole[row] for row in rows]
    texts = pa.chunked_array([pa.array([str(row) for row in array.to_pylist()], pa.string()) for array in arrays])
    assert taken(texts, np.array(rows, np.int64)).to_pylist() == [str(whole[row]) for row in rows]


def test_shards_are_joined_without_a_copy() -> None:
    groups = [group("p", ["a", "bb"]), group("q", ["c", "dd"])]
    shards = [shard_of([one], judged([one], [[1.0, 0.0]])) for one in groups]
    whole = joined(shards)
    texts = [piece.buffers()[2].address for piece in whole.candidates["text"].chunks]
    assert texts == [shard.candidates["text"].chunk(0).buffers()[2].address for shard in shards]
    assert whole.candidates["text"].to_pylist() == ["a", "bb", "c", "dd"]
