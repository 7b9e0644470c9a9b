from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from tests.trainers.naive import make_model
from trainers import norms
from trainers.norms import RMSNorm, TiledNorms, is_rms_norm

EPS = 1e-5


def plain(states: Tensor, weight: Tensor) -> Tensor:
    """The paper's equation 4."""
    return states / (states.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight


def run(function: Any, states: Tensor, weight: Tensor, given: Tensor) -> tuple[Tensor, ...]:
    """Result, and the gradients of both arguments."""
    leaves = [each.clone().requires_grad_() for each in (states, weight)]
    out = function(*leaves)
    return (out.detach(), *torch.autograd.grad(out, leaves, given.to(out.dtype)))


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 9, 16), (1, 2, 9, 16), (1, 1, 1)])
@pytest.mark.parametrize("tile", [16, 48, 1 << 16])
def test_a_tiled_norm_and_its_gradients_are_the_papers(
    shape: tuple[int, ...], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "TILE", tile)
    arguments = draw(*shape), draw(shape[-1]), draw(*shape, 1)[..., 0]
    ours = run(lambda x, w: RMSNorm.apply(x, w, EPS), *(each.float() for each in arguments))
    for mine, wanted in zip(ours, run(plain, *arguments), strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_states_nor_the_gradient_given_are_written_to(dtype: torch.dtype) -> None:
    arguments = [each.to(dtype) for each in (draw(1, 9, 16), draw(16), draw(1, 9, 16, 1)[..., 0])]
    before = [each.clone() for each in arguments]
    leaf = arguments[0].requires_grad_()
    torch.autograd.grad(RMSNorm.apply(leaf, arguments[1], EPS), leaf, arguments[2])
    assert all(torch.equal(now, then) for now, then in zip(arguments, before, strict=True))


def test_states_that_lie_otherwise_in_memory_give_the_same() -> None:
    """Norms of queries and keys get them as [1, heads, T, dim] views."""
    states, weight, given = draw(1, 5, 3, 8).float().transpose(1, 2), draw(8).float(), draw(1, 3, 5, 8).float()
    function = lambda x, w: RMSNorm.apply(x, w, EPS)  # noqa: E731
    views, copies = (run(function, each, weight, given) for each in (states, states.contiguous()))
    torch.testing.assert_close(views, copies)


def test_in_bfloat16_gradients_are_as_exact_as_transformers() -> None:
    norm = make_model("llama", hidden_size=64).model.norm.bfloat16()
    torch.nn.init.normal_(norm.weight, 1, 0.2)
    states, given = draw(1, 300, 64).bfloat16(), draw(1, 300, 64, 1)[..., 0].bfloat16()
    exact = run(plain, states.double(), norm.weight.detach().double(), given.double())

    def theirs(x: Tensor, w: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": w}, (x,))

    def errors(found: tuple[Tensor, ...]) -> list[float]:
        return [float((mine.double() - wanted).norm()) for mine, wanted in zip(found, exact, strict=True)]

    ours = errors(run(lambda x, w: RMSNorm.apply(x, w, norm.variance_epsilon), states, norm.weight.detach(), given))
    others = errors(run(theirs, states, norm.weight.detach(), given))
    assert all(mine <= 1.05 * other for mine, other in zip(ours, others, strict=True)), (ours, others)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "phi3"])
def test_llamas_norm_is_known_in_other_families(family: str) -> None:
    model = make_model(family, hidden_size=512)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, 1, 0.2)
    found = [module for module in model.modules() if is_rms_norm(module)]
    assert len(found) == sum(type(module).__name__.endswith("RMSNorm") for module in model.modules()) > 0


@pytest.mark.parametrize(("family", "more"), [("gemma2", {"head_dim": 16}), ("gpt2", {}), ("cohere", {})])
def test_norms_that_compute_something_else_are_left_alone(family: str, more: dict[str, Any]) -> None:
    assert not any(is_rms_norm(module) for module in make_model(family, **more).modules())


def test_a_norm_with_a_gate_is_left_alone() -> None:
    gated = Qwen3NextRMSNormGated(8)
    assert not is_rms_norm(gated)


def test_norms_are_put_back() -> None:
    model = make_model("llama")
    changed = TiledNorms(model)
    assert "forward" in vars(model.model.norm)
    changed.remove()
    assert not any("forward" in vars(module) for module in model.modules())
