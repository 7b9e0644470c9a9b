import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel, Qwen2Config
from transformers.modeling_outputs import CausalLMOutputWithPast

from trainers.encoding import Batch, Row, pad
from trainers.logprobs import completion_logprobs, sequence_logprobs, token_logprobs

VOCABULARY = 37
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "llama": LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, initializer_range=0.2, **SHAPE),
    "qwen2": Qwen2Config(
        vocab_size=VOCABULARY, num_key_value_heads=1, initializer_range=0.2, tie_word_embeddings=True, **SHAPE
    ),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2),
}
ROWS = [
    Row((1, 5, 6), (7, 8, 9, 2)),
    Row((1,), (2,)),
    Row((1, 5, 6, 30, 31, 32), (9,)),
    Row((1, 5), tuple(range(3, 30))),
    Row((1, 5, 6), (7, 8, 9, 2)),
]


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()


def naive(model: PreTrainedModel, row: Row) -> torch.Tensor:
    """The sum as the definition has it: one sequence, no padding, one token after another."""
    logits = model(torch.tensor([row.prompt + row.completion])).logits[0]
    start = len(row.prompt)
    return sum(
        (logits[start + i - 1].log_softmax(-1)[token] for i, token in enumerate(row.completion)), torch.tensor(0.0)
    )


def spread_of(rows: list[torch.Tensor]) -> float:
    return max(float(row.detach()) for row in rows) - min(float(row.detach()) for row in rows)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("pad_id", [0, 36])
def test_summed_log_probabilities_are_the_naive_ones_whatever_the_batch(
    model: PreTrainedModel, size: int, pad_id: int
) -> None:
    batches = [pad(ROWS[start : start + size], pad_id) for start in range(0, len(ROWS), size)]
    parts = [completion_logprobs(model, batch) for batch in batches]
    model.double()
    expected = [naive(model, row) for row in ROWS]
    assert spread_of(expected) > 50
    sums = torch.cat([sums for sums, _ in parts])
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, torch.stack(expected), rtol=1e-6, atol=1e-5)
    assert torch.cat([lengths for _, lengths in parts]).tolist() == [len(row.completion) for row in ROWS]


def test_gradients_are_the_naive_ones(model: PreTrainedModel) -> None:
    weights = torch.tensor([1.0, -2.0, 3.0, 0.5, -1.5])
    (completion_logprobs(model, pad(ROWS, 0))[0] * weights).sum().backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    model.double()
    (torch.stack([naive(model, row) for row in ROWS]) * weights).sum().backward()
    theirs = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(ours[name].double(), gradient, rtol=0.0, atol=1e-5 * scale, msg=name)


def test_padding_gets_no_gradient(model: PreTrainedModel) -> None:
    batch = pad(ROWS, 36)
    hidden = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
    logits = model(inputs_embeds=hidden, attention_mask=batch.attention_mask).logits
    completion_logprobs(lambda **_: CausalLMOutputWithPast(logits=logits), batch)[0].sum().backward()
    assert hidden.grad is not None
    assert (hidden.grad[batch.attention_mask == 0] == 0).all()
    assert (hidden.grad[:, 0] != 0).any()


def test_sums_lose_nothing_over_a_long_completion() -> None:
    """4,000 equal terms: a float32 sum is off by 1e-2."""
    length, vocabulary = 4000, 10
    logits = torch.zeros(1, length + 1, vocabulary)
    batch = Batch(
        torch.ones(1, length + 1, dtype=torch.long),
        torch.ones(1, length + 1, dtype=torch.long),
        torch.arange(length + 1)[None] > 0,
    )
    sums, _ = completion_logprobs(lambda **_: CausalLMOutputWithPast(logits=logits), batch)
    term = float(torch.zeros(vocabulary).log_softmax(-1)[0])
    assert abs(sums.item() - length * term) < 1e-9


class Counting:
    """A model that notes how many rows it is given."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.device = model, model.device
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, input_ids: torch.Tensor, **rest: object) -> CausalLMOutputWithPast:
        self.shapes.append(tuple(input_ids.shape))
        return self.model(input_ids=input_ids, **rest)


def test_equal_rows_run_once_within_the_budget_and_come_back_in_order(model: PreTrainedModel) -> None:
    counting = Counting(model)
    logps = sequence_logprobs(counting, ROWS, 40, "float32")
    assert sum(rows for rows, _ in counting.shapes) == 4  # of 5
    assert all(rows * width <= 40 for rows, width in counting.shapes)
    assert logps[0] == logps[4]
    assert logps == pytest.approx([float(naive(model, row).detach()) for row in ROWS], rel=1e-5)
    assert sequence_logprobs(model, ROWS, 10_000, "float32") == pytest.approx(logps, rel=1e-6)


def test_bfloat16_is_close_but_not_the_same(model: PreTrainedModel) -> None:
    exact, rounded = (sequence_logprobs(model, ROWS, 1000, dtype) for dtype in ("float32", "bfloat16"))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.05)


def test_token_log_probabilities_sum_to_the_completions(model: PreTrainedModel) -> None:
    row = ROWS[3]
    tokens = token_logprobs(model, row.prompt + row.completion)
    assert len(tokens) == len(row) - 1
    (summed,) = sequence_logprobs(model, [row], 1000, "float32")
    assert sum(tokens[len(row.prompt) - 1 :]) == pytest.approx(summed, rel=1e-6)
