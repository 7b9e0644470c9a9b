"""The trainer's arithmetic on a GPU: flex attention and the chunked head against the model's own forward pass."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from trainers.logprobs import plain_logprobs
from trainers.packed import PackedPolicy, prove
from trainers.packing import PromptGroup, pack
from trainers.statistics import Slopes
from trainers.weights import Weights

pytestmark = pytest.mark.gpu


def make_model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=1000, max_position_embeddings=2048, initializer_range=0.1,
    )  # fmt: skip
    model: PreTrainedModel = LlamaForCausalLM(config)
    return model.cuda().eval()


def make_groups() -> list[PromptGroup]:
    """Some 700 tokens: several blocks of flex attention."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 1000, (count,), generator=generator).tolist())

    return [PromptGroup(draw(300), (draw(150), draw(1), draw(40))), PromptGroup(draw(9), (draw(200), draw(3)))]


@pytest.mark.parametrize("recompute", [False, True])
def test_log_probabilities_and_gradients_of_packs_are_those_of_the_model_itself(recompute: bool) -> None:
    model, packed = make_model(), pack(make_groups(), "cuda")
    scales = torch.randn(len(packed.targets), device="cuda")
    with torch.enable_grad():
        rows = []
        for row in packed.rows:
            ids = torch.tensor([row.prompt + row.completion], device="cuda")
            logps = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
            rows.append(logps.gather(-1, ids[0, len(row.prompt) :, None])[:, 0])
        theirs = torch.cat(rows)
        (theirs * scales).sum().backward()
    wanted = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    policy = PackedPolicy(model, Weights(model, "float32"), recompute=recompute)
    chunks = policy.chunks(packed)
    ours = policy.backward(packed, lambda number, known: Slopes(scales[chunks[number][0]]))
    torch.testing.assert_close(ours.logps, theirs.detach(), rtol=1e-3, atol=1e-3)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad - wanted[name]).norm() <= 1e-2 * wanted[name].norm(), name


def test_a_model_that_packing_knows_is_proved_in_float32_and_in_bfloat16() -> None:
    prove(make_model(), 600)
    prove(make_model().bfloat16(), 600)


def test_bfloat16_packs_are_as_close_to_float32_as_the_models_own_bfloat16_pass() -> None:
    model, packed = make_model(), pack(make_groups(), "cuda")
    exact = torch.cat(
        [plain_logprobs(model, row.prompt + row.completion)[len(row.prompt) - 1 :] for row in packed.rows]
    )
    model.bfloat16()
    plain = torch.cat(
        [plain_logprobs(model, row.prompt + row.completion)[len(row.prompt) - 1 :] for row in packed.rows]
    )
    ours = PackedPolicy(model).statistics(packed).logps
    assert (ours - exact).abs().mean() <= 1.5 * (plain - exact).abs().mean()
