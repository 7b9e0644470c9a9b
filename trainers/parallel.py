"""Several processes, one training: each runs its share of a batch's packs and keeps its shard of the weights.

Sharding is FSDP2's: a decoder layer's weights are gathered when the layer runs, those of embedding, norm and head stay
gathered from a pack's forward pass to the end of its backward pass, and gradients are averaged over the processes.
Nobody but the first process writes a file.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter
from torch.utils._pytree import tree_map
from transformers.modeling_layers import GradientCheckpointingLayer

from trainers.packed import PackedPolicy
from trainers.weights import DTYPES, Weights

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Share:
    """Which process this is, and of how many."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Files are this process' to write."""
        return self.rank == 0

    def gather(self, mine: T) -> list[T]:
        """Everyone's, in rank order; their tensors come to the CPU. All processes must call it together."""
        if self.size == 1:
            return [mine]
        buffer = io.BytesIO()
        torch.save(mine, buffer)
        everyone: list[bytes] = [b""] * self.size
        dist.all_gather_object(everyone, buffer.getvalue())
        return [torch.load(io.BytesIO(each), map_location="cpu", weights_only=False) for each in everyone]


ALONE = Share()


def shard(policy: PackedPolicy, dtype: str) -> None:
    """Leave this process a shard of the policy's parameters, in float32; it computes in ``dtype``.

    The model is whole, the same in every process, and on any device. All processes must call it together.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    precision = MixedPrecisionPolicy(
        param_dtype=DTYPES[dtype],
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # a pack has no floating-point tensor, and what layers get comes from layers
    )
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    layers = [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module in (*layers, policy):
        fully_shard(module, mesh=mesh, mp_policy=precision)
    assert isinstance(policy, FSDPModule)
    policy.set_reduce_scatter_unused_params(True)  # an expert that one process did not need, another did


class ShardedWeights(Weights):
    """The trainable parameters of a policy that :func:`shard` was called on: this process' shards, in float32."""

    def __init__(self, policy: PackedPolicy) -> None:
        assert isinstance(policy, FSDPModule)
        self.model, self._root = policy.model, policy
        self.named = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.masters = dict(self.named)
        self._sinks: dict[Parameter, Tensor] = {}

    def gradient(self, parameter: Tensor) -> Tensor | None:
        """Where a gradient w.r.t. the gathered ``parameter`` is to be added, in float32, until it is handed over."""
        assert isinstance(parameter, Parameter)
        if not parameter.requires_grad:
            return None
        if parameter not in self._sinks:
            self._sinks[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
        return self._sinks[parameter]

    def hand_over(self) -> None:
        """Let FSDP take up the gathered gradients with those that autograd is about to add to them."""
        for parameter, sink in self._sinks.items():
            assert parameter.grad is None
            parameter.grad = sink.to(parameter.dtype)
        self._sinks.clear()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Embedding, norm and head stay whole; layers are gathered as they run. All processes do the same meanwhile."""
        self._root.unshard()
        try:
            yield
        finally:
            self._root.reshard()

    def publish(self) -> None:
        """Forget gathered weights: the next pass gathers them anew."""
        self.version += 1
        self._root.reshard()

    def clear(self) -> None:
        for master in self.masters.values():
            master.grad = None

    def clip(self, largest: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(list(self), largest)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def release(self) -> None:
        """Leave the model with its shards and nothing else; :func:`whole` gathers them."""
        self._root.reshard()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Of whole weights."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(part_of(state[name], master))
        self.publish()


def whole(state: Any, share: Share) -> Any:
    """``state`` with every sharded tensor in it gathered to the first process' memory; of no use in the others.

    One tensor after another, so that no device holds more than one whole. All processes must call it together.
    """

    def gather(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor().detach()
        return full.cpu() if share.writes else None

    return tree_map(gather, state)


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process' shard of ``tensor`` where ``like`` is sharded, else ``tensor``. No communication."""
    if not isinstance(like, DTensor):
        return tensor
    local = tensor.to(like.device)
    return distribute_tensor(local, like.device_mesh, like.placements, src_data_rank=None)


def parts_of_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's whole ``state`` as this process' shards: what moves with a parameter is sharded as that is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def part(value: Any, like: Tensor) -> Any:
        return part_of(value, like) if isinstance(value, Tensor) and value.shape == like.shape else value

    moments = {
        number: {name: part(value, parameters[number]) for name, value in each.items()}
        for number, each in state["state"].items()
    }
    return {**state, "state": moments}
