"""A model's trainable weights: what the optimiser moves, and where gradients gather, always in float32.

In bfloat16 the model computes with rounded copies. At the learning rates of preference training a step moves a weight
by less than bfloat16 can tell apart, so the optimiser keeps the weights themselves, and gradients of many packs are
added up in float32. Nothing is cast in between as autocast does: activations are bfloat16 from the embedding on.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def round_parameters(model: PreTrainedModel, dtype: torch.dtype, exact: Iterable[Parameter] = ()) -> None:
    """The model's parameters in ``dtype``, but for ``exact`` ones. Buffers stay: RoPE's frequencies do not survive 8
    bits of mantissa."""
    kept = set(exact)
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter not in kept:
            parameter.data = parameter.data.to(dtype)


class Weights:
    """``model``'s trainable parameters by name, in float32; the model computes in ``dtype`` with copies of them.

    In "float32" there are no copies: :attr:`masters` are the model's own parameters. So are ``exact`` ones, with which
    the model computes in float32 in either case.
    """

    version = 0
    """Counts the updates of the model."""

    def __init__(self, model: PreTrainedModel, dtype: str, exact: Iterable[Parameter] = ()) -> None:
        self.model = model
        self.named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.masters: dict[str, Tensor] = dict(self.named)
        self._hooks: list[RemovableHandle] = []
        if DTYPES[dtype] != torch.float32:
            # No copy: rounding gives a parameter another tensor, and the master keeps the one it had.
            kept = set(exact)
            rounded = {name: parameter for name, parameter in self.named.items() if parameter not in kept}
            self.masters |= {name: parameter.detach().float() for name, parameter in rounded.items()}
            round_parameters(model, DTYPES[dtype], kept)
            for name, parameter in rounded.items():
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._gather(self.masters[name])))
        self._names = {parameter: name for name, parameter in self.named.items()}
        self._sparsify_embedding()
        self.clear()

    def gradient(self, parameter: Tensor) -> Tensor | None:
        """Where a gradient w.r.t. the model's ``parameter`` is to be added, float32; None for a frozen one."""
        name = self._names.get(parameter)
        if name is None:
            return None
        master = self.masters[name]
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return master.grad

    def hand_over(self) -> None:
        """Gradients added where :meth:`gradient` says are complete for this pack; autograd's come next."""

    def clip(self, largest: float) -> float:
        """Scale all gradients so that their norm is at most ``largest``; the norm before that."""
        return float(torch.nn.utils.clip_grad_norm_(list(self), largest))

    def gathered(self) -> AbstractContextManager[None]:
        """While in use, the model runs by other ways than packs."""
        return nullcontext()

    def publish(self) -> None:
        """Bring the model up to the weights, after the optimiser moved them."""
        self.version += 1
        for name, parameter in self.named.items():
            if self.masters[name] is not parameter:
                parameter.data.copy_(self.masters[name])

    def clear(self) -> None:
        """Forget all gradients."""
        for master in self.masters.values():
            master.grad = None
        embedding = self.model.get_input_embeddings()
        if embedding.sparse:
            self.gradient(embedding.weight)  # a sparse gradient can only be added to a dense one

    def release(self) -> None:
        """Make the weights the model's own parameters again, in float32. Frozen ones stay as rounded as they are."""
        for hook in self._hooks:
            hook.remove()
        for name, parameter in self.named.items():
            parameter.data, parameter.grad = self.masters[name].detach(), None
        self.model.get_input_embeddings().sparse = False

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.masters)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state[name])
        self.publish()

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.masters.values())

    def _sparsify_embedding(self) -> None:
        """On a CPU a pack's gradient of the embedding is its own tokens' rows, not a whole matrix of zeros.

        On a GPU adding such rows up is not deterministic, and a matrix of zeros costs little.
        """
        embedding = self.model.get_input_embeddings()
        if embedding.weight.requires_grad and embedding.weight.device.type == "cpu":
            embedding.sparse = True

    @staticmethod
    def _gather(master: Tensor) -> Callable[[Parameter], None]:
        @torch.no_grad()
        def gather(parameter: Parameter) -> None:
            grad, parameter.grad = parameter.grad, None
            assert grad is not None
            if grad.is_sparse:
                assert master.grad is not None
                master.grad.index_add_(0, grad._indices()[0], grad._values().to(master.dtype))
            elif master.grad is None:
                master.grad = grad.to(master.dtype)
            else:
                master.grad += grad

        return gather
