"""Rotary positions on a CPU in half of the passes over memory.

``transformers`` writes the rotation of a query as q · cos + cat(−q₂, q₁) · sin, which autograd takes apart again in ten
operations. A rotation's gradient is the rotation back: here both are three operations, in place but for the first.
"""

from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

NAME = "apply_rotary_pos_emb"
"""What ``transformers`` calls the function in every family's module."""


class Rotate(torch.autograd.Function):
    """x · cos + (−x₂, x₁) · sin, where x = (x₁, x₂) (Su et al. 2021, arXiv:2104.09864, with halves for its pairs).

    ``x`` [1, heads, T, dim], ``cos`` and ``sin`` [1, 1, T, dim] without gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        left, right = _halves(x)
        out = x * cos
        for half, other, angle, sign in zip(_halves(out), (right, left), _halves(sin), (-1, 1), strict=True):
            half.addcmul_(other, angle, value=sign)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        (left, right), angles = _halves(grad), _halves(sin)
        out = grad * cos
        for half, other, angle, sign in zip(_halves(out), (right, left), reversed(angles), (1, -1), strict=True):
            half.addcmul_(other, angle, value=sign)
        return out, None, None


class FastRotary:
    """``model``'s attention layers with :func:`rotate` for their own function, where it computes the same.

    They find that function among the globals of their module, which all models of a family share. So a layer gets its
    own ``forward`` once more, with other globals, and nothing changes for others.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        forwards = {kind: _forward_of(kind) for kind in {type(module) for module in model.modules()}}
        self._replaced = [module for module in model.modules() if forwards[type(module)] is not None]
        for module in self._replaced:
            module.forward = MethodType(forwards[type(module)], module)  # type: ignore[arg-type]

    def remove(self) -> None:
        for module in self._replaced:
            vars(module).pop("forward", None)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Queries and keys [1, heads, T, dim] turned by their positions' angles [1, T, dim]."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return Rotate.apply(q, cos, sin), Rotate.apply(k, cos, sin)  # type: ignore[no-untyped-call]


def _forward_of(kind: type[torch.nn.Module]) -> FunctionType | None:
    """The class's ``forward`` with :func:`rotate`; None where it rotates otherwise, or not at all."""
    forward = kind.__dict__.get("forward")
    if not isinstance(forward, FunctionType) or NAME not in forward.__code__.co_names:
        return None
    if not _is_rotation(forward.__globals__.get(NAME)):
        return None
    own = FunctionType(
        forward.__code__, forward.__globals__ | {NAME: rotate}, forward.__name__, forward.__defaults__,
        forward.__closure__,
    )  # fmt: skip
    own.__kwdefaults__ = forward.__kwdefaults__
    return own


def _is_rotation(function: Any) -> bool:
    """Families have others of the same name, so this tries it out on a few numbers.

    One that also turns a part of a head, as Pythia's does, is not ours: which it is to be is in a model's angles.
    """
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 3, 8, generator=generator) for heads in (2, 1))
    cos, sin = (torch.randn(1, 3, 8, generator=generator) for _ in range(2))
    theirs, part = _tried(function, q, k, cos, sin), _tried(function, q, k, cos[..., :4], sin[..., :4])
    if theirs is None or part is not None:
        return False
    return all(a.shape == b.shape and torch.allclose(a, b) for a, b in zip(theirs, rotate(q, k, cos, sin), strict=True))


def _tried(function: Any, *arguments: Tensor) -> Any:
    try:
        return function(*arguments)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return None


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    left, right = x.chunk(2, -1)
    return left, right
