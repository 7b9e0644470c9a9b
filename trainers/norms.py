"""RMSNorm on a CPU, a tile of tokens at a time.

``transformers`` writes it as half a dozen operations on float32 copies of all tokens, and autograd makes a dozen more
of them: of a step of a small model a tenth was spent on carrying these copies to memory and back. Here a tile stays in
the cache from the first operation to the last. On a GPU, and in compiled layers, norms stay as they are.
"""

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

TILE = 1 << 16
"""Elements worked on at once: a quarter of a megabyte in float32."""


class RMSNorm(torch.autograd.Function):
    """weight · x / √(mean(x²) + eps) over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467), as Llama
    rounds it: in float32 up to the product with the weight. Gradients are computed in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = states.flatten(0, -2)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = scale.square_().div_(x.shape[1]).add_(eps).rsqrt_()
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part in _tiles(x):
            torch.mul((x[part] * scale[part]).to(x.dtype), weight, out=out[part])
        ctx.save_for_backward(x, weight, scale)
        return out.view(states.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        given, dx, dw = grad.reshape(x.shape), torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
        for part in _tiles(x):
            unit, d = x[part] * scale[part], given[part].to(torch.float32, copy=True)  # neither is anybody else's
            along = d * unit
            dw += along.sum(0)
            mean = torch.mv(along, weight.float())[:, None].div_(x.shape[1])
            dx[part] = d.mul_(weight).addcmul_(unit, mean, value=-1).mul_(scale[part])
        return dx.view(grad.shape), dw.to(weight.dtype) if ctx.needs_input_grad[1] else None, None


class TiledNorms:
    """``model``'s norms replaced by :class:`RMSNorm`, those that compute the same; all others stay as they are."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._replaced = [module for module in model.modules() if is_rms_norm(module)]
        for module in self._replaced:
            module.forward = partial(_forward, module)

    def remove(self) -> None:
        for module in self._replaced:
            vars(module).pop("forward", None)


@torch.no_grad()
def is_rms_norm(module: torch.nn.Module) -> bool:
    """Whether it is Llama's norm. Families have others of the same names, so this tries it out on a few numbers."""
    weight = getattr(module, "weight", None)
    if not isinstance(getattr(module, "variance_epsilon", None), float) or weight is None:
        return False
    x = torch.linspace(-3, 2, 4 * len(weight)).view(1, 4, -1).to(weight.dtype)
    try:
        theirs = module(x)
    except (TypeError, AttributeError, RuntimeError):  # one with a gate
        return False
    same = torch.allclose(theirs, _forward(module, x), rtol=8 * torch.finfo(weight.dtype).eps, atol=0)
    return same and len(inspect.signature(module.forward).parameters) == 1


def _forward(module: Any, states: Tensor) -> Tensor:
    out: Tensor = RMSNorm.apply(states, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    return out


def _tiles(x: Tensor) -> list[slice]:
    rows = max(1, TILE // x.shape[1])
    return [slice(start, start + rows) for start in range(0, len(x), rows)]
