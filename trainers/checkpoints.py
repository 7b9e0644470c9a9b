"""Models on disk: loading a policy to train it, saving one with its proof, and the state a killed run goes on from."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from pipeline.errors import DataError
from pipeline.policy import Probe, read_policy, write_probe
from pipeline.types import Policy
from trainers.logprobs import token_logprobs

disable_progress_bar()  # "Loading weights" once a policy, in the middle of our own bars

PROBE_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and nobody minds.",
    "Please explain in two sentences why the sky is blue.",
    "def add(a, b):\n    return a + b  # 1 + 2 = 3",
)
PROBE_TOKENS = 32


def device() -> torch.device:
    """Where models are trained: the first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(path: Path) -> PreTrainedModel:
    """The policy's model in float32 with dropout off, on :func:`device`.

    Dropout stays off in training too: a policy that differs from its reference by noise alone has no loss of ln 2.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.config.use_cache = False
    return model.eval().to(device())


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    return tokenizer


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """Write an ordinary ``transformers`` checkpoint plus ``probe.json``, whole or not at all.

    ``dtype`` is the precision of the weights on disk. The probe is computed from those very weights, so a policy
    saved in 16 bit is proved in 16 bit.
    """
    part = directory.with_name(directory.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.config.dtype = dtype
    model.save_pretrained(part, state_dict=state)
    tokenizer.save_pretrained(part)
    saved = model if dtype == torch.float32 else load_model(part)
    write_probe(part, make_probe(saved, tokenizer, str(dtype).removeprefix("torch.")))
    part.rename(directory)
    return read_policy(directory)


def make_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str) -> Probe:
    """Log-probabilities of a few fixed texts and of random ids, which reach embeddings that the texts do not."""
    longest = min(PROBE_TOKENS, getattr(model.config, "max_position_embeddings", PROBE_TOKENS) - 2)
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(0, len(tokenizer), (2, longest), generator=generator).tolist()
    texts = [tokenizer.encode(text, add_special_tokens=False)[:longest] for text in PROBE_TEXTS]
    sequences = [ids for ids in (*texts, *random) if len(ids) > 1]
    with torch.no_grad():
        logprobs = [token_logprobs(model, ids) for ids in sequences]
    return Probe(sequences, logprobs, dtype)


def save_training_state(
    directory: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Any],
) -> None:
    """Keep all that the next step depends on; the newest state replaces the one before.

    The learning rate and the order of the data are functions of the step, so they need no state of their own.
    """
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / "state.part"
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "extra": dict(extra)}
    with open(part, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(directory / "state.pt")


def load_training_state(
    directory: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest state into ``model`` and ``optimizer``; the step it was taken after and its extra, or None.

    Raises:
        DataError: the file is there and cannot be read.
    """
    file = directory / "state.pt"
    if not file.exists():
        return None
    try:
        state = torch.load(file, map_location=next(model.parameters()).device, weights_only=True)
    except Exception as error:
        raise DataError(f"training state {file} cannot be read ({error}); delete it to train from the start") from None
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["extra"]
