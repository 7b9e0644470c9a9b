"""What a reward model is made of, and how it is kept: a base with a head of one logit, in and out of a directory."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from pipeline.classifiers import attention_of, float32_heads, heads_of, reads_last_token
from pipeline.errors import DataError
from pipeline.loading import ONE_MODEL_AT_A_TIME
from trainers.checkpoints import complete, device, write_checkpoint
from trainers.weights import DTYPES, Weights

LABEL = "reward"


def load_base(path: Path, seed: int, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]) -> PreTrainedModel:
    """The model in ``path``, in float32 with dropout off, as a classifier with one logit.

    A classifier with one logit keeps its head. Any other model gets a new one, drawn with ``seed`` from
    N(0, 1 / (width + 1)) (Stiennon et al. 2020, arXiv:2009.01325), so that rewards begin near 0.

    Args:
        ends: the last ids of all rows, of which a new head must not take one for padding.

    Raises:
        DataError: transformers can make no classifier of it, or its checkpoint lacks more than the head.
    """
    config = AutoConfig.from_pretrained(path)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the head that is missing is said to be so at length
    try:
        with ONE_MODEL_AT_A_TIME:
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, num_labels=1, attn_implementation=attention_of(config),
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise DataError(
            f"{path} cannot be made a reward model: {(str(error).strip() or repr(error)).splitlines()[0]}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    new = {*loading["missing_keys"], *(key[0] for key in loading["mismatched_keys"])}
    of_base = [name for name in sorted(new) if name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name]
    if of_base:  # a pooler belongs to the head: a masked language model has none
        raise DataError(f"{path} lacks {', '.join(of_base)}, which would be random; allowed: a whole checkpoint")
    if new:
        _draw(model, new, seed)
        model.config.get_text_config().pad_token_id = _padding(model.config, tokenizer, set(ends))
    model.config.id2label, model.config.label2id = {0: LABEL}, {LABEL: 0}
    model.config.problem_type = "regression"  # what serves it is to put no sigmoid on it
    model.config.use_cache = model.config.get_text_config().use_cache = False
    return model.eval().to(device())


def weights_of(model: PreTrainedModel, dtype: str) -> Weights:
    """``model``'s weights to train; it computes in ``dtype`` with a head in float32, as the judge does."""
    heads = [parameter for module in heads_of(model) for parameter in module.parameters()]
    weights = Weights(model, dtype, exact=heads)
    float32_heads(model)
    return weights


@torch.no_grad()
def round_head(model: PreTrainedModel, dtype: str) -> None:
    """Give the head the values it will have when it was saved in ``dtype``."""
    for module in heads_of(model):
        for parameter in module.parameters():
            parameter.copy_(parameter.to(DTYPES[dtype]))


def save_reward_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, dtype: str) -> None:
    """Write an ordinary ``transformers`` checkpoint, whole or not at all. Raises StoreError."""
    part = directory.with_name(directory.name + ".part")
    write_checkpoint(model, tokenizer, part, DTYPES[dtype])
    complete(part, directory)


@torch.no_grad()
def _draw(model: PreTrainedModel, names: Iterable[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    for name in sorted(names):
        parameter = parameters[name]
        if parameter.ndim < 2:
            parameter.zero_()
        else:
            drawn = torch.randn(parameter.shape, generator=generator) / (parameter.shape[1] + 1) ** 0.5
            parameter.copy_(drawn)


def _padding(config: Any, tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> int | None:
    """What a new head takes for padding. A decoder's logit is that of the last id that is none, which is to be the
    row's own last, everywhere: so not an id that ends a row, as an EOS in the place of padding would."""
    own: int | None = config.get_text_config().pad_token_id
    if not reads_last_token(config):
        return own
    return next((token for token in (own, tokenizer.pad_token_id) if token is not None and token not in ends), None)
