"""The last layer's MLP only where a token is predicted: nobody reads what it makes of the rest of a prompt.

The saving is one layer's MLP on all prompt tokens but the last of each prompt, forward and backward; with long prompts
and few layers several per cent of a step.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D


class LastLayer:
    """Hooks round the MLP of ``model``'s last decoder layer, where it has one that works token by token.

    Tokens left out get zeros from the MLP: their last hidden states are wrong, and are used by nobody. A model without
    such an MLP (experts, another name) runs it on all tokens.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._needed: Tensor | None = None
        self._width: int | None = None
        self._hooks = []
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        mlp = token_wise_mlp(layers[-1]) if layers else None
        if mlp is not None:
            self._hooks = [
                layers[-1].register_forward_pre_hook(self._read, with_kwargs=True),
                mlp.register_forward_pre_hook(self._select), mlp.register_forward_hook(self._spread),
            ]  # fmt: skip

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _read(self, _layer: torch.nn.Module, _inputs: Any, keywords: dict[str, Any]) -> None:
        """What is needed comes with the pack's layout, in a recomputation too; without one all is."""
        layout = keywords.get("layout")
        self._needed, self._width = None if layout is None else layout.needed, None

    def _select(self, _mlp: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._needed is None or inputs[0].shape[1] == len(self._needed):  # all, or another's hooks were first
            return None
        self._width = inputs[0].shape[1]
        return (inputs[0].index_select(1, self._needed), *inputs[1:])

    def _spread(self, _mlp: torch.nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if self._needed is None or self._width is None:
            return None
        return output.new_zeros(1, self._width, output.shape[2]).index_copy(1, self._needed, output)


def token_wise_mlp(layer: torch.nn.Module) -> torch.nn.Module | None:
    """The layer's ``mlp``, if all its weights are linear maps of single tokens: no router, no experts."""
    mlp = getattr(layer, "mlp", None)
    if not isinstance(mlp, torch.nn.Module):
        return None
    maps = (module for module in mlp.modules() if isinstance(module, torch.nn.Linear | Conv1D))
    linear = {id(weight) for module in maps for weight in module.parameters()}
    return mlp if all(id(weight) in linear for weight in mlp.parameters()) else None
