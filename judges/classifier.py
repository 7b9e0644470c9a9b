"""What judging with a sequence classifier takes, whoever runs it: ids in, the logits that count, verdicts out.

Only its config and tokenizer are loaded here. The raw logit is the score, because a sigmoid flattens the best
candidates into each other; of several outputs it is a weighted sum, and all of them are kept.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from pipeline import config as knobs
from pipeline.classifiers import labels_of
from pipeline.conversation import Reader, UnreadableError
from pipeline.errors import JudgeError
from pipeline.types import Candidate, Group, Judgment, Prompt

Logits = Callable[[Sequence[list[int]]], Sequence[Sequence[float]]]
"""Rows of ids to a logit for each output, a row each, in order. May be called with no rows."""
UNLOADABLE = (OSError, ValueError, RuntimeError, ImportError, KeyError)
"""What transformers raises at files that are not there, or not what they should be."""


@dataclass(frozen=True, slots=True)
class Verdict:
    score: float | None
    tokens: int
    """Length of the whole conversation under the reward model's tokenizer."""
    logits: Mapping[str, float | None]
    """Of every output; None for one that is no finite number. Empty where the model was not asked."""
    abstained: str | None = None
    """Why ``score`` is None."""

    def vote(self) -> dict[str, Any]:
        asked = {"logits": dict(self.logits)} if self.logits else {}
        return {"tokens": self.tokens, **asked, **({"abstained": self.abstained} if self.abstained else {})}


class Classifier:
    """A reward model without its weights. A conversation over ``longest`` tokens is an abstention.

    Raises:
        JudgeError: config or tokenizer cannot be read, or the weights of its outputs name none of them.
    """

    def __init__(self, config: knobs.RewardModelJudge) -> None:
        self.path = config.path
        self.config = read_config(config)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(config.path, revision=config.revision)
        except UNLOADABLE as error:
            raise JudgeError(f"reward model {config.path!r} has no tokenizer that loads: {one_line(error)}") from error
        self.labels = labels_of(self.config)
        self.weights = weigh(config.heads, self.labels, config.path)
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        self.longest = config.max_tokens
        self.shorten(positions if isinstance(positions, int) and positions > 0 else None)
        self._reader = Reader(self.tokenizer)

    def shorten(self, longest: int | None) -> None:
        """Whoever runs the model takes at most ``longest`` tokens."""
        self.longest = self.longest if longest is None else min(self.longest, longest)

    def render(self, prompt: Prompt, candidate: Candidate) -> list[int]:
        """Token ids of prompt and completion as the reward model was trained to read them.

        Raises:
            JudgeError: the prompt is a conversation and the reward model has no template, or not for this one.
        """
        try:
            return self._reader.read(prompt.messages or prompt.text, candidate.text)
        except UnreadableError as error:
            raise JudgeError(f"reward model {self.path!r} cannot read prompt {prompt.id!r}: {error}") from error

    def judge(self, groups: Sequence[Group], name: str, logits: Logits) -> list[Judgment]:
        """One judgment a group, by the judge called ``name``."""
        rows = [self.render(group.prompt, candidate) for group in groups for candidate in group.candidates]
        verdicts = iter(self._verdicts(rows, logits))
        judgments = []
        for group in groups:
            mine = [next(verdicts) for _ in group.candidates]
            scores, votes = tuple(v.score for v in mine), tuple(v.vote() for v in mine)
            judgments.append(Judgment(group.prompt.id, name, scores, votes))
        return judgments

    def _verdicts(self, rows: Sequence[list[int]], logits: Logits) -> list[Verdict]:
        fitting = [row for row in rows if 0 < len(row) <= self.longest]
        found = iter(logits(fitting))
        return [
            self._verdict(len(row), next(found)) if 0 < len(row) <= self.longest
            else Verdict(None, len(row), {}, f"longer than {self.longest} tokens" if row else "no tokens")
            for row in rows
        ]  # fmt: skip

    def _verdict(self, tokens: int, logits: Sequence[float]) -> Verdict:
        assert len(logits) == len(self.labels), f"{len(logits)} logits for the outputs {self.labels}"
        kept = {name: each if math.isfinite(each) else None for name, each in zip(self.labels, logits, strict=True)}
        for number in self.weights:
            if not math.isfinite(logits[number]):
                which = "the logit" if len(self.labels) == 1 else f"the logit of {self.labels[number]!r}"
                return Verdict(None, tokens, kept, f"{which} is {logits[number]}")
        return Verdict(sum(weight * logits[number] for number, weight in self.weights.items()), tokens, kept)


def weigh(heads: Mapping[str, float], labels: Sequence[str], path: str) -> dict[int, float]:
    """Weights by the number of the output; ``heads`` name outputs by label or number.

    Raises:
        JudgeError: several outputs and no weight, or a name that is none of theirs, or one output named twice.
    """
    numbers = {str(number): number for number in range(len(labels))} | {name: i for i, name in enumerate(labels)}
    named = ", ".join(f"{name!r} ({number})" for number, name in enumerate(labels))
    if not heads and len(labels) > 1:
        raise JudgeError(
            f"reward model {path!r} has {len(labels)} outputs and no weights for them; allowed: heads with"
            f" some of {named}, e.g. heads = {{ {labels[0]} = 1.0 }}"
        )
    weights: dict[int, float] = {}
    for name, weight in heads.items():
        if name not in numbers:
            raise JudgeError(f"reward model {path!r} has no output {name!r}; allowed in heads: {named}")
        if numbers[name] in weights:
            raise JudgeError(f"heads: {name!r} is output {numbers[name]} of {path!r}, which has a weight already")
        weights[numbers[name]] = weight
    return weights or {0: 1.0}


def read_config(config: knobs.RewardModelJudge) -> Any:
    """transformers' config of the reward model. Raises JudgeError where there is none."""
    try:
        return AutoConfig.from_pretrained(config.path, revision=config.revision)
    except UNLOADABLE as error:
        raise JudgeError(f"reward model {config.path!r} cannot be loaded: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
