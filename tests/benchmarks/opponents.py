"""TRL's DPOTrainer, driven one optimiser step at a time: as installed, and with a good chunked head in its place."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

os.environ |= {"TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}

import datasets
import torch
import transformers
import trl.trainer.utils as trl_head
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from chunked_head import ChunkedLogProbabilities
from models import Settings
from regimes import EOS, Preference

warnings.filterwarnings("ignore", module="trl|transformers|accelerate|torch")
transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()


class IdealHead:
    """Takes the place of TRL's autograd function: log-probabilities from the good head, the metrics for nothing.

    TRL's Triton kernel gets entropy, mean logit and top-1 on the way at almost no cost; zeros cost even less.
    """

    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *_: Any) -> tuple[Any, ...]:
        assert bias is None
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        logps = ChunkedLogProbabilities.apply(hidden, weight, targets, dtype)
        zeros = torch.zeros_like(logps)
        return logps, zeros, None, zeros, zeros.bool()


@contextlib.contextmanager
def ideal_head() -> Iterator[None]:
    """TRL with :class:`IdealHead`, run on completion positions alone, as TRL does where it has Triton."""
    kept = trl_head._ChunkedLogProbFunction, trl_head._use_triton
    trl_head._ChunkedLogProbFunction, trl_head._use_triton = IdealHead, lambda device: True
    try:
        yield
    finally:
        trl_head._ChunkedLogProbFunction, trl_head._use_triton = kept


class _StepByStep(DPOTrainer):
    """Takes rows that are token ids already, and reference values from outside."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


class Trl:
    """One of the two opponents.

    ``batch_size`` pairs go through the model at a time (TRL puts both completions of each into one padded batch),
    and as many of those as it takes make an optimiser step. Reference values are precomputed; no recomputation of
    activations; nothing truncated.
    """

    def __init__(self, model: PreTrainedModel, settings: Settings, batch_size: int, ideal: bool) -> None:
        self.batch_size, self.device = batch_size, settings.device
        self._settings = settings
        self._head = ideal_head if ideal else contextlib.nullcontext
        optimiser = settings.optimiser(model.parameters())
        rows = datasets.Dataset.from_list([row_of(Preference((3,), (3, EOS), (4, EOS)))])
        with tempfile.TemporaryDirectory() as folder, self._head():
            self._trainer = _StepByStep(
                model=model, args=arguments(folder, settings, batch_size), train_dataset=rows,
                processing_class=tokenizer(model.config.vocab_size), optimizers=(optimiser, None),
            )  # fmt: skip
        accelerator = self._trainer.accelerator
        self._model, self._optimiser = accelerator.prepare(self._trainer.model, self._trainer.optimizer)

    def step(self, pairs: Sequence[Preference]) -> float:
        """One optimiser step; the mean loss over the pairs before it."""
        trainer = self._trainer
        batches = self._batches(pairs)
        trainer.current_gradient_accumulation_steps = len(batches)
        with self._head():
            loss = sum(trainer.training_step(self._model, batch) for batch in batches)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.max_grad_norm)
        self._optimiser.step()
        self._model.zero_grad()
        return float(loss)

    def reference(self, pairs: Sequence[Preference]) -> list[tuple[float, float]]:
        """Summed log-probabilities (nats) of chosen and rejected by TRL's own reference pass."""
        sums: list[tuple[float, float]] = []
        with self._head():
            for batch in self._batches(pairs):
                inputs = self._trainer._prepare_inputs(batch)
                chosen, rejected = self._trainer.compute_ref_log_probs(self._model, inputs)
                sums += zip(chosen.tolist(), rejected.tolist(), strict=True)
        return sums

    def _batches(self, pairs: Sequence[Preference]) -> list[dict[str, Tensor]]:
        """Padded batches. TRL averages each by itself, so uneven ones would make another loss than the mean."""
        assert len(pairs) % self.batch_size == 0, (len(pairs), self.batch_size)
        rows = list(map(row_of, pairs))
        return [
            self._trainer.data_collator(rows[start : start + self.batch_size])
            for start in range(0, len(rows), self.batch_size)
        ]


def row_of(pair: Preference) -> dict[str, Any]:
    return {
        "prompt_ids": list(pair.prompt),
        "chosen_ids": list(pair.chosen),
        "rejected_ids": list(pair.rejected),
        "ref_chosen_logps": pair.reference[0],
        "ref_rejected_logps": pair.reference[1],
    }


def arguments(folder: str, settings: Settings, batch_size: int) -> DPOConfig:
    return DPOConfig(
        folder, per_device_train_batch_size=batch_size, precompute_ref_log_probs=True, beta=settings.beta,
        bf16=settings.precision == "bfloat16", use_cpu=settings.device == "cpu", gradient_checkpointing=False,
        max_length=None, learning_rate=settings.learning_rate, max_steps=10**6, dataloader_pin_memory=False,
        save_strategy="no", report_to=[], logging_steps=10**6, disable_tqdm=True,
    )  # fmt: skip


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer TRL accepts; no text is ever tokenised."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": EOS} | {f"w{i}": i for i in range(EOS + 1, vocabulary)}
    level = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=level, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
