"""Which completions are the same, or nearly: by text, by token ids, by edit distance."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pairing.columns import Bools, Columns, Floats, Indices, taken


def same(columns: Columns, left: Indices, right: Indices) -> Bools:
    """Whether the candidates in these rows have one text or, where they have any, the same token ids."""
    equal: Bools = columns.text_sizes[left] == columns.text_sizes[right]
    likely = np.flatnonzero(equal)
    equal[likely] = pc.equal(*(taken(columns.texts, rows[likely]) for rows in (left, right))).to_numpy()
    others = np.flatnonzero(~equal)
    equal[others] = same_ids(columns, left[others], right[others])
    return equal


def same_ids(columns: Columns, left: Indices, right: Indices) -> Bools:
    """Whether the candidates in these rows have the same token ids, and have any."""
    sizes = columns.id_sizes[left]
    equal: Bools = (sizes == columns.id_sizes[right]) & (sizes > 0)
    likely = np.flatnonzero(equal)
    if len(likely):
        one, other = (pc.list_flatten(taken(columns.token_ids, rows[likely])).to_numpy() for rows in (left, right))
        counts = sizes[likely]
        equal[likely] = np.logical_and.reduceat(one == other, np.cumsum(counts) - counts)
    return equal


def same_words(columns: Columns, left: Indices, right: Indices) -> Bools:
    """Whether the texts in these rows are the same words in the same order."""
    equal: Bools = pc.equal(*(in_words(taken(columns.texts, rows)) for rows in (left, right))).to_numpy()
    return equal


def in_words(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """With one space between any two words, and no white space about them."""
    return pc.binary_join(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts)), " ")


def similarities(columns: Columns, left: Indices, right: Indices) -> Floats:
    """1 − (insertions + deletions) / (both lengths together), in characters: normalised Indel similarity."""
    from rapidfuzz.distance import Indel
    from rapidfuzz.process import cpdist

    if not len(left):
        return np.zeros(0)
    texts = (taken(columns.texts, rows).to_pylist() for rows in (left, right))
    found: Floats = cpdist(*texts, scorer=Indel.normalized_similarity, dtype=np.float64)
    return found
