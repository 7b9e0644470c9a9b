"""Completions and comparisons for an objective, made from random logits as a policy would."""

from typing import Any, get_args

import torch
from pydantic import TypeAdapter
from torch import Tensor

from pipeline.config import LossConfig
from trainers.comparisons import Comparisons, Completions
from trainers.objective import Objective

PARSE: TypeAdapter[LossConfig] = TypeAdapter(LossConfig)
TYPES = sorted(get_args(model.model_fields["type"].annotation)[0] for model in get_args(get_args(LossConfig)[0]))
BETA = 0.3
PAIRS = 6


def term(name: str, **parameters: Any) -> LossConfig:
    return PARSE.validate_python({"type": name, **parameters})


def make_completions(count: int = 12, seed: int = 0) -> Completions:
    """Completions of 1 to 9 tokens with everything any loss needs, worked out from random logits over 7 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (count,), generator=generator)
    total = int(lengths.sum())
    logits, reference = torch.randn(2, total, 7, generator=generator).log_softmax(-1)
    ids = torch.randint(7, (total, 1), generator=generator)
    owner = torch.arange(count).repeat_interleave(lengths)
    reference_tokens = reference.gather(1, ids)[:, 0]
    return Completions(
        token_logps=logits.gather(1, ids)[:, 0].requires_grad_(),
        owner=owner,
        lengths=lengths,
        reference_logps=torch.zeros(count, dtype=torch.float64).index_add(0, owner, reference_tokens.double()),
        collision=(2 * logits).logsumexp(-1),
        reference_kl=(reference.exp() * (reference - logits)).sum(-1).requires_grad_(),
        reference_token_logps=reference_tokens,
    )


def compare(chosen: list[int], rejected: list[int], singles: list[int] | None = None, **fields: Any) -> Comparisons:
    p, s = len(chosen), len(singles or ())
    defaults = {
        "margins": torch.linspace(0.5, 2.0, p, dtype=torch.float64),
        "preferences": torch.linspace(0.6, 1.0, p, dtype=torch.float64),
        "betas": torch.full((p,), BETA, dtype=torch.float64),
        "desirable": torch.arange(s) % 3 != 0,
        "single_betas": torch.full((s,), BETA, dtype=torch.float64),
        "mismatched": torch.tensor([], dtype=torch.int64),
    }
    index = {"chosen": chosen, "rejected": rejected, "singles": singles or []}
    indices = {name: torch.tensor(each, dtype=torch.int64) for name, each in index.items()}
    return Comparisons(**indices, **(defaults | fields))


EVERY = compare([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11], mismatched=torch.tensor([3, 8]))
"""Six pairs of twelve completions."""


SOME = compare([0, 2], [1, 3], [4, 5, 6, 7, 8], mismatched=torch.tensor([9, 10, 11]))
"""Two pairs, and five completions labelled one by one."""


def losses(*terms: LossConfig, completions: Completions, comparisons: Comparisons = EVERY) -> Tensor:
    return Objective(terms, BETA)(completions, comparisons)[0]


def pairs(completions: Completions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logps, reference = completions.logps, completions.reference_logps
    return logps[EVERY.chosen], logps[EVERY.rejected], reference[EVERY.chosen], reference[EVERY.rejected]
