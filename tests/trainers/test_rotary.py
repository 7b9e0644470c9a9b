from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama

from tests.trainers.naive import make_model
from trainers.rotary import FastRotary, rotate

ROTATE = modeling_llama.apply_rotary_pos_emb


def run(function: Any, *arguments: Tensor) -> list[Tensor]:
    """Rotated queries and keys, and the gradients of a sum of them that tells all their elements apart."""
    q, k, cos, sin = arguments
    leaves = [q.clone().requires_grad_(), k.clone().requires_grad_()]
    outs = function(*leaves, cos, sin)
    total = sum((out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum() for out in outs)
    return [*(out.detach() for out in outs), *torch.autograd.grad(total, leaves)]


def draw(heads: int, tokens: int, dim: int) -> list[Tensor]:
    """Angles are of any size, and differ from one half of a head to the other, as no model's do."""
    generator = torch.Generator().manual_seed(heads)
    queries = torch.randn(1, tokens, heads, dim, generator=generator).transpose(1, 2)
    keys = torch.randn(1, 2, tokens, dim, generator=generator)
    return [queries, keys, *(torch.randn(1, tokens, dim, generator=generator) for _ in range(2))]


@pytest.mark.parametrize("shape", [(4, 7, 16), (2, 1, 2)])
def test_a_rotation_and_its_gradient_are_transformers(shape: tuple[int, int, int]) -> None:
    arguments = draw(*shape)
    for ours, theirs in zip(run(rotate, *arguments), run(ROTATE, *arguments), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "granite"])
def test_a_model_with_it_gives_the_same_and_is_put_back(family: str) -> None:
    model, ids = make_model(family), torch.arange(3, 20)[None]
    before = model(ids).logits
    changed = FastRotary(model)
    attention = model.model.layers[0].self_attn
    assert attention.forward.__func__.__globals__["apply_rotary_pos_emb"] is rotate
    torch.testing.assert_close(model(ids).logits, before)
    changed.remove()
    assert not any("forward" in vars(module) for module in model.modules())


def test_other_models_of_the_family_keep_their_own() -> None:
    changed = FastRotary(make_model("llama"))
    assert modeling_llama.apply_rotary_pos_emb is ROTATE
    assert modeling_llama.LlamaAttention.forward.__globals__["apply_rotary_pos_emb"] is ROTATE
    changed.remove()


PART = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}}


@pytest.mark.parametrize(("family", "more"), [("cohere", {}), ("phi3", PART), ("gpt_neox", PART), ("gpt2", {})])
def test_a_family_that_rotates_otherwise_gives_the_same(family: str, more: dict[str, Any]) -> None:
    """Cohere pairs neighbours, Phi-3 and Pythia may turn a part of a head, GPT-2 has no rotation."""
    model, ids = make_model(family, **more), torch.arange(3, 20)[None]
    before = model(ids).logits
    FastRotary(model)
    torch.testing.assert_close(model(ids).logits, before)
