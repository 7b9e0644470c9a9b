"""The GPU's form of attention over packed prompt groups: flex attention with a block mask made from the pack.

No CPU has its backward pass, so there only its mask and its forward pass can be tried.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from trainers.packing import Pack

BLOCK = 128
"""Queries, and keys, of a block of the mask: what flex attention's kernels take unless told."""
RECOMPILES = 64
"""Kernels for each of dtype, window, soft cap, gradients wanted of query, key or value alone, short rows … . Past
dynamo's own limit of 8 flex attention would fall back, with a warning, to scores of [heads, T, T]."""


def flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float, softcap: float | None) -> Tensor:
    """[1, heads, T, dim] to [1, T, heads, dim]; compiled on a GPU."""

    def cap(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    on_gpu = query.device.type == "cuda"
    out: Tensor = (_compiled() if on_gpu else flex_attention)(
        query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1],
        score_mod=None if softcap is None else cap,
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True} if on_gpu else None,  # not the kernel made for decoding
    )  # fmt: skip
    return out.transpose(1, 2)


def block_mask(pack: Pack, window: int | None) -> BlockMask:
    """Who sees whom in the pack, by blocks and within them; with a ``window`` the last ``window`` positions only.

    Made a row of blocks at a time: ``create_block_mask`` holds several [T, T] matrices, 3 GB at 16k tokens.
    """
    device, length = pack.input_ids.device, pack.input_ids.shape[1]
    groups, branches = (part.to(device) for part in _memberships(pack))
    positions = pack.position_ids[0].int()

    def visible(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        same = (groups[query] == groups[key]) & ((branches[key] == 0) | (branches[query] == branches[key]))
        seen = same & (positions[query] >= positions[key])
        return seen if window is None else seen & (positions[query] - positions[key] < window)

    blocks = -(-length // BLOCK)
    some, every = (torch.zeros(blocks, blocks, dtype=torch.bool, device=device) for _ in range(2))
    keys = torch.arange(length, device=device)
    for row in range(blocks):
        queries = keys[row * BLOCK : (row + 1) * BLOCK]
        seen = visible(None, None, queries[:, None], keys[None])
        padding = (0, blocks * BLOCK - length, 0, BLOCK - len(queries))
        cells = F.pad(seen, padding).view(BLOCK, blocks, BLOCK).transpose(0, 1).flatten(1)
        some[row], every[row] = cells.any(1), cells.all(1)
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~every), *_ordered(every), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(length, length)
    )


def _ordered(table: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, columns] as flex attention lists it: how many columns a row has, and which, those first."""
    order = torch.argsort(table.int(), dim=1, descending=True, stable=True)
    return table.sum(1).int()[None, None], order.int()[None, None].contiguous()


def _memberships(pack: Pack) -> tuple[Tensor, Tensor]:
    """[T] group of each token, and its completion within the group: 1, 2, …, or 0 in the prompt."""
    groups, branches = (torch.zeros(pack.input_ids.shape[1], dtype=torch.int32) for _ in range(2))
    for number, span in enumerate(pack.spans):
        groups[span.start :] = number
        for branch, (start, length) in enumerate(span.branches, 1):
            branches[start : start + length] = branch
    return groups, branches


@lru_cache(maxsize=1)
def _compiled() -> Any:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
