"""Which completions are the same, or nearly: by text, by token ids, by edit distance."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pairing.columns import Bools, Columns, Floats, Indices


def same(columns: Columns, left: Indices, right: Indices) -> Bools:
    """Whether the candidates in these rows have one text or, where they have any, the same token ids."""
    equal: Bools = columns.text_sizes[left] == columns.text_sizes[right]
    likely = np.flatnonzero(equal)
    texts = (columns.texts.take(pa.array(rows[likely])) for rows in (left, right))
    equal[likely] = pc.equal(*texts).to_numpy(zero_copy_only=False)
    others = np.flatnonzero(~equal)
    equal[others] = same_ids(columns.token_ids, left[others], right[others])
    return equal


def same_ids(token_ids: pa.ListArray, left: Indices, right: Indices) -> Bools:
    """Whether two sequences of ids are equal and not empty, a row each."""
    offsets, ids = token_ids.offsets.to_numpy(), token_ids.values.to_numpy()
    starts, sizes = offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
    equal: Bools = (sizes[left] == sizes[right]) & (sizes[left] > 0)
    likely = np.flatnonzero(equal)
    if not len(likely):
        return equal
    left, right = left[likely], right[likely]
    counts = sizes[left]
    firsts = np.cumsum(counts) - counts
    steps = np.arange(counts.sum()) - np.repeat(firsts, counts)
    agree = ids[np.repeat(starts[left], counts) + steps] == ids[np.repeat(starts[right], counts) + steps]
    equal[likely] = np.logical_and.reduceat(agree, firsts)
    return equal


def similarities(columns: Columns, left: Indices, right: Indices) -> Floats:
    """1 − (insertions + deletions) / (both lengths together), in characters: normalised Indel similarity."""
    from rapidfuzz.distance import Indel
    from rapidfuzz.process import cpdist

    if not len(left):
        return np.zeros(0)
    texts = (columns.texts.take(pa.array(rows)).to_pylist() for rows in (left, right))
    found: Floats = cpdist(*texts, scorer=Indel.normalized_similarity, dtype=np.float64)
    return found
