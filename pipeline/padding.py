"""Rows of unequal length in one rectangle: which go together, and what fills it up.

Always on the right: then a token's position is the same in every batch.
"""

from collections.abc import Iterator, Sequence

BUDGETS = {"cuda": 16_384, "cpu": 1_024}


def default_budget(device: str) -> int:
    """Tokens a forward pass on a device of that type. A CPU is fastest while a layer's activations stay in its caches:
    16,384 tokens at once took 2.5 times as long as 1,024 at a time."""
    return BUDGETS.get(device, BUDGETS["cuda"])


def by_length(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Positions grouped by similar length, so that rows times the longest row stay within ``token_budget``.

    A row longer than the budget makes a batch of its own.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        # Longest first: a batch's width is its first row's, and a batch too big for the memory fails at once.
        if batch and (len(batch) + 1) * lengths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def padding_id(rows: Sequence[Sequence[int]], own: int | None) -> int:
    """The id to pad ``rows`` with. Decoder classifiers read the logit at the last id that is not this one.

    So a model that has its ``own`` keeps it: it was trained with that reading. One that has none reads the very last
    token, and any id that ends no row leaves it so.
    """
    if own is not None:
        return own
    ends = {row[-1] for row in rows}
    return next(token for token in range(len(ends) + 1) if token not in ends)


def padded(rows: Sequence[Sequence[int]], token: int) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and mask (1 at a row's own tokens), each rows × the longest row."""
    width = max(map(len, rows))
    ids = [[*row, *[token] * (width - len(row))] for row in rows]
    return ids, [[1] * len(row) + [0] * (width - len(row)) for row in rows]
