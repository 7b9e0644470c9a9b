"""Unmodified models on packs against the same models on padded rows: log-probabilities and every gradient."""

import shutil
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.errors import TrainingError
from tests.trainers.naive import (
    assert_same_gradients,
    counting_tokens,
    draw_rows,
    make_model,
    naive_logps,
    take_gradients,
)
from trainers import attention, logprobs
from trainers.attention import Layout
from trainers.packed import PackedPolicy, prove
from trainers.packing import group_rows, pack
from trainers.statistics import Slopes, Statistics
from trainers.weights import Weights

FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, a window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma2": (
        "gemma2",
        {"head_dim": 16, "sliding_window": 5, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0},
    ),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 16, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt2": ("gpt2", {}),
    "pythia": ("gpt_neox", {}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "phi3": ("phi3", {"sliding_window": None}),
    "granite": ("granite", {"logits_scaling": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.4}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "deepseek_v2, values wider than keys": (
        "deepseek_v2",
        {"n_routed_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
         "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 24,
         "first_k_dense_replace": 2, "num_key_value_heads": 4},
    ),
}  # fmt: skip
ROWS = draw_rows([11, 1, 6], [9, 1, 4])


@pytest.fixture(autouse=True)
def _several_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, windows of a chunk, pieces, panels and blocks of queries."""
    for name, size in {"CHUNK": 12, "PIECE": 4, "PANEL": 20}.items():
        monkeypatch.setitem(getattr(logprobs, name), "cpu", size)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 6)
    monkeypatch.setattr(logprobs, "TRANSPOSED", 1)


def make(name: str, **more: Any) -> PreTrainedModel:
    family, shape = FAMILIES[name]
    return make_model(family, **(shape | more))


def weights_of(logps: Tensor) -> Tensor:
    return torch.randn(len(logps), generator=torch.Generator().manual_seed(1))


def naive(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Token log-probabilities, and gradients of a weighted sum of them."""
    logps = naive_logps(model, ROWS)
    (logps * weights_of(logps)).sum().backward()
    return logps.detach(), take_gradients(model)


def packed(policy: PackedPolicy) -> tuple[Tensor, dict[str, Tensor]]:
    part = pack(group_rows(ROWS))
    slope, chunks = weights_of(part.targets), policy.chunks(part)
    assert len(chunks) == 3

    def slopes(number: int, _known: Statistics) -> Slopes:
        return Slopes(slope[chunks[number][0]])

    known = policy.backward(part, slopes)
    torch.testing.assert_close(policy.statistics(part).logps, known.logps, rtol=1e-6, atol=1e-6)
    return known.logps, take_gradients(policy.model)


def assert_same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    assert_same_gradients(ours[1], theirs[1])


# ---------------------------------------------------------------------------------------------- equality
@pytest.mark.parametrize("name", FAMILIES)
def test_packs_give_the_log_probabilities_and_gradients_of_padded_rows(name: str) -> None:
    model = make(name)
    theirs = naive(model)
    assert theirs[0].std() > 0.2
    assert set(theirs[1]) == {name for name, _ in model.named_parameters()}
    prove(model, 40)
    assert_same(packed(PackedPolicy(model, Weights(model, "float32"))), theirs)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_adapters_get_the_gradients_of_padded_rows_and_nothing_else_gets_any(name: str) -> None:
    model = make(name)
    adapters = LoraConfig(
        r=2, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.5, fan_in_fan_out=name == "gpt2"
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.add_adapter(adapters)
    theirs = naive(model.eval())
    assert theirs[1]
    assert all("lora_" in name for name in theirs[1])
    weights = Weights(model, "float32")
    assert set(weights.named) == set(theirs[1])
    prove(model, 40)
    for recompute in (False, True):
        ours = packed(PackedPolicy(model, weights, recompute=recompute))
        assert_same(ours, theirs)
        assert ours[1].keys() == theirs[1].keys()


@pytest.mark.parametrize("name", ["llama", "qwen2, a window", "gemma2", "gpt2"])
def test_layers_run_again_in_the_backward_pass_change_nothing(name: str) -> None:
    model = make(name)
    theirs = naive(model)
    calls = []
    mlp = next(module for name, module in model.named_modules() if name.endswith("mlp"))
    handle = mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    ours = packed(PackedPolicy(model, Weights(model, "float32"), recompute=True))
    handle.remove()
    assert calls == [True, True, False]  # forward, backward, and the statistics alone
    assert_same(ours, theirs)


def test_dropout_is_off_even_where_layers_run_again() -> None:
    model = make("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    theirs = naive(model)
    for recompute in (False, True):
        model.train()
        assert_same(packed(PackedPolicy(model, Weights(model, "float32"), recompute=recompute)), theirs)


def test_a_frozen_policy_has_statistics_and_no_gradient() -> None:
    model = make("llama").requires_grad_(False)
    theirs = naive_logps(model, ROWS)
    ours, gradients = packed(PackedPolicy(model, Weights(model, "float32")))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert gradients == {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_after_an_update_the_log_probabilities_are_the_new_weights(dtype: str) -> None:
    """Fused optimisers do not count up a tensor's version, by which a copy of it could tell that it is stale."""
    model = make("llama")
    weights = Weights(model, dtype)
    policy, part = PackedPolicy(model, weights), pack(group_rows(ROWS))
    optimiser = torch.optim.AdamW(weights, lr=0.1, fused=True)
    policy.backward(part, lambda _, known: Slopes(torch.ones_like(known.logps)))
    optimiser.step()
    weights.publish()
    found = policy.statistics(part).logps
    policy.unpack()
    torch.testing.assert_close(
        found, naive_logps(model.float(), ROWS).detach(), rtol=0, atol={"float32": 1e-4}.get(dtype, 0.1)
    )


def test_a_pack_is_one_forward_pass_of_its_own_tokens() -> None:
    policy = PackedPolicy(make("llama"))
    part = pack(group_rows([*ROWS, *ROWS]))
    with counting_tokens(policy.model) as counts:
        policy.statistics(part)
    assert counts == [11 + 1 + 6 + 3 * (8 + 0 + 3)]


# ---------------------------------------------------------------------------------------------- plain
def test_the_plain_model_generates_and_packs_go_on_after_it() -> None:
    ids = torch.tensor([[1, 5, 6, 7]])
    expected = make("llama").generate(ids, max_new_tokens=8, do_sample=False)
    policy = PackedPolicy(make("llama"))
    part = pack(group_rows(ROWS))
    before = policy.statistics(part).logps
    with policy.plain() as model:
        assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), expected)
    assert torch.equal(policy.statistics(part).logps, before)
    with pytest.raises(ZeroDivisionError), policy.plain():
        raise ZeroDivisionError
    assert torch.equal(policy.statistics(part).logps, before)


# ---------------------------------------------------------------------------------------------- proof
REFUSED: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "state space": ("mamba", {}, r"Mamba.*nats a token off its own forward pass"),
    "alibi": ("bloom", {}, r"Bloom.*nats a token off its own forward pass"),
    "sinks": (
        "gpt_oss",
        {"num_local_experts": 2, "num_experts_per_tok": 1},
        r"GptOss.*knows no attention sinks",
    ),
    "chunked": ("llama4_text", {"attention_chunk_size": 8, "num_local_experts": 2}, r"Llama4.*cannot run on packed"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_packing_does_not_know_is_refused_in_one_line(kind: str) -> None:
    family, shape, message = REFUSED[kind]
    model = make_model(family, **shape)
    with pytest.raises(TrainingError, match=message) as caught:
        prove(model, 40)
    assert "\n" not in str(caught.value)


def test_a_window_that_is_not_kept_is_found_out_where_the_data_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("mistral", sliding_window=20)
    prove(model, 40)
    kept = Layout.blocks
    monkeypatch.setattr(Layout, "blocks", lambda layout, window, *more: kept(layout, None, *more))
    with pytest.raises(TrainingError, match="off its own forward pass"):
        prove(model, 40)
    prove(model, 15)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_angles_that_hang_on_the_longest_row_are_refused_where_the_data_reaches_them(kind: str) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4} if kind == "longrope" else {"factor": 2.0}
    rope = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}
    model = make("llama", rope_parameters=rope, max_position_embeddings=128 if kind == "longrope" else 64)
    with pytest.raises(TrainingError, match="tried with rows of 72 tokens, since the data has such of 96"):
        prove(model, 96)
    prove(model, 64)


def test_a_proven_model_is_left_as_it_was() -> None:
    model = make("llama")
    with torch.no_grad():
        before = model(torch.tensor([[1, 5, 6]])).logits
        prove(model, 40)
        after = model(torch.tensor([[1, 5, 6]])).logits
    assert torch.equal(before, after)
    assert model.config._attn_implementation == "eager"


def test_bfloat16_is_proven_within_its_rounding() -> None:
    prove(make("llama").bfloat16(), 40)


# ---------------------------------------------------------------------------------------------- compiled
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler; there is no g++")
def test_layers_are_compiled_once_whatever_the_packs() -> None:
    """Same numbers as of padded rows; and other packs, of other layouts, compile nothing more."""
    model = make("llama")
    theirs = naive(model)
    policy = PackedPolicy(model, Weights(model, "float32"), compile=True)
    assert_same(packed(policy), theirs)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            part = pack(group_rows(draw_rows([4 + seed, 2], [3, 5 + seed], seed)))
            policy.backward(part, lambda number, known: Slopes(torch.ones_like(known.logps)))
