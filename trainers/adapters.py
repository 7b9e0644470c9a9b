"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): little to train, and a whole policy all the same at the end.

The base is frozen and may be rounded, or held in 4 bits (Dettmers et al. 2023, arXiv:2305.14314), for as long as the
training lasts. The trained adapters are merged into the base as it lies on disk, in float32: no rounding gets into the
next policy.
"""

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import peft
import torch
from peft.helpers import rescale_adapter_scale
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipeline.config.trainer import LoraConfig
from pipeline.errors import ConfigError
from pipeline.loading import ONE_MODEL_AT_A_TIME
from trainers.checkpoints import device, load_model, writing
from trainers.packed import PackedPolicy
from trainers.packing import Pack

ADAPTER = "adapter"
"""Folder beside the policy with what was merged into it, in peft's format."""
_PREFIX = "base_model.model."
"""What peft puts before the names of the model it wraps."""


def check_quantisation(config: LoraConfig | None) -> None:
    """Raises ConfigError where ``config`` asks for 4 bits and this machine has not what they need."""
    if config is None or config.quantise is None:
        return
    missing = [] if torch.cuda.is_available() else ["a CUDA device; torch sees none"]
    missing += [] if find_spec("bitsandbytes") else ["bitsandbytes; it is not installed"]
    if missing:
        raise ConfigError(f"trainer.lora.quantise = {config.quantise!r} needs {' and '.join(missing)}")


def load_base(path: Path, config: LoraConfig, dtype: torch.dtype, place: torch.device | None = None) -> PreTrainedModel:
    """The policy's model to put adapters on: in float32, or in 4 bits with ``dtype`` for what is not quantised.

    Raises:
        ConfigError: 4 bits are asked for and impossible here.
    """
    if config.quantise is None:
        return load_model(path, place=place)
    check_quantisation(config)
    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    with ONE_MODEL_AT_A_TIME:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, quantization_config=bits, device_map={"": device()}
        )
    return model.eval()


def add_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> None:
    """Freeze the model, and put trainable adapters in float32 on it that change nothing yet.

    They are the same for the same ``seed``, in every process.

    Raises:
        ConfigError: ``config.modules`` names no linear layer, or the head.
    """
    settings = _peft_config(model, config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge(path: Path, config: LoraConfig, adapters: Mapping[str, Tensor], directory: Path) -> PreTrainedModel:
    """The checkpoint at ``path`` in float32 with ``adapters`` merged into it, on the CPU: an ordinary model again.

    ``adapters`` are the trained parameters by their names in the model that :func:`add_adapters` was given. They are
    kept in ``directory``/adapter for those who serve a base with many adapters.
    """
    base = load_model(path, place=torch.device("cpu"))
    wrapped = peft.PeftModel(base, _peft_config(base, config))
    own = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, tensor in adapters.items():
            own[_PREFIX + name].copy_(tensor)
    shutil.rmtree(directory / ADAPTER, ignore_errors=True)
    with writing(directory / ADAPTER):
        wrapped.save_pretrained(str(directory / ADAPTER), save_embedding_layers=False)
    merged: PreTrainedModel = wrapped.merge_and_unload()
    return merged


class BasePolicy(PackedPolicy):
    """A policy's own model with its adapters off: a reference in memory that takes none."""

    def __init__(self, policy: PackedPolicy) -> None:
        torch.nn.Module.__init__(self)  # the model is set up already, by the policy
        self.policy, self.model, self.workspace, self.weights = policy, policy.model, policy.workspace, None

    def forward(self, pack: Pack) -> Tensor:
        # Disabling adapters would freeze them as well, and sharded ones would stay so.
        with rescale_adapter_scale(self.model, 0.0):
            hidden: Tensor = self.policy(pack)
        return hidden


def _peft_config(model: PreTrainedModel, config: LoraConfig) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=_targets(model, config.modules),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )


def _targets(model: PreTrainedModel, modules: str | tuple[str, ...]) -> list[str]:
    """Names by which peft finds the layers: a layer's own, or the end of its path."""
    head = model.get_output_embeddings()
    paths = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.Linear | Conv1D)}
    there = sorted({name.rpartition(".")[2] for name, module in paths.items() if module is not head})
    if modules == "all-linear":
        return there
    wanted = [modules] if isinstance(modules, str) else list(modules)
    for each in wanted:
        found = [module for name, module in paths.items() if f".{name}".endswith(f".{each}")]
        if any(module is head for module in found):
            raise ConfigError(
                f"trainer.lora.modules: {each!r} is the head, which takes no adapter; allowed: {', '.join(there)}"
            )
        if not found:
            raise ConfigError(f"trainer.lora.modules: no linear layer is named {each!r}; allowed: {', '.join(there)}")
    return wanted
