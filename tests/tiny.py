"""Tiny real policies for the tests: a random Llama, a character tokenizer, a probe."""

import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.loading import ONE_MODEL_AT_A_TIME
from pipeline.policy import Probe, read_policy, write_probe
from pipeline.types import Policy

ALPHABET = " " + string.ascii_lowercase + ".,?"
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
PAD, BOS, EOS, UNK = range(4)


def make_policy(
    path: Path,
    *,
    tied: bool = False,
    alphabet: str = ALPHABET,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    dtype: torch.dtype = torch.float32,
    spread: float = 0.2,
) -> Policy:
    """A random Llama checkpoint at ``path``; ``spread``, the weights' standard deviation, sets how peaked it is."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(alphabet),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the smallest that vLLM's CPU attention has
        max_position_embeddings=256,
        initializer_range=spread,
        tie_word_embeddings=tied,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return _save(config, _tokenizer(alphabet), path, seed, dtype)


def perturb(policy: Policy, path: Path, seed: int) -> Policy:
    """The same architecture and tokenizer with other weights, at ``path``."""
    config = LlamaConfig.from_pretrained(policy.path)
    return _save(config, PreTrainedTokenizerFast.from_pretrained(policy.path), path, seed, config.dtype)


def token_ids(text: str, alphabet: str = ALPHABET) -> tuple[int, ...]:
    """``text`` as a policy with this alphabet reads it, BOS first."""
    return (BOS, *(len(SPECIAL) + alphabet.index(character) for character in text))


def naive_logprobs(policy: Policy, sequences: list[list[int]]) -> list[list[float]]:
    """Nats a token by one float32 forward pass a sequence: the plainest computation there is."""
    with ONE_MODEL_AT_A_TIME:  # servers that tests start ask from threads of their own
        model = LlamaForCausalLM.from_pretrained(policy.path, dtype=torch.float32)
    rows = []
    with torch.no_grad():
        for ids in sequences:
            logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            rows.append(logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    return rows


def naive_next(policy: Policy, ids: tuple[int, ...]) -> torch.Tensor:
    """Probabilities of the token after ``ids``: float32 [vocabulary]."""
    with torch.no_grad():
        model = LlamaForCausalLM.from_pretrained(policy.path, dtype=torch.float32)
        return model(torch.tensor([ids])).logits[0, -1].softmax(-1)


def _save(config: LlamaConfig, tokenizer: PreTrainedTokenizerFast, path: Path, seed: int, dtype: torch.dtype) -> Policy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(dtype)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(len(SPECIAL), config.vocab_size, (4, 24), generator=draws).tolist()
    sequences = [[BOS, *row] for row in ids]
    policy = read_policy(path)
    write_probe(path, Probe(sequences, naive_logprobs(policy, sequences), str(dtype).removeprefix("torch.")))
    return policy


def _tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate([*SPECIAL.values(), *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL['bos_token']} $A", special_tokens=[(SPECIAL["bos_token"], BOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
