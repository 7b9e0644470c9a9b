"""The filters: which of the comparisons that a rule allows may become pairs.

Each has a name, which is the reason a group is dropped for where that filter takes its last comparison. What concerns
whole groups (``abstained``, ``empty`` and so on) is in ``standings``, similarity and ``keep``, which come after the
order, in ``comparisons``.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from pipeline.config import PairingConfig
from pipeline.pairing.columns import Bools, Columns, Floats, Indices, taken
from pipeline.pairing.identity import in_words, same_ids
from pipeline.pairing.yardstick import Yardstick

Filter = tuple[str, Callable[[Bools], Bools]]
"""Its name, and what it leaves of comparisons [groups, chosen, rejected]."""
Reading = Callable[[pa.ChunkedArray], pa.ChunkedArray]


def filters(
    columns: Columns, scores: Floats, codes: Indices, groups: Indices, config: PairingConfig, yardstick: Yardstick
) -> Iterator[Filter]:
    """Those the config asks for, in the order of ``pairing.REASONS``.

    Args:
        scores: [groups of the shard, candidates], the compared ones.
        codes: [groups, candidates], of :func:`text_codes`.
        groups: whose comparisons are filtered.
    """
    raw, compared = columns.raw[groups], scores[groups]
    with np.errstate(invalid="ignore"):
        margins = compared[:, :, None] - compared[:, None, :]
    yield "tie", lambda left: left & (raw[:, :, None] != raw[:, None, :]) & (margins > yardstick.rounding)
    if config.margin:
        yield "margin", lambda left: left & (margins >= yardstick.least(config))
    if config.min_score_chosen is not None:
        floor = config.min_score_chosen
        yield "floor", lambda left: left & (compared >= floor)[:, :, None]
    if config.max_length_ratio is not None:
        most, lengths = config.max_length_ratio, columns.lengths[groups]
        yield "length_ratio", lambda left: left & _of_like_length(lengths, most)
    yield "identical", lambda left: _different(columns, groups, codes, left)
    if config.drop_same_words:
        worded = text_codes(columns, groups, in_words)
        yield "same_words", lambda left: left & (worded[:, :, None] != worded[:, None, :])


def _of_like_length(lengths: Floats, most: float) -> Bools:
    one, other = lengths[:, :, None], lengths[:, None, :]
    like: Bools = np.maximum(one, other) <= most * np.minimum(one, other)
    return like


def _different(columns: Columns, groups: Indices, codes: Indices, comparisons: Bools) -> Bools:
    """The comparisons whose candidates are different completions."""
    group, one, other = comparisons.nonzero()
    distinct = comparisons.copy()
    alike = codes[group, one] == codes[group, other]
    unlike = np.flatnonzero(~alike)
    left, right = (columns.rows(groups[group[unlike]], place[unlike]) for place in (one, other))
    alike[unlike] = same_ids(columns, left, right)
    distinct[group, one, other] = ~alike
    return distinct


def text_codes(columns: Columns, groups: Indices, read: Reading = lambda texts: texts) -> Indices:
    """[groups, candidates]: numbers that are equal where the texts are, as ``read`` has them; −1 where the group is
    smaller."""
    places = np.arange(columns.raw.shape[1])
    present = places < columns.sizes[groups][:, None]
    rows = (columns.starts[groups][:, None] + places)[present]
    codes = np.full(present.shape, -1, np.int64)
    coded = read(taken(columns.texts, rows)).dictionary_encode()  # all pieces by one dictionary
    codes[present] = np.concatenate([np.empty(0, np.int32), *(piece.indices.to_numpy() for piece in coded.chunks)])
    return codes
