"""A reward model as a judge: a sequence classifier with one logit, which is the score.

The raw logit, because a sigmoid flattens the best candidates into each other. The reward model's own tokenizer and
chat template, rendered to ids once, because a second BOS or another model's template moves scores silently.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from pipeline import config as knobs
from pipeline.errors import JudgeError
from pipeline.types import Candidate, Group, Judgment, Prompt


@dataclass(frozen=True, slots=True)
class Verdict:
    score: float | None
    tokens: int
    """Length of the whole conversation under the reward model's tokenizer."""
    abstained: str | None = None
    """Why ``score`` is None."""

    def vote(self) -> dict[str, int | str]:
        return {"tokens": self.tokens} | ({"abstained": self.abstained} if self.abstained else {})


class RewardModelJudge:
    """Loads the model when it is made, onto the GPU where there is one, and keeps it.

    Conversations are judged in batches of similar length; a score does not depend on what else is in its batch
    (to rounding). A conversation over ``max_tokens``, or over what the model has positions for, is an abstention.

    Raises:
        JudgeError: the model cannot be loaded, has not exactly one logit, or has a head that nobody trained.
    """

    def __init__(self, config: knobs.RewardModelJudge, name: str) -> None:
        self.name = name
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_reward_model(config).to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(config.path, revision=config.revision)
        text_config = self.model.config.get_text_config()
        self.longest = min(config.max_tokens, getattr(text_config, "max_position_embeddings", config.max_tokens))
        self.own_pad_id: int | None = text_config.pad_token_id

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        rows = [self.render(group.prompt, candidate) for group in groups for candidate in group.candidates]
        verdicts = iter(self._score(rows))
        judgments = []
        for group in groups:
            mine = [next(verdicts) for _ in group.candidates]
            scores, votes = tuple(v.score for v in mine), tuple(v.vote() for v in mine)
            judgments.append(Judgment(group.prompt.id, self.name, scores, votes))
        return judgments

    def render(self, prompt: Prompt, candidate: Candidate) -> list[int]:
        """Token ids of prompt and completion as the reward model was trained to read them.

        With a chat template a plain prompt is a user turn. Templates write their own BOS, so the tokenizer adds none;
        without a template the tokenizer's special tokens (BOS, CLS) go around the plain text.

        Raises:
            JudgeError: the prompt is a conversation and the reward model has no template, or not for this one.
        """
        if not self.tokenizer.chat_template:
            if prompt.messages:
                raise JudgeError(
                    f"reward model {self.config.path!r} has no chat template, but prompt {prompt.id!r} is a chat"
                )
            return list(self.tokenizer(prompt.text + candidate.text)["input_ids"])
        turns = [*prompt.messages] or [{"role": "user", "content": prompt.text}]
        turns = [*turns, {"role": "assistant", "content": candidate.text}]
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        except TemplateError as error:  # some templates take no system message, or no two turns of one role
            raise JudgeError(
                f"the chat template of reward model {self.config.path!r} refuses prompt {prompt.id!r}: {error}"
            ) from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _score(self, rows: Sequence[list[int]]) -> list[Verdict]:
        verdicts = [Verdict(None, len(row), f"longer than {self.longest} tokens") for row in rows]
        judged = [index for index, row in enumerate(rows) if len(row) <= self.longest]
        for batch in batches([len(rows[index]) for index in judged], self.config.token_budget):
            indices = [judged[position] for position in batch]
            for index, logit in zip(indices, self._logits([rows[index] for index in indices]), strict=True):
                finite = math.isfinite(logit)
                verdicts[index] = Verdict(
                    logit if finite else None, len(rows[index]), None if finite else f"the logit is {logit}"
                )
        return verdicts

    @torch.inference_mode()
    def _logits(self, rows: Sequence[list[int]]) -> list[float]:
        width = max(len(row) for row in rows)
        pad_id = self._pad_id(rows)
        # Padded on the right, so that positions are the same in every batch.
        ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.device)
        self.model.config.get_text_config().pad_token_id = pad_id
        logits: list[float] = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return logits

    def _pad_id(self, rows: Sequence[list[int]]) -> int:
        """The id to pad with. Decoder classifiers read the logit at the last id that is not this one.

        So a model that has its own keeps it: it was trained with that reading. One that has none reads the very last
        token, and any id that ends no row leaves it so.
        """
        if self.own_pad_id is not None:
            return self.own_pad_id
        ends = {row[-1] for row in rows}
        return next(token for token in range(len(ends) + 1) if token not in ends)


def load_reward_model(config: knobs.RewardModelJudge) -> PreTrainedModel:
    """The classifier in evaluation mode, checked to be a reward model. Raises JudgeError where it is none."""
    labels = _read_config(config).num_labels
    if labels != 1:
        raise JudgeError(f"reward model {config.path!r} has num_labels = {labels}; allowed: 1, a single logit")
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            config.path, revision=config.revision, dtype=config.dtype, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise JudgeError(f"reward model {config.path!r} cannot be loaded: {error}") from error
    untrained = sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"])
    if untrained:
        raise JudgeError(
            f"reward model {config.path!r} is no trained classifier: its checkpoint lacks {', '.join(untrained)},"
            " which would be random"
        )
    return model.eval()


def _read_config(config: knobs.RewardModelJudge) -> AutoConfig:
    try:
        return AutoConfig.from_pretrained(config.path, revision=config.revision)
    except (OSError, ValueError) as error:
        raise JudgeError(f"reward model {config.path!r} cannot be loaded: {error}") from error


def batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Positions grouped by similar length, so that rows times the longest row stay within ``token_budget``.

    A row longer than the budget makes a batch of its own.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        # Longest first: a batch's width is its first row's, and a batch too big for the memory fails at once.
        if batch and (len(batch) + 1) * lengths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch
