"""Completions of a few prompts, for people to watch a training by."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from trainers.metrics import Sample
from trainers.packed import PackedPolicy

LONGEST = 64
"""Tokens a completion at most."""


@torch.no_grad()
def sample_completions(
    policy: PackedPolicy, prompts: Sequence[tuple[int, ...]], tokenizer: PreTrainedTokenizerBase
) -> list[Sample]:
    """The likeliest next tokens of each prompt, one prompt after another; no random number is drawn."""
    samples = []
    with policy.plain() as model:
        ends, pad = model.generation_config.eos_token_id, model.generation_config.pad_token_id
        if pad is None:
            pad = ends[0] if isinstance(ends, list) else ends
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        for prompt in prompts:
            length = LONGEST if room is None else min(LONGEST, room - len(prompt))
            if length < 1:
                continue
            settings = GenerationConfig(do_sample=False, max_new_tokens=length, eos_token_id=ends, pad_token_id=pad)
            ids = torch.tensor([prompt], device=model.device)
            drawn = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            completion = drawn[0, len(prompt) :].tolist()
            samples.append(Sample(tokenizer.decode(prompt), tokenizer.decode(completion, skip_special_tokens=True)))
    return samples
