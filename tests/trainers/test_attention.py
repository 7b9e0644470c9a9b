"""Shared-prefix attention against a softmax over a mask written out token by token."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.errors import TrainingError
from trainers import attention
from trainers.attention import SHARED_PREFIX, DenseBlocks, Layout, flex, shared_prefix_attention
from trainers.packing import PromptGroup, pack
from trainers.rounding import KEYS, QUERIES

DIMENSION = 4

shapes = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=3
)
"""Prompt length and completion lengths of each group."""
Shape = list[tuple[int, list[int]]]


def layout_of(shape: Shape) -> Layout:
    groups = [PromptGroup((0,) * prompt, tuple((0,) * length for length in lengths)) for prompt, lengths in shape]
    return Layout(pack(groups))


def visibility(shape: Shape, window: int | None) -> Tensor:
    """[T, T] whether a query sees a key: same group, in its prompt or own completion, not later, within the window."""
    tokens = []
    for group, (prompt, lengths) in enumerate(shape):
        tokens += [(group, None, position) for position in range(prompt)]
        for branch, length in enumerate(lengths):
            tokens += [(group, branch, prompt + position) for position in range(length - 1)]

    def sees(query: tuple[int, int | None, int], key: tuple[int, int | None, int]) -> bool:
        distance = query[2] - key[2]
        return (
            query[0] == key[0]
            and key[1] in (None, query[1])
            and distance >= 0
            and (window is None or distance < window)
        )

    return torch.tensor([[sees(query, key) for key in tokens] for query in tokens])


def naive(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float, softcap: float | None) -> Tensor:
    """[1, T, heads, dim]"""
    copies = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    scores = scale * query @ key.transpose(-1, -2)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def draw(tokens: int, heads: int, key_heads: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, count, tokens, DIMENSION, generator=generator, dtype=dtype).requires_grad_()
        for count in (heads, key_heads, key_heads)
    ]


@settings(max_examples=200)
@given(
    shapes,
    st.sampled_from([(1, 1), (4, 4), (4, 2), (3, 1)]),
    st.sampled_from([None, 1, 2, 5, 100]),
    st.sampled_from([None, 0.7]),
    st.sampled_from([1, 3, 256]),
)
def test_dense_blocks_are_attention_under_the_visibility_rule(
    shape: Shape, heads: tuple[int, int], window: int | None, softcap: float | None, query_block: int
) -> None:
    visible = visibility(shape, window)
    states = draw(len(visible), *heads)
    weights = torch.randn(1, len(visible), heads[0], DIMENSION, generator=torch.Generator().manual_seed(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERY_BLOCK", query_block)
        ours = DenseBlocks.apply(*states, layout_of(shape).blocks(window, heads=heads[0] // heads[1]), 0.9, softcap)
    mine = torch.autograd.grad((ours * weights).sum(), states)
    exact = [each.detach().double().requires_grad_() for each in states]
    theirs = naive(*exact, visible, 0.9, softcap)
    wanted = torch.autograd.grad((theirs * weights).sum(), exact)
    for got, want in zip((ours, *mine), (theirs, *wanted), strict=True):
        torch.testing.assert_close(
            got.double(), want, rtol=1e-5, atol=1e-5 * max(1.0, float(want.detach().abs().max()))
        )


@pytest.mark.parametrize(("window", "softcap"), list(product((None, 3), (None, 0.7))))
def test_the_gradient_is_that_of_the_forward_pass(window: int | None, softcap: float | None) -> None:
    layout = layout_of([(3, [3, 1, 2]), (1, [2])])
    states = draw(int(layout.pack.input_ids.shape[1]), 4, 2, torch.float64)
    blocks = layout.blocks(window, heads=2)
    assert torch.autograd.gradcheck(lambda *each: DenseBlocks.apply(*each, blocks, 0.5, softcap), states)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=20)
@given(
    shapes,
    st.sampled_from([(4, 4), (4, 2)]),
    st.sampled_from([None, 2, 5]),
    st.sampled_from([None, 0.7]),
)
@torch.no_grad()
def test_the_gpus_block_mask_shows_the_same_as_the_dense_blocks(
    shape: Shape, heads: tuple[int, int], window: int | None, softcap: float | None
) -> None:
    layout = layout_of(shape)
    states = [each.detach() for each in draw(int(layout.pack.input_ids.shape[1]), *heads)]
    ours = DenseBlocks.apply(*states, layout.blocks(window, heads=heads[0] // heads[1]), 0.9, softcap)
    theirs = flex(*states, layout.block_mask(window), 0.9, softcap)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 300])
def test_the_gpus_block_mask_is_the_one_that_flex_attention_would_make(window: int | None) -> None:
    """More than one block each way, so that whole, partial and unseen ones all occur."""
    layout = layout_of([(400, [300, 1, 129]), (20, [5]), (128, [128, 128])])
    ours = layout.block_mask(window)
    assert ours.mask_mod is not None
    length = int(layout.pack.input_ids.shape[1])
    theirs = create_block_mask(ours.mask_mod, None, None, length, length, device="cpu")
    for table in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert getattr(ours, table).equal(getattr(theirs, table)), table
    assert ours.to_dense().equal(theirs.to_dense())
    assert ours.full_kv_num_blocks is not None
    assert 0 < int(ours.full_kv_num_blocks.sum()) < int(ours.kv_num_blocks.sum() + ours.full_kv_num_blocks.sum())


def test_a_completion_of_one_token_adds_no_query() -> None:
    shape: Shape = [(4, [1, 1]), (2, [1, 3])]
    assert len(visibility(shape, None)) == 4 + 2 + 2
    covered = [block.queries for block in layout_of(shape).blocks(None)]
    assert sorted(row for part in covered for row in range(part.start, part.stop)) == list(range(8))


def test_packs_of_other_lengths_take_products_of_few_shapes() -> None:
    """A CPU compiles a kernel for each: of 60 packs nearly all lengths differ, and hardly any shape."""
    shapes, lengths = set(), set()
    for number in range(60):
        prompt, completions = 60 + 7 * number, [20 + 3 * number, 200 - 3 * number]
        layout = layout_of([(prompt, completions)])
        lengths |= {prompt, *completions}
        for block in layout.blocks(None):
            keys = sum(part.stop - part.start for part in block.keys)
            queries = block.wide.stop - block.wide.start
            shapes.add((queries, keys))
            assert (len(block.mask), queries % QUERIES, keys % KEYS) == (queries, 0, 0)
    assert len(lengths) > 110
    assert len(shapes) < 60


def test_blocks_and_masks_are_made_once_a_pack_and_window() -> None:
    layout = layout_of([(4, [3, 2])])
    assert layout.blocks(3) is layout.blocks(3)
    assert layout.blocks(3) is not layout.blocks(None)
    assert layout.block_mask(3) is layout.block_mask(3)


def test_bfloat16_keys_gather_their_gradient_in_float32() -> None:
    """One prompt key of a thousand completions: added up in bfloat16 the last ones would be lost."""
    layout, visible = layout_of([(1, [2] * 1000)]), visibility([(1, [2] * 1000)], None)
    query, key, value = (each.detach().bfloat16().requires_grad_() for each in draw(len(visible), 1, 1))
    DenseBlocks.apply(query, key, value, layout.blocks(None), 1.0, None).sum().backward()
    exact = [each.detach().double().requires_grad_() for each in (query, key, value)]
    naive(*exact, visible, 1.0, None).sum().backward()
    assert value.grad is not None
    assert exact[2].grad is not None
    torch.testing.assert_close(value.grad[0, 0, 0].double(), exact[2].grad[0, 0, 0], rtol=5e-3, atol=0.0)


def test_autocast_computes_in_its_own_type_whatever_rope_left() -> None:
    layout = layout_of([(3, [3, 2])])
    query, key, value = draw(int(layout.pack.input_ids.shape[1]), 2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = shared_prefix_attention(torch.nn.Module(), query, key, value.bfloat16(), None, layout=layout)
    assert out.dtype == torch.bfloat16
    torch.autograd.grad(out.sum(), query)


# ---------------------------------------------------------------------------------------------- in a model
def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=19, initializer_range=0.3, **shape)).eval()


@torch.no_grad()
def test_stock_attention_would_read_a_packs_second_completion_without_its_prompt() -> None:
    """The trap: positions that step back mean a new sequence to ``transformers``, and no error says so."""
    model = tiny()
    packed = pack([PromptGroup((1, 2, 3, 4), ((5, 6, 7, 8), (9, 10, 11, 12)))])
    inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "use_cache": False}
    alone = [model(torch.tensor([[1, 2, 3, 4, *branch]])).logits[0, 4:] for branch in ((5, 6, 7), (9, 10, 11))]
    model.set_attn_implementation("sdpa")
    stock = model(**inputs).logits[0, 4:]
    model.set_attn_implementation(SHARED_PREFIX)
    ours = model(**inputs, layout=Layout(packed)).logits[0, 4:]
    torch.testing.assert_close(stock[:3], alone[0], rtol=1e-4, atol=1e-5)
    assert (stock[3:] - alone[1]).abs().max() > 0.1
    torch.testing.assert_close(ours, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_call_without_a_layout_is_refused() -> None:
    model = tiny()
    model.set_attn_implementation(SHARED_PREFIX)
    with pytest.raises(TrainingError, match="needs a pack's layout"):
        model(torch.tensor([[1, 2, 3]]))


def test_attention_sinks_are_refused() -> None:
    layout = layout_of([(3, [3, 2])])
    states = draw(int(layout.pack.input_ids.shape[1]), 1, 1)
    with pytest.raises(TrainingError, match="no attention sinks"):
        shared_prefix_attention(torch.nn.Module(), *states, None, layout=layout, s_aux=torch.zeros(1))
