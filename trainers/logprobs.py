"""Log-probabilities of tokens under a causal language model."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainers.encoding import Batch, Row, pad, split_by_budget


def completion_logprobs(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed log-probability of each row's completion, and its length.

    Returns:
        [rows] float64 sums in nats and [rows] token counts. The sum runs in float64 because adding hundreds of
        float32 terms loses about 1e-3, which a step-0 check would see.
    """
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    targets = batch.input_ids[:, 1:]
    counted = batch.completion_mask[:, 1:]
    picked = logits[:, :-1][counted].float()  # completion positions only: the rest never becomes float32
    tokens = picked.gather(-1, targets[counted][:, None]).squeeze(-1) - picked.logsumexp(-1)
    spread = torch.zeros(counted.shape, dtype=torch.float64, device=tokens.device)
    return spread.masked_scatter(counted, tokens.double()).sum(-1), counted.sum(-1)


@torch.no_grad()
def sequence_logprobs(model: PreTrainedModel, rows: Sequence[Row], token_budget: int, dtype: str) -> list[float]:
    """Summed log-probability (nats) of each row's completion given its prompt. No gradient; equal rows run once.

    ``token_budget`` and ``dtype`` are those of :class:`pipeline.config.TrainerConfig`.
    """
    unique = list(dict.fromkeys(rows))
    sums: dict[Row, float] = {}
    for indices in split_by_budget(unique, len, token_budget):
        chunk = [unique[index] for index in indices]
        with autocast(model.device, dtype):
            logps, _ = completion_logprobs(model, pad(chunk, pad_id=0, device=model.device))
        sums.update(zip(chunk, logps.tolist(), strict=True))
    return [sums[row] for row in rows]


@torch.no_grad()
def token_logprobs(model: PreTrainedModel, ids: Sequence[int]) -> list[float]:
    """Log-probability (nats) of each of ``ids`` given those before it; one shorter than ``ids``."""
    tokens = torch.tensor([list(ids)], device=model.device)
    logps = model(input_ids=tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    picked: list[float] = logps.gather(-1, tokens[0, 1:, None]).squeeze(-1).tolist()
    return picked


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Forward passes in ``dtype``, "bfloat16" or "float32"; the latter switches autocast off."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
