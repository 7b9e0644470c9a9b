"""Models of random weights, shaped like small Llamas (CPU) and like Qwen2 (GPU)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

from regimes import Preference


@dataclass(frozen=True, slots=True)
class Settings:
    """What all contestants share."""

    device: str = "cpu"
    precision: str = "bfloat16"
    """Of autocast: "bfloat16", or "float32" for none."""
    learning_rate: float = 3e-4
    """Takes the loss from 0.69 to about 0.5 in six steps, so that curves have something to disagree about."""
    beta: float = 0.1
    compile: bool = False
    """torch.compile of every decoder layer."""
    max_grad_norm: float = 1.0

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")

    def optimiser(self, weights: Iterable[Tensor]) -> torch.optim.AdamW:
        return torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=0.0, fused=True)


CPU_SHAPES = {
    "A": {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "num_key_value_heads": 2,
          "vocab_size": 32_000},
    "B": {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_key_value_heads": 4,
          "vocab_size": 8_000},
}  # fmt: skip
GPU_SHAPES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
}


def config_of(name: str) -> PretrainedConfig:
    if name in CPU_SHAPES:
        return LlamaConfig(
            **CPU_SHAPES[name], num_hidden_layers=6, max_position_embeddings=2048, initializer_range=0.05,
            use_cache=False, pad_token_id=0,
        )  # fmt: skip
    return Qwen2Config(
        **GPU_SHAPES[name], num_key_value_heads=2, vocab_size=151_936, tie_word_embeddings=True,
        max_position_embeddings=4096, use_cache=False, pad_token_id=0,
    )  # fmt: skip


def make_model(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """The model ``name`` of the two tables; equal weights for an equal seed."""
    torch.manual_seed(seed)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config_of(name), attn_implementation="sdpa")
    return model.to(dtype).train()


@torch.no_grad()
def with_reference(model: PreTrainedModel, pairs: Sequence[Preference], settings: Settings) -> list[Preference]:
    """The pairs with the summed log-probabilities of ``model`` itself, the policy before its first step.

    Computed by neither contestant: one row a forward pass, no padding, in the precision of training, so that the loss
    of the first step is log 2 up to that precision.
    """
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}

    def logps(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
        if (prompt, completion) not in known:
            ids = torch.tensor([[*prompt, *completion]], device=settings.device)
            targets = ids[0, len(prompt) :]
            with settings.autocast():
                logits: Tensor = model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=len(completion)).logits
            tokens = logits[0].float().log_softmax(-1).gather(-1, targets[:, None])
            known[prompt, completion] = tokens.double().sum().item()
        return known[prompt, completion]

    return [pair.with_reference(logps(pair.prompt, pair.chosen), logps(pair.prompt, pair.rejected)) for pair in pairs]
