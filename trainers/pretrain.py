"""A small Llama from nothing: the base policy of demos, tests and studies.

What a step does depends on nothing but the weights, the optimiser, the corpus, the config, the seed and the step
number. So a training that is killed and goes on from its last state ends with the same weights, bit for bit (on a CPU,
for a given number of threads).
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from pipeline.config import ScratchPolicy
from pipeline.errors import DataError, NonFiniteError, RatchetError
from pipeline.functions import resolve
from pipeline.loading import ONE_MODEL_AT_A_TIME
from pipeline.policy import read_policy
from pipeline.protocols import Progress, silent
from pipeline.types import Policy
from trainers.checkpoints import STATE, device, load_training_state, save_policy, save_training_state
from trainers.schedule import warmup_then
from trainers.tokenizer import build_tokenizer

METRICS = "metrics.jsonl"
CHECKPOINT_STEPS = 100
WARMUP = 0.05
"""Share of the steps in which the learning rate rises; a cosine to zero follows."""
WEIGHT_DECAY = 0.1
SORTED_BATCHES = 32
"""Batches that are filled together from texts sorted by length: little padding, and still a random order."""


def train_from_scratch(config: ScratchPolicy, seed: int, directory: Path, progress: Progress = silent) -> Policy:
    """Train a policy on the corpus and save it as ``directory/policy``.

    ``directory`` also gets ``metrics.jsonl`` and, meanwhile, the state from which the same call goes on after a kill.

    Raises:
        DataError: the corpus function fails, or returns anything but a list of texts that are not empty.
        NonFiniteError: the loss became NaN or infinite.
    """
    if (directory / "policy").exists():  # it appears whole, and last
        shutil.rmtree(directory / STATE, ignore_errors=True)
        return read_policy(directory / "policy")
    texts = read_corpus(config)
    tokenizer = build_tokenizer(config, texts)
    rows = encode(tokenizer, texts, config.max_length)
    model = new_model(config, tokenizer, seed).to(device())
    losses = fit(model, rows, config, seed, directory, progress)
    lines = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in enumerate(losses, 1)]
    (directory / METRICS).write_text("".join(lines))
    policy = save_policy(model, tokenizer, directory / "policy")
    shutil.rmtree(directory / STATE, ignore_errors=True)
    return policy


def read_corpus(config: ScratchPolicy) -> list[str]:
    name = config.corpus.function
    corpus = resolve(config.corpus)
    try:
        texts = corpus()
    except RatchetError:
        raise
    except Exception as error:
        raise DataError(f"corpus function {name!r} raised {error!r}") from error
    if not isinstance(texts, list) or not texts:
        raise DataError(f"corpus function {name!r} returned {str(texts)[:80]}; allowed: a list of texts, at least one")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise DataError(f"corpus function {name!r}: text {number} is {text!r}; allowed: a string that is not empty")
    return texts


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """BOS, text, EOS each; cut after ``max_length`` tokens, so that a text cut short does not claim to end."""
    encoded = tokenizer(list(texts))["input_ids"]
    return [[*ids, tokenizer.eos_token_id][:max_length] for ids in encoded]


def new_model(config: ScratchPolicy, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """An untrained Llama in float32. Embeddings are tied: at these sizes they are most of the parameters."""
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=8 * round(config.hidden_size / 3),
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        head_dim=32 * math.ceil(config.hidden_size / config.heads / 32),  # vLLM's CPU attention has no others
        max_position_embeddings=config.max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with ONE_MODEL_AT_A_TIME:
            return LlamaForCausalLM(llama)


def fit(
    model: LlamaForCausalLM,
    rows: Sequence[list[int]],
    config: ScratchPolicy,
    seed: int,
    directory: Path,
    progress: Progress,
) -> list[float]:
    """Minimise the mean negative log-likelihood of every token but the BOS; the loss of each step, nats a token."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    per_epoch = math.ceil(len(rows) / config.batch_size)
    steps = max(1, round(config.epochs * per_epoch))
    warmup = max(1, round(WARMUP * steps))
    first, extra = load_training_state(directory / STATE, model, optimizer) or (0, {"losses": []})
    losses: list[float] = extra["losses"]
    model.train()
    for step in range(first, steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0 or step == first:
            batches = batches_of_epoch(rows, config.batch_size, seed, epoch)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup_then(step, steps, warmup, "cosine")
        losses.append(update(model, optimizer, [rows[index] for index in batches[position]], step))
        progress(step + 1, steps, f"loss {losses[-1]:.3f}")
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
            save_training_state(directory / STATE, step + 1, model, optimizer, {"losses": losses})
    model.eval()
    return losses


def update(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, rows: Sequence[list[int]], step: int) -> float:
    """One optimiser step on a padded batch; the mean loss a token before it, nats."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    # Padding is on the right and attention is causal, so no real token sees it: only its targets are masked.
    optimizer.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids.masked_fill(real == 0, -100), use_cache=False).loss
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonFiniteError(f"pretraining step {step}: the loss is {value}; try a lower policy.learning_rate")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return value


def batches_of_epoch(rows: Sequence[list[int]], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every row's index once, in batches of similar length, in an order that only seed and epoch decide."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(rows), generator=generator).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * SORTED_BATCHES):
        near = sorted(order[start : start + batch_size * SORTED_BATCHES], key=lambda index: len(rows[index]))
        batches += [near[first : first + batch_size] for first in range(0, len(near), batch_size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
