"""A policy that runs on packs: an unmodified ``transformers`` model with shared-prefix attention and a chunked head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.errors import ConfigError, TrainingError
from trainers.attention import SHARED_PREFIX, Layout
from trainers.last_layer import LastLayer
from trainers.logprobs import CHUNK, ChunkedHead, Head, Peer, Workspace, plain_logprobs
from trainers.memory import is_out_of_memory
from trainers.norms import TiledNorms
from trainers.packing import Pack, PromptGroup, pack
from trainers.rotary import FastRotary
from trainers.statistics import Slopes, Statistics
from trainers.weights import Weights

PROOF_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""Nats a token by which packed and plain log-probabilities may differ: rounding, never another formula."""
PROOF_LENGTH = 24
"""Tokens of the longest row of a proof, where nothing in the model begins later."""


class PackedPolicy(torch.nn.Module):
    """Log-probabilities of packs, and gradients of losses of them.

    Computes in the dtype of the model's parameters. Gradients are added where ``weights`` gathers them; without it the
    policy is frozen. ``recompute`` gives activations up in the forward pass and makes them again in the backward pass;
    ``compile`` compiles the decoder layers. Dropout is off in training too: a policy that differs from its reference by
    noise alone has no loss of ln 2.
    """

    def __init__(
        self, model: PreTrainedModel, weights: Weights | None = None, *, recompute: bool = False, compile: bool = False
    ) -> None:
        super().__init__()
        self.model, self.weights = model, weights
        self.workspace = Workspace()
        self.compiled = compile
        self.plain_attention = model.config._attn_implementation
        model.eval().set_attn_implementation(SHARED_PREFIX)
        if recompute:
            if not model.supports_gradient_checkpointing:
                raise ConfigError(f"trainer.recompute = true: {type(model).__name__} cannot recompute; leave it false")
            model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
            model.train()  # layers recompute in training mode only
        # Traced through, its hooks would compile the layer anew for every pack.
        self._changes: list[LastLayer | TiledNorms | FastRotary] = [] if compile else [LastLayer(model)]
        if not compile and not torch.cuda.is_available():  # a model on a CPU may be on its way to cards
            self._changes += [TiledNorms(model), FastRotary(model)]
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
            if compile and isinstance(module, GradientCheckpointingLayer):
                module.compile(dynamic=True)

    def chunks(self, pack: Pack) -> list[tuple[slice, slice]]:
        """The pack's targets and completions in the chunks whose statistics are known at once."""
        return pack.chunks(CHUNK[self.model.device.type])

    def forward(self, pack: Pack) -> Tensor:
        """[N, hidden] the hidden states that predict the pack's targets."""
        states: Tensor = self.model.base_model(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids,
            use_cache=False,
            layout=Layout(pack, self.model.config.get_text_config().num_hidden_layers - 1),
        ).last_hidden_state
        return states[0].index_select(0, pack.predictors)

    @torch.no_grad()
    def statistics(self, pack: Pack, collision: bool = False, reference: "PackedPolicy | None" = None) -> Statistics:
        """Of the pack's targets, [N]; with a ``reference``, its KL too. No gradient."""
        hidden = self(pack)
        return self._head().statistics(hidden, pack.targets, collision, self._peer(pack, reference))

    def backward(
        self,
        pack: Pack,
        slopes: Callable[[int, Statistics], Slopes],
        collision: bool = False,
        reference: "PackedPolicy | None" = None,
    ) -> Statistics:
        """Add a loss's gradient to the weights'; the statistics of the pack's targets, [N].

        ``slopes`` gets the number of one of :meth:`chunks` and its statistics, and returns the gradient of the loss
        of its targets. With a ``reference`` the statistics have its KL.
        """
        peer = self._peer(pack, reference)
        hidden = self(pack)
        chunks = [tokens for tokens, _ in self.chunks(pack)]
        head = self._head(gathers=True)
        known, gradient = head.backward(hidden.detach(), pack.targets, chunks, slopes, collision, peer)
        if self.weights is not None:
            self.weights.hand_over()
        if hidden.requires_grad:
            hidden.backward(gradient)
        return known

    @contextmanager
    def plain(self) -> Iterator[PreTrainedModel]:
        """The model with its own attention, for anything but packs: nothing is compiled for it, nor recomputed."""
        training = [module for module in self.model.modules() if module.training]
        gathered = nullcontext() if self.weights is None else self.weights.gathered()
        self.model.eval().set_attn_implementation(self.plain_attention)
        try:
            # Asking for it imports the compiler, which takes seconds.
            with gathered, torch.compiler.set_stance("force_eager") if self.compiled else nullcontext():
                yield self.model
        finally:
            self.model.set_attn_implementation(SHARED_PREFIX)
            for module in training:
                module.training = True

    def unpack(self) -> None:
        """Leave the model as it was."""
        self.model.set_attn_implementation(self.plain_attention)
        self.model.gradient_checkpointing_disable()
        self.model.eval()
        for change in self._changes:
            change.remove()
        if self.compiled:
            for module in self.model.modules():
                module._compiled_call_impl = None

    @torch.no_grad()
    def _peer(self, pack: Pack, reference: "PackedPolicy | None") -> Peer | None:
        if reference is None:
            return None
        hidden = reference(pack)  # first: a sharded head is whole only after it
        return reference._head("reference"), hidden

    def _head(self, name: str = "policy", gathers: bool = False) -> ChunkedHead:
        trained = self.weights is not None and self.model.get_output_embeddings().weight.requires_grad
        head = replace(Head.of(self.model), version=self.weights.version if self.weights and trained else 0)
        if gathers and self.weights is not None:
            linear = self.model.get_output_embeddings()
            bias = None if head.bias is None else self.weights.gradient(linear.bias)
            head = replace(head, weight_grad=self.weights.gradient(linear.weight), bias_grad=bias)
        return ChunkedHead(head, self.workspace, name)


@torch.no_grad()
def prove(model: PreTrainedModel, longest: int = PROOF_LENGTH) -> None:
    """Compare a small pack with the model's own forward pass, for data of up to ``longest`` tokens a row.

    Families differ in what they do to attention and logits. Rather than list them, this finds out.

    Raises:
        TrainingError: they differ, or the model cannot run on packs at all.
    """
    config = model.config.get_text_config()
    bounds = [bound for bound in _bounds(config) if bound < longest]
    size = max(bounds) + 8 if bounds else min(longest, PROOF_LENGTH)
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, config.vocab_size, (max(1, count),), generator=generator).tolist())

    groups = [PromptGroup(draw(size - 6), (draw(6), draw(3))), PromptGroup(draw(3), (draw(1), draw(4)))]
    rows = [row for group in groups for row in group.rows]
    theirs = torch.cat([plain_logprobs(model, row.prompt + row.completion)[len(row.prompt) - 1 :] for row in rows])
    policy = PackedPolicy(model)
    try:
        ours = policy.statistics(pack(groups, model.device)).logps
    except (TypeError, AttributeError, RuntimeError, TrainingError) as error:
        if is_out_of_memory(error):
            raise
        raise TrainingError(f"{type(model).__name__} cannot run on packed prompts: {error}") from error
    finally:
        policy.unpack()
    gap, tolerance = float((ours - theirs).abs().max()), PROOF_TOLERANCE[model.dtype]
    if not gap <= tolerance:
        raise TrainingError(
            f"{type(model).__name__} on packed prompts is up to {gap:.2g} nats a token off its own forward pass"
            f" (allowed: {tolerance}): its attention, positions or head are of a kind that packing does not know"
            + (f"; tried with rows of {size} tokens, since the data has such of {longest}" if bounds else "")
        )


def _bounds(config: PretrainedConfig) -> list[int]:
    """Lengths beyond which a model sees less, or turns its positions by other angles.

    LongRoPE and dynamic NTK choose the angles by the longest row of a batch: a row's log-probabilities then hang on
    those beside it, and no packing can be right.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]  # one a type of layer
    bounds = [getattr(config, "sliding_window", None)]
    for kind in kinds:
        if kind.get("rope_type") == "longrope":
            bounds.append(kind.get("original_max_position_embeddings"))
        elif kind.get("rope_type") == "dynamic":
            bounds.append(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
    return [bound for bound in bounds if bound]
