"""Tiny chat models for the tests: a policy and a reward model with byte tokenizers and chat templates."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

SPECIAL = ["<pad>", "<bos>", "<eos>"]
BOS, EOS = 1, 2
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}{{ eos_token }}"
)


def save_tokenizer(path: Path, template: str | None, **more: Any) -> None:
    """Bytes as tokens, and a BOS put before every text: the set-up in which a template gives two."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, *alphabet])}, []))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(special | more))
    fast.chat_template = template
    fast.save_pretrained(path)


def llama(**more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, bos_token_id=BOS, eos_token_id=EOS,
        initializer_range=0.3, **more,  # large, so that scores differ by more than rounding
    )  # fmt: skip


def reward_model(path: Path, template: str | None = TEMPLATE, seed: int = 0, **more: Any) -> Path:
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(llama(**{"num_labels": 1, "pad_token_id": 0} | more))
    model.save_pretrained(path)
    save_tokenizer(path, template)
    return path


def encoder_reward_model(path: Path, kind: str = "bert", **more: Any) -> Path:
    """A classifier that reads all of a text at once: BERT, or RoBERTa, which counts positions from its padding id."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3, "num_labels": 1,
        "pad_token_id": 0,
    } | more  # fmt: skip
    if kind == "bert":
        BertForSequenceClassification(BertConfig(**settings)).save_pretrained(path)
    else:
        RobertaForSequenceClassification(RobertaConfig(**settings)).save_pretrained(path)
    save_tokenizer(path, TEMPLATE)
    return path


def chat_policy(path: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random policy whose template ends with the assistant's turn begun, in 16 bit as Hub models are."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(llama(head_dim=32)).to(dtype)  # the smallest that vLLM's CPU attention has
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=0)
    model.save_pretrained(path)
    save_tokenizer(
        path, TEMPLATE.replace("{{ eos_token }}", "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    )
    return path
