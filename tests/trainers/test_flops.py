"""The count of arithmetic against an independent one: torch's own counter on the naive computation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.trainers.naive import make_model
from trainers.flops import Arithmetic, keys_seen, peak_of, utilisation
from trainers.packing import PromptGroup


@given(
    st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.none() | st.integers(1, 15)
)  # fmt: skip
def test_a_token_sees_the_prompt_and_its_own_completion_within_the_window(
    prompt: int, completions: list[int], window: int | None
) -> None:
    seen = [min(place + 1, window or place + 1) for place in range(prompt)]
    for length in completions:
        seen += [min(prompt + place + 1, window or 100) for place in range(length - 1)]
    group = PromptGroup((1,) * prompt, tuple((2,) * length for length in completions))
    assert keys_seen(group, window) == sum(seen)


@pytest.mark.parametrize(("family", "shape"), [("llama", {}), ("qwen3", {"head_dim": 16})])
def test_matrix_products_are_those_that_torch_counts(family: str, shape: dict[str, int]) -> None:
    """One completion and no padding, so that the naive forward and backward pass do nothing needless but attend the
    future too, and predict the prompt."""
    model = make_model(family, tie_word_embeddings=True, **shape)
    prompt, completion = 12, 20
    tokens = prompt + completion - 1
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(input_ids=torch.ones(1, tokens, dtype=torch.int64)).last_hidden_state
        model.get_output_embeddings()(hidden[:, -completion:]).sum().backward()
    group = PromptGroup((1,) * prompt, ((2,) * completion,))
    arithmetic = Arithmetic(model)
    future = arithmetic.a_key * len(arithmetic.windows) * (tokens**2 - keys_seen(group))
    ours = arithmetic.flops([group]) + future
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)  # norms and biases are no matrix products


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    model = make_model("llama")
    group = PromptGroup((1,) * 5, ((2,) * 9,))
    all_trained = Arithmetic(model).flops([group])
    head = model.get_output_embeddings().weight
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert Arithmetic(model).flops([group]) == pytest.approx(
        all_trained - 2 * head.numel() * 9 - 2 * group.tokens * _body(model)
    )


def _body(model: torch.nn.Module) -> int:
    return sum(each.numel() for name, each in model.named_parameters() if "embed" not in name and "lm_head" not in name)


def test_one_completion_a_row_costs_its_prompt_each_time() -> None:
    """As a trainer without shared prompts runs them: the prompt's tokens and keys twice, the completions' as before."""
    arithmetic = Arithmetic(make_model("llama"))
    prompt, completions = (1,) * 7, ((2,) * 9, (3,) * 4)
    shared = arithmetic.flops([PromptGroup(prompt, completions)])
    apart = arithmetic.flops([PromptGroup(prompt, (completion,)) for completion in completions])
    seen = len(prompt) * (len(prompt) + 1) / 2
    assert apart - shared == arithmetic.a_token * len(prompt) + arithmetic.a_key * len(arithmetic.windows) * seen


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12), ("Tesla T4", None)],
)
def test_utilisation_is_of_the_peak_of_all_devices(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = utilisation(4e14, 2.0, torch.device("cuda"), devices=4)
    assert found == (None if peak is None else pytest.approx(2e14 / (4 * peak)))


def test_the_peak_of_a_cpu_is_not_known() -> None:
    assert peak_of(torch.device("cpu")) is None
    assert utilisation(1.0, 1.0, torch.device("cpu")) is None
