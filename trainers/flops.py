"""How much arithmetic a training step needs, and what share of a device's peak that is: the one definition, for a
training's own figures and for the benchmarks.

Counted are model FLOPs: what the step's tokens need by the model's shape, two for a multiplication and its addition,
forward and backward. Not counted is what a way of computing adds to them: padding, activations computed again to save
memory, a second pass for a loss that couples the batch; nor norms, activation functions, the embedding's look-up, the
optimiser and the reference.
"""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from trainers.packing import PromptGroup

PEAK = {
    "A100": 312e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "L40S": 362e12,
    "RTX 4090": 165e12,
}  # fmt: skip
"""Dense bfloat16 operations a second, by a part of the device's name; the first that fits counts."""


def peak_of(device: torch.device) -> float | None:
    """Operations a second of the device at best; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK.items() if part in name), None)


def utilisation(flops: float, seconds: float, device: torch.device, devices: int = 1) -> float | None:
    """Model FLOPs utilisation, MFU: ``flops`` over what ``devices`` like this one could do in ``seconds`` at best; None
    where their peak is not known.

    As Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, appendix B) define it: throughput over that of a system at peak
    FLOPs, with recomputation left out, unlike hardware FLOPs utilisation. They take 6 N + 12 L A T for every token of a
    row of T, as if it attended all of the row; here a token's attention is counted for the keys that it sees, about
    half of them, and the head at completion tokens alone. So figures are lower than by their count, and none is for
    arithmetic that the loss has no use for.
    """
    peak = peak_of(device)
    return None if peak is None else flops / seconds / (peak * devices)


class Arithmetic:
    """Operations (FLOPs) that a training step of a model needs, whatever way it is computed.

    With N parameters outside embeddings and head, of which N' are trained, L layers of width A = heads × head size, and
    a vocabulary V by hidden size H:

        FLOPs = (4 N + 2 N') · input tokens           that is 6 N a token where all are trained
              + 12 L A · keys seen by all tokens      a window's tokens see no more than the window
              + 6 V H · completion tokens             4 V H where the head is frozen

    12 is 2 FLOPs for queries by keys and 2 for weights by values, three times: forward, and backward for either side.
    Input tokens are those of packs: a prompt once, and each of its completions once but for its last token; whoever
    runs a prompt once a row gives groups of one completion. Of experts all count.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config, head = model.config.get_text_config(), model.get_output_embeddings()
        tables = (module for module in model.modules() if isinstance(module, torch.nn.Embedding))
        apart = {head.weight, *(table.weight for table in tables)}
        body = [parameter for parameter in model.parameters() if parameter not in apart]
        trained = sum(each.numel() for each in body if each.requires_grad)
        self.a_token = 4 * sum(each.numel() for each in body) + 2 * trained
        self.a_target = (6 if head.weight.requires_grad else 4) * head.weight.numel()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.a_key = 12 * config.num_attention_heads * size
        self.windows = _windows(config)

    def flops(self, groups: Iterable[PromptGroup]) -> float:
        total = 0
        for group in groups:
            total += self.a_token * group.tokens + self.a_target * sum(map(len, group.completions))
            total += self.a_key * sum(keys_seen(group, window) for window in self.windows)
        return float(total)


def keys_seen(group: PromptGroup, window: int | None = None) -> int:
    """Sum over the group's input tokens of the tokens each attends, itself included."""

    def first(count: int) -> int:
        full = count if window is None else min(count, window)
        return full * (full + 1) // 2 + (count - full) * full

    prompt = first(len(group.prompt))
    return prompt + sum(first(len(group.prompt) + len(each) - 1) - prompt for each in group.completions)


def _windows(config: object) -> list[int | None]:
    """Each layer's sliding window."""
    layers = getattr(config, "num_hidden_layers", 0)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return [window if kind == "sliding_attention" else None for kind in kinds]
