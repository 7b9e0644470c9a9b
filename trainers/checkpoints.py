"""Models on disk: loading a policy to train it, saving one with its proof, and the state a killed run goes on from."""

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from pipeline.errors import DataError, StoreError
from pipeline.loading import ONE_MODEL_AT_A_TIME
from pipeline.policy import Probe, read_policy, write_probe
from pipeline.store import sync
from pipeline.types import Policy
from trainers.encoding import Specials, special_ids
from trainers.logprobs import plain_logprobs
from trainers.memory import is_out_of_memory
from trainers.parallel import ALONE, Share, parts_of_optimizer, whole

disable_progress_bar()  # "Loading weights" once a policy, in the middle of our own bars

PROBE_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and nobody minds.",
    "Please explain in two sentences why the sky is blue.",
    "def add(a, b):\n    return a + b  # 1 + 2 = 3",
)
PROBE_TOKENS = 32
STATE = "state"
"""Folder, in a training's own, of the state that it goes on from."""


def device() -> torch.device:
    """Where models are trained: this process' GPU where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


class Stateful(Protocol):
    """A model, or the weights of one."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


def load_model(path: Path, dtype: torch.dtype = torch.float32, place: torch.device | None = None) -> PreTrainedModel:
    """The policy's model with its weights in ``dtype``, dropout off, on ``place``, which is :func:`device` if None."""
    capped = getattr(AutoConfig.from_pretrained(path).get_text_config(), "attn_logit_softcapping", None)
    attention = "eager" if capped else None  # the fused kernels that transformers would choose leave the cap out
    with ONE_MODEL_AT_A_TIME:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention)
    return model.eval().to(place or device())


def saved_dtype(path: Path) -> torch.dtype:
    """Precision of a checkpoint's weights, as its config has it; float32 where it has none."""
    dtype: torch.dtype | None = AutoConfig.from_pretrained(path).dtype
    return dtype or torch.float32


def load_specials(path: Path) -> Specials:
    """The ids that begin a prompt and end a completion, by the policy's tokenizer and generation config."""
    model = SimpleNamespace(generation_config=None)
    if (path / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(path)
    return special_ids(load_tokenizer(path), model)


def average_policies(old: Policy, new: Policy, decay: float, directory: Path) -> Policy:
    """decay · old + (1 − decay) · new, weight by weight in float32."""
    model = load_model(new.path)
    others = dict(load_model(old.path).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a tied one once; the state dict has it twice
            parameter.lerp_(others[name], decay)
    return save_policy(model, load_tokenizer(new.path), directory)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    return tokenizer


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """Write an ordinary ``transformers`` checkpoint plus ``probe.json``, whole or not at all; replaces an older one.

    ``dtype`` is the precision of the weights on disk. The probe is computed from those very weights, so a policy
    saved in 16 bit is proved in 16 bit.

    Raises:
        StoreError: the disk does not take it.
    """
    part = directory.with_name(directory.name + ".part")
    shutil.rmtree(directory, ignore_errors=True)
    write_checkpoint(model, tokenizer, part, dtype)
    saved = model if dtype == torch.float32 else load_model(part)
    write_probe(part, make_probe(saved, tokenizer, dtype))
    complete(part, directory)
    return read_policy(directory)


def write_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: Path, dtype: torch.dtype
) -> None:
    """An ordinary ``transformers`` checkpoint in a folder that is to be completed; replaces what was begun there.

    Raises:
        StoreError: the disk does not take it.
    """
    shutil.rmtree(part, ignore_errors=True)
    state, config = in_precision(model, dtype), copy.deepcopy(model.config)
    config.dtype = dtype  # save_pretrained writes that of the model in memory
    with writing(part):
        model.save_pretrained(part, state_dict=state)
        config.save_pretrained(part)
        tokenizer.save_pretrained(part)


def complete(part: Path, directory: Path) -> None:
    """Give a folder that is written its name, once all in it is on the disk."""
    for entry in (*part.iterdir(), part):
        sync(entry)
    part.rename(directory)
    sync(directory.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises StoreError where ``path`` cannot be written, whatever the library that writes makes of it."""
    try:
        yield
    except Exception as error:  # torch has a RuntimeError for it, tokenizers a plain Exception
        if is_out_of_memory(error):
            raise
        reason, free = str(error).partition("\n")[0], shutil.disk_usage(path.parent).free
        raise StoreError(
            f"{path} cannot be written ({reason}); the disk has {free / 2**20:,.0f} MiB free; what is finished is kept"
        ) from error


def in_precision(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The model's state in ``dtype``. Tied weights stay one tensor: as two, both would be written."""
    state = model.state_dict()
    cast = {
        (tensor.data_ptr(), tensor.shape): tensor.to(dtype) if tensor.is_floating_point() else tensor
        for tensor in state.values()
    }
    return {name: cast[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}


def make_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Probe:
    """Log-probabilities of a few fixed texts and of random ids, which reach embeddings that the texts do not.

    ``dtype`` is the precision of the weights on disk, in which engines are to serve them.
    """
    longest = min(PROBE_TOKENS, getattr(model.config, "max_position_embeddings", PROBE_TOKENS) - 2)
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    random = torch.randint(0, vocabulary, (2, longest), generator=generator).tolist()
    texts = [tokenizer.encode(text, add_special_tokens=False)[:longest] for text in PROBE_TEXTS]
    sequences = [ids for ids in (*texts, *random) if len(ids) > 1]
    with torch.no_grad():
        logprobs = [plain_logprobs(model, ids).tolist() for ids in sequences]
    return Probe(sequences, logprobs, str(dtype).removeprefix("torch."))


def save_training_state(
    directory: Path,
    step: int,
    model: Stateful,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Any],
    share: Share = ALONE,
) -> None:
    """Keep all that the next step depends on; the newest state replaces the one before.

    The learning rate and the order of the data are functions of the step, so they need no state of their own. The
    first of several processes writes what a process alone would: any number of processes can go on from it.

    Raises:
        StoreError: the disk does not take it; the state before stays.
    """
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "extra": dict(extra)}
    state = whole(state, share)
    if share.writes:
        save_whole(state, directory / "state.pt")


def save_whole(value: Any, file: Path) -> None:
    """``torch.save`` that leaves ``file`` as it was, or whole. Raises StoreError where the disk does not take it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with writing(file):
        torch.save(value, part)
        sync(part)
    part.rename(file)


def load_training_state(
    directory: Path, model: Stateful, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest state into ``model`` and ``optimizer``; the step it was taken after and its extra, or None.

    Raises:
        DataError: the file is there and cannot be read.
    """
    file = directory / "state.pt"
    if not file.exists():
        return None
    try:
        # A second copy would not fit the device, nor one for each process the memory.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise DataError(f"training state {file} cannot be read ({error}); delete it to train from the start") from None
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(parts_of_optimizer(state["optimizer"], optimizer))
    return state["step"], state["extra"]
