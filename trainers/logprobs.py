"""Log-probabilities of tokens, a few hundred at a time: the [tokens, vocabulary] matrix never exists.

``ChunkedHead.statistics`` gives them alone. ``ChunkedHead.backward`` gives them and, in the same pass, the gradients of
a loss of them: a chunk's logits are made once, turned into probabilities in place, then into gradients. That takes
three matrix products where recomputing the logits in a backward pass takes four, and is possible because whoever knows
the loss tells its slopes as soon as one chunk's log-probabilities are there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from trainers.rounding import TOKENS, up
from trainers.statistics import Slopes, Statistics, join

CHUNK = {"cpu": 1024, "cuda": 2048}
"""Tokens whose probabilities are held at once."""
PIECE = {"cpu": 256, "cuda": 2048}
"""Tokens of one softmax: on a CPU few enough to stay in its cache."""
TRANSPOSED = 512
"""Positions from which on a CPU makes logits with a transposed copy of the weight, which it multiplies by faster:
below, making the copy takes longer than it saves. It is kept, and counts as memory beside the chunk's."""
PANEL = {"cpu": 2048, "cuda": 1 << 30}
"""Vocabulary rows of the weight transposed, or added to its gradient, at once: few enough for a CPU's cache."""
SMALLEST = 1e-30
"""Probabilities below this may have lost digits, or all of them; their logarithm is taken another way."""


@dataclass(frozen=True, slots=True)
class Head:
    """logits = softcap · tanh(scale · (hidden · weightᵀ + bias) / softcap), without softcap scale · (…)."""

    weight: Tensor
    """[vocabulary, hidden]; tied to the input embedding or not."""
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    weight_grad: Tensor | None = None
    """Where the gradient is added, float32; None for a frozen head."""
    bias_grad: Tensor | None = None
    version: int = 0
    """Another one after every change of the weight. Tensors' own versions do not tell: fused optimisers leave them."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Head":
        """The head of a causal language model, with its family's transformation of the logits.

        Gemma caps (``final_logit_softcapping``), Cohere multiplies (``logit_scale``), Granite divides
        (``logits_scaling``). A family with yet another one is found out by :func:`trainers.packed.prove`.
        """
        linear, config = model.get_output_embeddings(), model.config.get_text_config()
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(linear.weight.detach(), getattr(linear, "bias", None), scale, softcap)


@dataclass(slots=True)
class Workspace:
    """Buffers that live from pack to pack: fresh ones of this size cost more in page faults than in arithmetic."""

    buffers: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Where a transposed copy was made from, and the version of what was there."""

    def transposed(self, name: str, weight: Tensor, version: int) -> Tensor:
        """``weight`` [rows, columns] as a copy [columns, rows], made anew where it is of another version."""
        name, source = f"{name}, transposed", (weight.data_ptr(), weight.shape, weight.dtype, version)
        copy = self.take(name, weight.shape[1], weight.shape[0], weight)
        if self.versions.get(name) != source:
            for rows in split(slice(0, len(weight)), PANEL[weight.device.type]):
                copy[:, rows] = weight[rows].t().contiguous()  # at once it takes twice as long
            self.versions[name] = source
        return copy

    def clear(self) -> None:
        self.buffers.clear()
        self.versions.clear()

    def take(self, name: str, rows: int, columns: int, like: Tensor) -> Tensor:
        """[rows, columns] of arbitrary content, in the dtype and on the device of ``like``."""
        buffer = self.buffers.get(name)
        if buffer is None or len(buffer) < rows or buffer.shape[1] != columns or buffer.dtype != like.dtype:
            buffer = self.buffers[name] = like.new_empty(rows, columns)
        return buffer[:rows]


class ChunkedHead:
    """A head that works a chunk of positions at a time. ``name`` tells its buffers from another's."""

    def __init__(self, head: Head, workspace: Workspace, name: str = "policy") -> None:
        self.head, self.workspace, self.name = head, workspace, name
        self.weight, self.bias = head.weight, head.bias
        self.transposed = head.weight.t()
        """[hidden, vocabulary]"""
        self.chunk, self.piece = CHUNK[self.weight.device.type], PIECE[self.weight.device.type]

    @torch.no_grad()
    def statistics(
        self, hidden: Tensor, targets: Tensor, collision: bool = False, reference: "Peer | None" = None
    ) -> Statistics:
        """Of ``targets`` [N], predicted from ``hidden`` [N, hidden]. No gradient."""
        self._transpose(len(targets))
        parts = split(slice(0, len(targets)), self.piece)
        windows = [self._window(*self._filled(part, hidden, targets, reference), collision) for part in parts]
        return join([window.known.first(part.stop - part.start) for part, window in zip(parts, windows, strict=True)])

    @torch.no_grad()
    def backward(
        self,
        hidden: Tensor,
        targets: Tensor,
        chunks: Sequence[slice],
        slopes: Callable[[int, Statistics], Slopes],
        collision: bool = False,
        reference: "Peer | None" = None,
    ) -> tuple[Statistics, Tensor]:
        """Statistics of ``targets`` [N], and the gradient of a loss of them w.r.t. ``hidden`` [N, hidden].

        ``slopes`` is told a chunk's number and statistics, and returns its loss's gradient; a chunk therefore holds
        all that is compared with each other. A chunk of more than ``CHUNK`` tokens has its logits made twice, so that
        memory is bounded by ``CHUNK`` × vocabulary. ``reference`` is another head and its hidden states at the same
        positions. The gradients w.r.t. weight and bias are added to the head's ``weight_grad`` and ``bias_grad``: as
        results of an autograd function they would be another [vocabulary, hidden] in float32.
        """
        self._transpose(len(targets))
        gradient, known = torch.empty_like(hidden), []
        for number, chunk in enumerate(chunks):
            parts = split(chunk, self.chunk)
            filled = [self._filled(part, hidden, targets, reference) for part in parts]
            found = [self._window(*each, collision) for each in filled]
            known.append(join([w.known.first(part.stop - part.start) for part, w in zip(parts, found, strict=True)]))
            slope = slopes(number, known[-1])
            for part, (states, tokens, peer), window in zip(parts, filled, found, strict=True):
                if len(parts) > 1:  # the buffers hold the last window's probabilities
                    window = self._window(states, tokens, peer, False)
                count = part.stop - part.start
                own = slope.part(slice(part.start - chunk.start, part.stop - chunk.start))
                own = own.filled(len(states) - count)
                gradient[part] = self._gradients(states, tokens, window, own)[:count]
        return join(known), gradient

    def _transpose(self, count: int) -> None:
        if self.weight.device.type == "cpu" and count >= TRANSPOSED and not self.transposed.is_contiguous():
            self.transposed = self.workspace.transposed(self.name, self.weight, self.head.version)

    def _filled(
        self, part: slice, hidden: Tensor, targets: Tensor, reference: "Peer | None"
    ) -> "tuple[Tensor, Tensor, Peer | None]":
        """Some of the positions, on a CPU with a few of zeros after them that round their number up."""
        count = part.stop - part.start
        more = up(count, TOKENS) - count if hidden.device.type == "cpu" else 0
        peer = None if reference is None else (reference[0], pad(reference[1][part], (0, 0, 0, more)))
        return pad(hidden[part], (0, 0, 0, more)), pad(targets[part], (0, more)), peer

    def _window(self, hidden: Tensor, targets: Tensor, peer: "Peer | None", collision: bool) -> "_Window":
        p = self.workspace.take(self.name, len(hidden), len(self.weight), self.weight)
        other = None if peer is None else peer[0].probabilities(peer[1])
        known, own = [], []
        for part in split(slice(0, len(hidden)), self.piece):
            logps, logit = self._softmax(hidden[part].to(p.dtype), targets[part], p[part])
            norm = torch.linalg.vector_norm(p[part], dim=-1, dtype=torch.float32) if collision else None
            kl = None if other is None else _kl(other[part], p[part])
            known.append(Statistics(logps, None if norm is None else 2 * norm.log(), kl))
            own.append(logit)
        return _Window(join(known), torch.cat(own), p, other)

    def probabilities(self, hidden: Tensor) -> Tensor:
        """[n, vocabulary] π(v | …) in a buffer that the next call overwrites."""
        self._transpose(len(hidden))
        p = self.workspace.take(self.name, len(hidden), len(self.weight), self.weight)
        for part in split(slice(0, len(hidden)), self.piece):
            softmax_(self._logits(hidden[part].to(p.dtype), p[part]))
        return p

    def _softmax(self, hidden: Tensor, targets: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities into ``out``; the targets' log-probabilities and logits, [n] in float32.

        A matrix product in 16 bit rounds its logits, by up to 0.03 between 8 and 16. The target's own logit is made
        once more in float32; the other roundings average out in the sum of their exponentials.
        """
        exact = (hidden.float() * self.weight[targets].float()).sum(-1)
        exact = self._transform(exact if self.bias is None else exact + self.bias[targets].float())
        rounded = self._logits(hidden, out).gather(1, targets[:, None])[:, 0].float()
        softmax_(out)
        picked = out.gather(1, targets[:, None])[:, 0].float()
        logps = picked.log() + (exact - rounded)
        rare = picked < SMALLEST
        if bool(rare.any()):
            again = self._logits(hidden[rare], torch.empty_like(out[rare])).float()
            logps[rare] = exact[rare] - again.logsumexp(-1)
        return logps, exact

    def _logits(self, hidden: Tensor, out: Tensor) -> Tensor:
        if self.bias is None:
            torch.mm(hidden, self.transposed, out=out)
        else:
            torch.addmm(self.bias, hidden, self.transposed, out=out)
        return self._transform(out)

    def _transform(self, logits: Tensor) -> Tensor:
        """In place."""
        if self.head.scale != 1.0:
            logits.mul_(self.head.scale)
        if self.head.softcap is not None:
            logits.div_(self.head.softcap).tanh_().mul_(self.head.softcap)
        return logits

    def _gradients(self, hidden: Tensor, targets: Tensor, window: "_Window", slope: Slopes) -> Tensor:
        """Gradient w.r.t. ``hidden``; that w.r.t. the head is added to it. Uses the buffers up.

        With slope g of log π(y) and k of KL(π_ref ‖ π) a logit's gradient is g (1[v = y] − π_v) + k (π_v − π_ref,v).
        Without k it is −g times a matrix that needs one entry a row changed, so g multiplies the thin factors instead.
        """
        p, g = window.policy, slope.logps.float()[:, None]
        for part in split(slice(0, len(p)), self.piece):
            # By places, since scatter_ copies the whole buffer.
            own = torch.arange(part.start, part.stop, device=p.device), targets[part]
            bend = self._bend(p[part], targets[part, None], window, part) if self.head.softcap is not None else None
            if slope.reference_kl is None or window.reference is None:
                p[own] = window.known.logps[part].expm1().to(p.dtype)
            else:
                k = slope.reference_kl[part].float()[:, None]
                p[part].mul_((k - g[part]).to(p.dtype)).sub_(window.reference[part].mul_(k.to(p.dtype)))
                p[own] += g[part, 0].to(p.dtype)
            if bend is not None:
                p[part].mul_(bend)
        factor = self.head.scale * (-g if slope.reference_kl is None else torch.ones_like(g))
        self._add_to_head(p, hidden.float() * factor, factor)
        return torch.mm(p, self.weight).float().mul_(factor).to(hidden.dtype)

    def _bend(self, p: Tensor, at: Tensor, window: "_Window", part: slice) -> Tensor:
        """[n, vocabulary] the soft cap's derivative 1 − (logit / softcap)²; a logit is log π and the row's constant.

        That is not so where π underflowed: of no account but for the target, whose own logit is known.
        """
        assert self.head.softcap is not None
        own, logps = window.own[part, None], window.known.logps[part, None]
        logits = (p.float().clamp_min(SMALLEST).log() + (own - logps)).scatter_(1, at, own)
        return (1 - (logits / self.head.softcap).clamp(-1, 1) ** 2).to(p.dtype)

    def _add_to_head(self, p: Tensor, hidden: Tensor, factor: Tensor) -> None:
        sink, narrow = self.head.weight_grad, hidden.to(p.dtype)
        if sink is not None:
            for rows in split(slice(0, len(sink)), PANEL[p.device.type]):
                if p.dtype == sink.dtype:
                    sink[rows].addmm_(p[:, rows].t(), narrow)
                else:
                    sink[rows] += torch.mm(p[:, rows].t(), narrow)
        if self.head.bias_grad is not None:
            self.head.bias_grad.add_(torch.mv(p.float().t(), factor[:, 0]))


Peer = tuple[ChunkedHead, Tensor]
"""A reference's head, and its hidden states [N, hidden] at the same positions."""


@dataclass(frozen=True, slots=True)
class _Window:
    """What a pass over n positions leaves."""

    known: Statistics
    own: Tensor
    """[n] the targets' logits"""
    policy: Tensor
    """[n, vocabulary] π, in a buffer that the next pass overwrites"""
    reference: Tensor | None
    """[n, vocabulary] π_ref, likewise"""


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """[len(ids) − 1] float32: log-probability (nats) of each of ``ids`` after the first, by the model's own head."""
    tokens = torch.tensor([list(ids)], device=model.device)
    logps = model(input_ids=tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    picked: Tensor = logps.gather(-1, tokens[0, 1:, None])[:, 0]
    return picked


def split(span: slice, size: int) -> list[slice]:
    """``span`` in runs of at most ``size``."""
    return [slice(start, min(start + size, span.stop)) for start in range(span.start, span.stop, size)]


def softmax_(logits: Tensor) -> Tensor:
    """In place where the kernel allows it, over the last dimension."""
    if logits.device.type == "cpu":
        return torch.softmax(logits, -1, out=logits)
    return logits.copy_(torch.softmax(logits, -1))


def _kl(reference: Tensor, policy: Tensor) -> Tensor:
    """[n] Σ_v π_ref (log π_ref − log π). Probabilities under 1e-30 count as 1e-30."""
    logs = [p.float().clamp_min(SMALLEST).log() for p in (reference, policy)]
    return (reference.float() * (logs[0] - logs[1])).sum(-1)
