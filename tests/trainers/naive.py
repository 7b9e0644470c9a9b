"""Tiny models of many families, and log-probabilities as anyone would compute them: padded rows, all logits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from trainers.examples import Row

VOCABULARY = 53


def make_model(family: str, seed: int = 0, **shape: Any) -> PreTrainedModel:
    """Random weights large enough that log-probabilities differ; two layers unless told otherwise."""
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
            "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            **shape,
        },
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def draw_rows(prompts: Sequence[int], completions: Sequence[int], seed: int = 0) -> list[Row]:
    """Of every prompt length, completions of every length; random tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())

    return [Row(prompt, draw(length)) for prompt in map(draw, prompts) for length in completions]


def naive_logits(model: PreTrainedModel, rows: Sequence[Row]) -> list[Tensor]:
    """[tokens of the completion, vocabulary] of each row, from one batch padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row.prompt, *row.completion] + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return [each[len(row.prompt) - 1 : len(row) - 1] for each, row in zip(logits, rows, strict=True)]


def naive_logps(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    """log π of every completion's tokens, one row after another, nats; with gradient."""
    logps = torch.cat(naive_logits(model, rows)).log_softmax(-1)
    return logps.gather(-1, torch.tensor([token for row in rows for token in row.completion])[:, None])[:, 0]


def take_gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    """Of the parameters that have one; the model has none afterwards."""
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], relative: float = 1e-5) -> None:
    """By name and norm; a gradient that only one side has must be zero."""
    largest = max(float(each.norm()) for each in theirs.values())
    assert largest > 0
    for name in ours.keys() | theirs.keys():
        mine, wanted = (side.get(name, torch.zeros(())) for side in (ours, theirs))
        gap = float((mine - wanted).norm())
        assert gap <= max(relative * float(wanted.norm()), 1e-7 * largest), f"{name}: {gap} of {float(wanted.norm())}"


@contextmanager
def counting_tokens(model: PreTrainedModel) -> Iterator[list[int]]:
    """Input tokens of each forward pass of the decoder."""
    counts: list[int] = []

    def count(_module: torch.nn.Module, _args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        counts.append(inputs["input_ids"].numel())

    handle = model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()
