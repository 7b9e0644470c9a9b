"""A reward model as a judge: a sequence classifier run by transformers, in this process."""

import threading
from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from judges.classifier import UNLOADABLE, Classifier, one_line
from pipeline import config as knobs
from pipeline.classifiers import attention_of, float32_heads, longest_row
from pipeline.errors import JudgeError
from pipeline.loading import ONE_MODEL_AT_A_TIME
from pipeline.padding import by_length, default_budget, padded, padding_id
from pipeline.types import Group, Judgment

disable_progress_bar()  # "Loading weights", in the middle of our own bars


class RewardModelJudge:
    """Loads the model when it is made, onto the GPU where there is one, and keeps it.

    Conversations are judged in batches of similar length; a score does not depend on what else is in its batch
    (to rounding). A conversation over ``max_tokens``, or over what the model has positions for, is an abstention.

    Raises:
        JudgeError: the model cannot be loaded, has a head that nobody trained, or outputs that nobody weighed.
    """

    def __init__(self, config: knobs.RewardModelJudge, name: str) -> None:
        self.name = name
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.token_budget = config.token_budget or default_budget(self.device.type)
        self.classifier = Classifier(config)
        self.model = load_reward_model(config, self.classifier).to(self.device)
        self.classifier.shorten(longest_row(self.model))
        self._text_config = self.model.config.get_text_config()
        self._own_pad_id: int | None = self._text_config.pad_token_id
        self._one_at_a_time = threading.Lock()
        """The padding id is in the model's config while a batch runs."""

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        return self.classifier.judge(groups, self.name, self._logits)

    def _logits(self, rows: Sequence[list[int]]) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in rows]
        for batch in by_length([len(row) for row in rows], self.token_budget):
            for position, logits in zip(batch, self._forward([rows[position] for position in batch]), strict=True):
                found[position] = logits
        return found

    def close(self) -> None:
        """Nothing is open."""

    @torch.inference_mode()
    def _forward(self, rows: Sequence[list[int]]) -> list[list[float]]:
        token = padding_id(rows, self._own_pad_id)
        ids, mask = (torch.tensor(each, device=self.device) for each in padded(rows, token))
        with self._one_at_a_time:
            self._text_config.pad_token_id = token
            try:
                logits: list[list[float]] = self.model(input_ids=ids, attention_mask=mask).logits.float().tolist()
            except torch.OutOfMemoryError as error:
                raise JudgeError(
                    f"reward model {self.config.path!r}: no memory for {ids.numel()} tokens at once; give a"
                    f" token_budget below {self.token_budget}"
                ) from error
        return logits


def load_reward_model(config: knobs.RewardModelJudge, classifier: Classifier) -> PreTrainedModel:
    """The classifier in evaluation mode, checked to be a reward model. Raises JudgeError where it is none."""
    try:
        with ONE_MODEL_AT_A_TIME:
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                config.path, revision=config.revision, dtype=config.dtype, output_loading_info=True,
                attn_implementation=attention_of(classifier.config),
            )  # fmt: skip
    except UNLOADABLE as error:
        raise JudgeError(f"reward model {config.path!r} cannot be loaded: {one_line(error)}") from error
    untrained = sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"])
    if untrained:
        kind = ", ".join(classifier.config.architectures or ["model of no known class"])
        raise JudgeError(
            f"reward model {config.path!r} is no trained classifier but a {kind}: its checkpoint lacks"
            f" {', '.join(untrained)}, which would be random. `ratchet judge train` makes a reward model of it"
        )
    model.config.use_cache = model.config.get_text_config().use_cache = False  # nothing is generated
    float32_heads(model)
    return model.eval()
