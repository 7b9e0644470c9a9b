"""Attention over packed prompt groups, plugged into unmodified ``transformers`` models.

A token attends every earlier token of its own group that lies in the prompt or in its own completion. ``shared_prefix``
is registered as an attention implementation; the pack's :class:`Layout` reaches it through the model's keyword
arguments. On a GPU it runs as flex attention with a block mask; on a CPU as dense blocks, which beat every fused CPU
kernel at these lengths in bfloat16.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from pipeline.errors import TrainingError
from trainers.flex import block_mask, flex
from trainers.packing import Pack
from trainers.rounding import KEYS, QUERIES, up, up_finely

SHARED_PREFIX = "shared_prefix"
QUERY_BLOCK = 256
"""Queries a dense block, about: smaller wastes less on masked scores, larger has fewer calls."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some queries of a row with all the keys they may see, and a few neighbours of both that round the sizes up."""

    queries: slice
    wide: slice
    """The queries and those after them that nobody asked for: their probabilities are set to 0."""
    keys: tuple[slice, ...]
    """One slice, or the prompt's and the completion's own; the last goes on into hidden keys."""
    mask: Tensor
    """[wide · heads a key head, columns] −∞ where a score is hidden, else 0, for the last columns only: those before
    are seen by all. In bfloat16, which adds to any type."""


@dataclass(slots=True)
class Layout:
    """Who may attend to whom in a pack, in the forms that the kernels take; made once a pack, used by every layer."""

    pack: Pack
    last_layer: int | None = None
    """Index of the model's last layer: of its queries only :attr:`needed` ones matter."""
    _blocks: dict[tuple[int | None, bool, int], list[Block]] = field(default_factory=dict)
    _masks: dict[int | None, Any] = field(default_factory=dict)
    _needed: Tensor | None = None

    @property
    def needed(self) -> Tensor:
        """Places in the row, ascending, that predict a target: of a prompt the last one only.

        On a CPU others are among them, the first ones of the row, that round their number up.
        """
        if self._needed is None:
            wanted = torch.zeros(self.pack.input_ids.shape[1], dtype=torch.bool, device=self.pack.input_ids.device)
            wanted[self.pack.predictors] = True
            if wanted.device.type == "cpu":
                count = int(wanted.sum())
                wanted[(~wanted).nonzero()[: up_finely(count) - count, 0]] = True
            self._needed = wanted.nonzero()[:, 0]
        return self._needed

    def blocks(self, window: int | None, layer: int | None = None, heads: int = 1) -> list[Block]:
        """Dense blocks for ``heads`` query heads a key head.

        With a ``window`` a token sees the last ``window`` positions only, itself included.
        """
        kind = (window, layer is not None and layer == self.last_layer, heads)
        if kind not in self._blocks:
            self._blocks[kind] = _dense_blocks(self.pack, *kind)
        return self._blocks[kind]

    def block_mask(self, window: int | None) -> Any:
        """The same as flex attention's BlockMask."""
        if window not in self._masks:
            self._masks[window] = block_mask(self.pack, window)
        return self._masks[window]


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """``transformers``' attention interface: [1, heads, T, dim] queries to [1, T, heads, dim]. Dropout is ignored.

    Raises:
        TrainingError: the model was called without a layout, or has attention sinks, which are not supported.
    """
    if layout is None or s_aux is not None:
        raise TrainingError("shared-prefix attention needs a pack's layout and knows no attention sinks")
    device = query.device.type
    # Under autocast RoPE leaves query and key in float32 beside a bfloat16 value; fused kernels cast, ours must.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if device == "cpu":
        with torch.autocast(device, enabled=False):
            heads = query.shape[1] // key.shape[1]
            blocks = layout.blocks(sliding_window, getattr(module, "layer_idx", None), heads)
            return DenseBlocks.apply(query, key, value, blocks, scale, softcap), None  # type: ignore[no-untyped-call]
    return flex(query, key, value, layout.block_mask(sliding_window), scale, softcap), None


# Compiled layers break their graph here: traced through, every pack's blocks would be compiled anew.
AttentionInterface.register(SHARED_PREFIX, torch.compiler.disable(shared_prefix_attention))


class DenseBlocks(torch.autograd.Function):
    """softmax(scale · QKᵀ) V block by block, probabilities kept for the backward pass; zeros for queries in no block.

    Queries are laid out as [key heads, T, heads a key head, dim]: the query heads of a key head are rows of one matrix,
    so that grouped-query attention copies no key, and a block of queries is a slice, copied neither.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float, softcap: float | None
    ) -> Tensor:
        k, v = _with_room(key[0]), _with_room(value[0])
        heads = query[0].unflatten(0, (len(k), -1)).transpose(1, 2)
        q = _with_room(heads).mul_(scale)
        out: Tensor = heads.new_zeros(*heads.shape[:-1], v.shape[-1])  # values may be wider than keys
        probabilities, bends = [], []
        for block in blocks:
            scores = torch.bmm(_rows(q, block.wide), _take(k, block.keys).transpose(1, 2))
            if softcap is not None:
                bends.append(scores.div_(softcap).tanh_())
                scores = scores * softcap
            scores[..., -block.mask.shape[1] :].add_(block.mask)
            p = torch.softmax(scores, -1)
            asked = _rows(out, block.queries)
            p[:, asked.shape[1] :] = 0
            probabilities.append(p)
            asked.copy_(torch.bmm(p, _take(v, block.keys))[:, : asked.shape[1]])
        ctx.save_for_backward(q, k, v, *probabilities, *bends)
        ctx.blocks, ctx.scale, ctx.tokens = blocks, scale, key.shape[2]
        return out.transpose(0, 1).flatten(1, 2)[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, *saved = ctx.saved_tensors
        d = _with_room(grad[0].unflatten(1, (len(k), -1)).transpose(0, 1))
        dq = torch.zeros_like(q)
        dk, dv = (torch.zeros_like(each, dtype=torch.float32) for each in (k, v))
        for number, block in enumerate(ctx.blocks):
            p, dout = saved[number], _rows(d, block.wide)
            dp = torch.bmm(dout, _take(v, block.keys).transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            if len(saved) > len(ctx.blocks):
                ds.mul_(1 - saved[len(ctx.blocks) + number] ** 2)
            asked = _rows(dq, block.queries)
            asked.copy_(torch.bmm(ds, _take(k, block.keys))[:, : asked.shape[1]])
            _give(dk, block.keys, torch.bmm(ds.transpose(1, 2), _rows(q, block.wide)))
            _give(dv, block.keys, torch.bmm(p.transpose(1, 2), dout))
        dq = dq[:, : ctx.tokens].mul_(ctx.scale).transpose(1, 2).flatten(0, 1)[None]
        dk, dv = (each[:, : ctx.tokens].to(k.dtype)[None] for each in (dk, dv))
        return dq, dk, dv, None, None, None


def _with_room(heads: Tensor) -> Tensor:
    """A copy of [key heads, T, …] with zeros after the last token, for blocks that were rounded up."""
    padded = heads.new_empty(len(heads), heads.shape[1] + max(QUERIES, KEYS), *heads.shape[2:])
    padded[:, : heads.shape[1]] = heads
    padded[:, heads.shape[1] :] = 0
    return padded


def _rows(heads: Tensor, queries: slice) -> Tensor:
    """Some queries of [key heads, T, heads a key head, dim] as [key heads, rows, dim], without a copy."""
    return heads[:, queries].flatten(1, 2)


def _take(states: Tensor, slices: tuple[slice, ...]) -> Tensor:
    parts = [states[:, part] for part in slices]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _give(states: Tensor, slices: tuple[slice, ...], grads: Tensor) -> None:
    start = 0
    for part in slices:
        end = start + part.stop - part.start
        states[:, part] += grads[:, start:end]
        start = end


def _dense_blocks(pack: Pack, window: int | None, needed_alone: bool, heads: int) -> list[Block]:
    """The first completion follows its prompt, so both are one causal run; every other one sees the prompt first."""
    positions = pack.position_ids[0].cpu()
    blocks = []
    for span in pack.spans:
        branch = span.start + span.prompt
        stem = branch + (span.branches[0][1] if span.branches else 0)
        first = branch - 1 if needed_alone else span.start
        blocks += _causal_run(positions, first, stem, slice(span.start, first), window, heads)
        for start, length in span.branches[1:]:
            blocks += _causal_run(positions, start, start + length, slice(span.start, branch), window, heads)
    return blocks


def _causal_run(positions: Tensor, start: int, end: int, before: slice, window: int | None, heads: int) -> list[Block]:
    """Blocks for the queries start … end, which see each other causally and all of ``before``."""
    blocks = []
    count = max(1, round((end - start) / QUERY_BLOCK))
    bounds = [start + (end - start) * number // count for number in range(count + 1)]
    for first, last in pairwise(bounds) if end > start else ():
        keys = [part for part in (before, slice(start, last)) if part.stop > part.start]
        columns = torch.cat([positions[part] for part in keys])
        distance = positions[first:last, None] - columns[None]
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        shown_to_all = 0 if window is not None else len(columns) - (last - first)
        size, width = up(last - first, QUERIES), up(len(columns), KEYS)
        # What nobody asked for sees the first column, since a softmax of nothing is not a number.
        mask = torch.full((size, width - shown_to_all), -torch.inf, dtype=torch.bfloat16)
        mask[: last - first, : len(columns) - shown_to_all][~hidden[:, shown_to_all:]] = 0
        mask[last - first :, 0] = 0
        mask = mask.repeat_interleave(heads, 0)
        keys[-1] = slice(keys[-1].start, keys[-1].stop + width - len(columns))
        blocks.append(Block(slice(first, last), slice(first, first + size), tuple(keys), mask))
    return blocks
