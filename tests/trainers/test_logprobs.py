"""The chunked head against the log-softmax of all logits, by autograd, in float64."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from trainers import logprobs
from trainers.logprobs import ChunkedHead, Head, Workspace
from trainers.statistics import Slopes, Statistics

N, HIDDEN, VOCABULARY = 20, 8, 23
CHUNKS = [slice(0, 6), slice(6, 7), slice(7, 20)]
HEADS = {
    "plain": Head(torch.empty(0)),
    "bias": Head(torch.empty(0), bias=torch.empty(0)),
    "scale": Head(torch.empty(0), scale=0.3),
    "softcap": Head(torch.empty(0), softcap=2.0),
    "everything": Head(torch.empty(0), bias=torch.empty(0), scale=1.7, softcap=3.0),
}
WINDOWS = {"one window": {"CHUNK": 100, "PIECE": 4}, "many windows": {"CHUNK": 5, "PIECE": 2}}


@pytest.fixture(params=WINDOWS)
def windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are one window of softmax and gradients each, or several."""
    for name, size in (WINDOWS[request.param] | {"PANEL": 7}).items():
        monkeypatch.setitem(getattr(logprobs, name), "cpu", size)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_head(kind: str, seed: int = 1) -> Head:
    """Random, its gradients started at 1: they are added, not set."""
    head, weight = HEADS[kind], draw(VOCABULARY, HIDDEN, seed=seed)
    bias = None if head.bias is None else draw(VOCABULARY, seed=seed + 1)
    ones = None if bias is None else torch.ones_like(bias)
    return replace(head, weight=weight, bias=bias, weight_grad=torch.ones_like(weight), bias_grad=ones)


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head) -> Tensor:
    logits = hidden @ weight.T
    logits = head.scale * (logits if bias is None else logits + bias)
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def naive(logps: Tensor, targets: Tensor, reference: Tensor | None = None) -> Statistics:
    """Statistics from [N, vocabulary] log-probabilities."""
    kl = None if reference is None else (reference.exp() * (reference - logps)).sum(-1)
    return Statistics(logps.gather(1, targets[:, None])[:, 0], (2 * logps).logsumexp(-1), kl)


def loss_of(known: Statistics, number: int) -> Tensor:
    """Of a chunk: not linear, so its slopes are right only if the statistics that they are worked out from are."""
    weights = draw(len(known.logps), seed=10 + number).to(known.logps.dtype)
    loss = (known.logps * weights).sum() + 0.05 * known.logps.sum() ** 2
    return loss if known.reference_kl is None else loss + (known.reference_kl * weights.flip(0)).exp().sum()


def slopes(number: int, known: Statistics) -> Slopes:
    inputs = [known.logps.detach().requires_grad_()]
    if known.reference_kl is not None:
        inputs.append(known.reference_kl.detach().requires_grad_())
    with torch.enable_grad():
        loss = loss_of(Statistics(inputs[0], None, *inputs[1:]), number)
    return Slopes(*torch.autograd.grad(loss, inputs))


def close(got: Tensor, want: Tensor, relative: float = 1e-5) -> None:
    """In the norm: a single entry may be a difference of large ones."""
    assert got.shape == want.shape
    assert torch.linalg.vector_norm(got.double() - want.double()) <= relative * torch.linalg.vector_norm(want.double())


# ---------------------------------------------------------------------------------------------- values and gradients
@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize(("kind", "with_reference"), list(product(HEADS, (False, True))))
def test_values_and_all_gradients_are_those_of_the_full_log_softmax(kind: str, with_reference: bool) -> None:
    head, hidden = make_head(kind), draw(N, HIDDEN, seed=3)
    targets = torch.randint(VOCABULARY, (N,), generator=torch.Generator().manual_seed(4))
    workspace, other, states = Workspace(), make_head(kind, seed=5), draw(N, HIDDEN, seed=6)
    peer = (ChunkedHead(other, workspace, "reference"), states) if with_reference else None
    known, gradient = ChunkedHead(head, workspace).backward(hidden, targets, CHUNKS, slopes, True, peer)

    inputs = [each.double().requires_grad_() for each in (hidden, head.weight, head.bias) if each is not None]
    bias = None if head.bias is None else inputs[2]
    logps = logits_of(*inputs[:2], bias, head).log_softmax(-1)
    fixed = [None if each is None else each.double() for each in (states, other.weight, other.bias)]
    reference = logits_of(*fixed, other).log_softmax(-1) if with_reference else None
    wanted = naive(logps, targets, reference)
    parts = [Statistics(*(None if v is None else v[chunk] for v in fields(wanted))) for chunk in CHUNKS]
    grads = torch.autograd.grad(sum(loss_of(part, number) for number, part in enumerate(parts)), inputs)

    for got, want in zip(fields(known), fields(wanted), strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            assert got.dtype == torch.float32
            close(got, want.detach())
    close(gradient, grads[0])
    assert head.weight_grad is not None
    close(head.weight_grad - 1, grads[1])
    if head.bias_grad is not None:
        close(head.bias_grad - 1, grads[2])


def fields(known: Statistics) -> tuple[Tensor | None, ...]:
    return known.logps, known.collision, known.reference_kl


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("kind", HEADS)
def test_statistics_alone_are_those_of_the_backward_pass(kind: str) -> None:
    head, hidden = make_head(kind), draw(N, HIDDEN, seed=3)
    targets = torch.arange(N) % VOCABULARY
    alone = ChunkedHead(head, Workspace()).statistics(hidden, targets, collision=True)
    known, _ = ChunkedHead(head, Workspace()).backward(hidden, targets, CHUNKS, slopes, collision=True)
    for got, want in zip(fields(alone)[:2], fields(known)[:2], strict=True):
        assert got is not None
        assert want is not None
        close(got, want, 1e-6)
    assert ChunkedHead(head, Workspace()).statistics(hidden, targets).collision is None


@pytest.mark.usefixtures("windows")
def test_a_frozen_head_has_the_same_gradient_of_the_hidden_states_and_none_of_its_own() -> None:
    head, hidden, targets = make_head("bias"), draw(N, HIDDEN, seed=3), torch.arange(N)
    _, trained = ChunkedHead(head, Workspace()).backward(hidden, targets, CHUNKS, slopes)
    frozen = replace(head, weight_grad=None, bias_grad=None, weight=head.weight.clone().requires_grad_())
    _, gradient = ChunkedHead(frozen, Workspace()).backward(hidden, targets, CHUNKS, slopes)
    assert torch.equal(gradient, trained)
    assert frozen.weight.grad is None


def test_a_workspace_is_used_again_and_never_remembers() -> None:
    """Larger, then smaller, then another vocabulary: results are those of fresh buffers."""
    workspace = Workspace()
    for count, vocabulary in ((9, 23), (4, 23), (4, 11), (20, 11)):
        head = Head(draw(vocabulary, HIDDEN), weight_grad=torch.zeros(vocabulary, HIDDEN))
        hidden, targets = draw(count, HIDDEN, seed=count), torch.arange(count) % vocabulary
        found = [
            ChunkedHead(head, space).backward(hidden, targets, [slice(0, count)], slopes)
            for space in (workspace, Workspace())
        ]
        assert torch.equal(found[0][0].logps, found[1][0].logps)
        assert torch.equal(found[0][1], found[1][1])


# ---------------------------------------------------------------------------------------------- extremes
@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("softcap", [None, 150.0])
def test_a_token_that_underflows_has_its_log_probability_and_its_gradient(softcap: float | None) -> None:
    """e⁻²⁰⁰ is no float32. The row between the two rare ones is an ordinary one."""
    weight = draw(VOCABULARY, HIDDEN, seed=1)
    weight[3, 0], weight[5, 0] = 110.0, -90.0
    hidden = torch.zeros(3, HIDDEN)
    hidden[:, 0] = torch.tensor([1.0, 0.01, 1.1])
    hidden[:, 1:] = draw(3, HIDDEN - 1, seed=2) * 0.1
    head = Head(weight, softcap=softcap, weight_grad=torch.zeros_like(weight))
    targets = torch.tensor([5, 4, 5])
    chunks = [slice(0, 3)]
    ones = lambda number, known: Slopes(torch.tensor([1.0, 2.0, -0.5]))  # noqa: E731
    known, gradient = ChunkedHead(head, Workspace()).backward(hidden, targets, chunks, ones)
    inputs = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    wanted = naive(logits_of(*inputs, None, head).log_softmax(-1), targets).logps
    assert wanted[0] < -150
    grads = torch.autograd.grad((wanted * torch.tensor([1.0, 2.0, -0.5])).sum(), inputs)
    torch.testing.assert_close(known.logps.double(), wanted.detach(), rtol=1e-5, atol=1e-6)
    assert head.weight_grad is not None
    for row in range(3):
        close(gradient[row], grads[0][row])
    close(head.weight_grad, grads[1])
    torch.testing.assert_close(ChunkedHead(head, Workspace()).statistics(hidden, targets).logps, known.logps)


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_bfloat16_log_probabilities_are_nearer_the_truth_than_a_log_softmax_of_its_logits(spread: float) -> None:
    """Over 4000 tokens of vocabulary, against float64 on the same rounded numbers; logits up to ±5 and ±15."""
    count, width, vocabulary = 200, 64, 4000
    hidden = draw(count, width).bfloat16()
    weight = (spread * width**-0.5 * draw(vocabulary, width, seed=1)).bfloat16()
    targets = (hidden.double() @ weight.double().T).topk(40).indices[torch.arange(count), torch.arange(count) % 40]
    truth = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    ours = ChunkedHead(Head(weight), Workspace()).statistics(hidden, targets).logps
    logits = hidden @ weight.T
    plain, upcast = (each.log_softmax(-1).gather(1, targets[:, None])[:, 0] for each in (logits, logits.float()))

    def error(logps: Tensor) -> float:
        return float((logps.double() - truth).abs().mean())

    assert error(ours) < 0.01
    assert error(ours) < error(plain) / 3
    assert error(ours) < error(upcast) / 2


def test_bfloat16_gradients_are_near_the_truth() -> None:
    hidden, weight = draw(64, 32).bfloat16(), (0.3 * draw(500, 32, seed=1)).bfloat16()
    targets = torch.arange(64) * 7
    head = Head(weight, weight_grad=torch.zeros(500, 32))
    constant = lambda number, known: Slopes(torch.linspace(-1, 1, 64))  # noqa: E731
    _, gradient = ChunkedHead(head, Workspace()).backward(hidden, targets, [slice(0, 64)], constant)
    inputs = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    logps = naive((inputs[0] @ inputs[1].T).log_softmax(-1), targets).logps
    grads = torch.autograd.grad((logps * torch.linspace(-1, 1, 64)).sum(), inputs)
    assert gradient.dtype == torch.bfloat16
    close(gradient, grads[0], 1e-2)
    assert head.weight_grad is not None
    assert head.weight_grad.dtype == torch.float32
    close(head.weight_grad, grads[1], 1e-2)


# ---------------------------------------------------------------------------------------------- memory
def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that ``work`` had allocated at once, by the allocator's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        work()
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("lengths", [(40, 40, 40), (120,)])
def test_peak_memory_does_not_grow_with_tokens_times_vocabulary(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many small chunks and of one that is larger than what is held at once."""
    monkeypatch.setitem(logprobs.CHUNK, "cpu", 16)
    vocabulary, width = 3000, 8
    head = Head(draw(vocabulary, width), weight_grad=torch.zeros(vocabulary, width))

    def peak(times: int) -> int:
        sizes = [length for length in lengths for _ in range(times)] if len(lengths) > 1 else [lengths[0] * times]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        chunks = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        hidden, targets = draw(ends[-1], width), torch.zeros(ends[-1], dtype=torch.int64)
        return peak_bytes(lambda: ChunkedHead(head, Workspace()).backward(hidden, targets, chunks, slopes))

    short, long = peak(1), peak(4)
    assert 16 * vocabulary * 4 <= short < 40 * vocabulary * 4
    assert long - short < 0.02 * (360 * vocabulary * 4)
    full = draw(120, vocabulary)
    assert peak_bytes(lambda: full.log_softmax(-1)) >= 120 * vocabulary * 4  # what is measured is there to be seen


# ---------------------------------------------------------------------------------------------- golden
def test_sums_and_means_are_those_of_the_authors_code(shared_data: Path) -> None:
    """`_get_batch_logps` of DPO's authors. Their logits are the hidden states of a head that is the identity."""
    cases = json.loads((shared_data / "golden" / "losses.json").read_text())["batch_logps"]
    assert cases
    for case in cases:
        logits = torch.tensor(case["logits"], dtype=torch.float64)[:, :-1]
        labels = torch.tensor(case["labels"])[:, 1:]
        head = ChunkedHead(Head(torch.eye(logits.shape[-1])), Workspace())
        for row, ids, total, mean in zip(logits, labels, case["sum"], case["average"], strict=True):
            mine = ids != -100
            logps = head.statistics(row[mine].float(), ids[mine]).logps.double()
            assert logps.sum().item() == pytest.approx(total, rel=1e-6)
            assert logps.mean().item() == pytest.approx(mean, rel=1e-6)
