"""What the optimiser moves is float32 and loses nothing; what the model computes with may be bfloat16."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.trainers.naive import (
    VOCABULARY,
    assert_same_gradients,
    draw_rows,
    make_model,
    naive_logps,
    take_gradients,
)
from trainers.packed import PackedPolicy
from trainers.packing import group_rows, pack
from trainers.statistics import Slopes
from trainers.weights import Weights, round_parameters

DTYPES = ("float32", "bfloat16")
EMBEDDING = "model.embed_tokens.weight"


def gradients(weights: Weights) -> dict[str, Tensor]:
    return {name: master.grad for name, master in weights.masters.items() if master.grad is not None}


def loss_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)[..., 5].mean()


# ---------------------------------------------------------------------------------------------- gradients
def test_gradients_of_many_packs_add_up_in_float32() -> None:
    """Against a sum in float64 of the same bfloat16 gradients; in bfloat16 the sum itself would be off."""
    model, plain = (make_model("llama") for _ in range(2))
    weights = Weights(model, "bfloat16")
    round_parameters(plain, torch.bfloat16)
    exact: dict[str, Tensor] = {}
    rounded: dict[str, Tensor] = {}
    for seed in range(100):
        # no token twice, or the dense gradient of the embedding would itself be added up in bfloat16
        ids = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(seed))[None, :12]
        loss_of(model, ids).backward()
        loss_of(plain, ids).backward()
        for name, each in take_gradients(plain).items():
            exact[name] = exact.get(name, 0.0) + each.double()
            rounded[name] = rounded.get(name, 0.0) + each
    ours = gradients(weights)
    assert ours.keys() == exact.keys()
    assert all(each.dtype == torch.float32 for each in ours.values())
    assert_same_gradients({name: each.double() for name, each in ours.items()}, exact, relative=1e-6)
    assert max(float((rounded[name] - exact[name]).norm() / exact[name].norm()) for name in exact) > 5e-3
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sparse_gradient_of_the_embedding_is_the_dense_one(dtype: str) -> None:
    ids = torch.tensor([[3, 4, 3, 3, 9, 4, 9]])  # some tokens more than once
    found = []
    for sparse in (True, False):
        model = make_model("llama")
        weights = Weights(model, dtype)
        assert model.get_input_embeddings().sparse
        model.get_input_embeddings().sparse = sparse
        for _ in range(2):
            loss_of(model, ids).backward()
        found.append(gradients(weights))
    assert not any(each.is_sparse for each in found[0].values())
    assert torch.equal(found[0][EMBEDDING].any(-1).nonzero()[:, 0], torch.tensor([3, 4, 9]))
    assert_same_gradients(*found, relative=1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tied_embedding_gets_what_it_contributes_on_both_sides(dtype: str) -> None:
    """The sum of the two gradients in a model with the same weights untied; either alone would be far off."""
    rows = draw_rows([6, 4], [5, 3])
    untied = make_model("llama")
    untied.lm_head.weight.data = untied.get_input_embeddings().weight.detach().clone()
    naive_logps(untied, rows).sum().backward()
    sides = take_gradients(untied)
    wanted = sides[EMBEDDING] + sides["lm_head.weight"]

    tied = make_model("llama", tie_word_embeddings=True)
    tied.load_state_dict(untied.state_dict())
    weights = Weights(tied, dtype)
    policy = PackedPolicy(tied, weights)
    for group in group_rows(rows):
        policy.backward(pack([group]), lambda number, known: Slopes(torch.ones_like(known.logps)))
    assert "lm_head.weight" not in weights.masters
    tolerance = 1e-5 if dtype == "float32" else 0.05
    assert_same_gradients({"both": gradients(weights)[EMBEDDING]}, {"both": wanted}, tolerance)
    assert (
        min(float((each - wanted).norm() / wanted.norm()) for each in sides.values() if each.shape == wanted.shape)
        > 0.1
    )


def test_there_is_room_for_the_gradients_of_trainable_parameters_alone() -> None:
    model = make_model("llama")
    model.lm_head.weight.requires_grad_(False)
    weights = Weights(model, "bfloat16")
    assert weights.gradient(model.lm_head.weight) is None
    room = weights.gradient(model.model.norm.weight)
    assert room is not None
    assert room.dtype == torch.float32
    room += 1
    assert weights.gradient(model.model.norm.weight) is room
    weights.clear()
    fresh = weights.gradient(model.model.norm.weight)
    assert fresh is not None
    assert not fresh.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cleared_weights_gather_the_next_batch_alone(dtype: str) -> None:
    model = make_model("llama")
    weights = Weights(model, dtype)
    loss_of(model, torch.tensor([[3, 4, 5]])).backward()
    once = {name: each.clone() for name, each in gradients(weights).items()}
    weights.clear()
    loss_of(model, torch.tensor([[3, 4, 5]])).backward()
    again = gradients(weights)
    assert all(torch.equal(each, again[name]) for name, each in once.items())


# ---------------------------------------------------------------------------------------------- weights
def test_a_step_too_small_for_bfloat16_is_not_lost() -> None:
    """A weight of 0.02 and steps of 1e-6: bfloat16 there tells numbers 1.2e-4 apart."""
    model, plain = (make_model("llama") for _ in range(2))
    for each in (model, plain):
        torch.nn.init.constant_(each.lm_head.weight, 0.02)
    weights = Weights(model, "bfloat16")
    round_parameters(plain, torch.bfloat16)
    start = model.lm_head.weight.clone()
    optimisers = [torch.optim.SGD(list(each), lr=1e-6) for each in (weights, plain.parameters())]
    for step in range(200):
        for parameter in (*weights, *plain.parameters()):
            parameter.grad = torch.ones_like(parameter)
        for optimiser in optimisers:
            optimiser.step()
        weights.publish()
        if step == 0:
            assert torch.equal(model.lm_head.weight, start)
            assert (weights.masters["lm_head.weight"] < 0.02).all()
    torch.testing.assert_close(weights.masters["lm_head.weight"].mean().item(), 0.02 - 200e-6, rtol=1e-4, atol=0.0)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert (model.lm_head.weight < start).all()
    assert torch.equal(plain.lm_head.weight, start)


def test_rope_keeps_its_float32_frequencies() -> None:
    model, exact = make_model("llama"), make_model("llama")
    Weights(model, "bfloat16")
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    buffers, expected = dict(model.named_buffers()), dict(exact.named_buffers())
    assert any("inv_freq" in name for name in buffers)
    assert all(torch.equal(each, expected[name]) for name, each in buffers.items())


def test_in_float32_the_weights_are_the_models_own() -> None:
    model = make_model("llama")
    weights = Weights(model, "float32")
    assert all(weights.masters[name] is parameter for name, parameter in model.named_parameters())


def test_bfloat16_weights_begin_as_the_models_in_full() -> None:
    model, exact = make_model("llama"), make_model("llama")
    weights = Weights(model, "bfloat16")
    for name, parameter in exact.named_parameters():
        assert torch.equal(weights.masters[name], parameter)
        assert torch.equal(dict(model.named_parameters())[name], parameter.bfloat16())


def shake(weights: Weights) -> None:
    with torch.no_grad():
        for number, master in enumerate(weights):
            master.add_(torch.randn(master.shape, generator=torch.Generator().manual_seed(number)), alpha=0.1)
    weights.publish()


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_weights_come_back_whole(dtype: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("weights") / "state.pt"
    weights = Weights(make_model("llama"), dtype)
    shake(weights)
    torch.save(weights.state_dict(), path)
    other = Weights(make_model("llama", seed=1), dtype)
    other.load_state_dict(torch.load(path))
    assert all(torch.equal(master, other.masters[name]) for name, master in weights.masters.items())
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(loss_of(weights.model, ids), loss_of(other.model, ids))


@pytest.mark.parametrize("dtype", DTYPES)
def test_released_weights_are_the_models_in_float32(dtype: str) -> None:
    model = make_model("llama")
    weights = Weights(model, dtype)
    shake(weights)
    loss_of(model, torch.tensor([[3, 4, 5]])).backward()
    kept = {name: master.detach().clone() for name, master in weights.masters.items()}
    weights.release()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, kept[name])
        assert parameter.grad is None
    loss_of(model, torch.tensor([[3, 4, 5]])).backward()
    assert set(take_gradients(model)) == set(kept)  # nobody takes them away any more
    assert not model.get_input_embeddings().sparse
