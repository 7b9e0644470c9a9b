"""Preferences to token ids as a reward model reads them when it judges: the whole conversation, as one text.

A policy's examples are what it would sample (``trainers.encoding``): its own ids, an EOS at the end. A reward model's
are what :mod:`pipeline.conversation` makes of the words; so a run's own pairs, sampled by a policy with another
tokenizer, are read as text too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipeline.conversation import Reader, UnreadableError
from pipeline.errors import ConfigError, DataError
from pipeline.types import PreferencePair
from trainers.encoded import Encoded, Tally, pair_of
from trainers.examples import Example, Pair, Row
from trainers.records import Message, Unusable, parse_record

Prompt = str | Sequence[Message]
Answer = str | Message


class ConversationEncoder:
    """Turns rows of text into pairs for a reward model with this tokenizer.

    Args:
        longest: of a whole conversation, in tokens; longer ones are dropped, since the judge abstains on them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest: int | None = None) -> None:
        self.tokenizer, self.longest = tokenizer, longest
        self._reader = Reader(tokenizer)

    def encode(self, rows: Iterable[Any], name: str, source: str = "") -> Encoded:
        """Pairs of ``rows``, which are mappings from column to value.

        Raises:
            ConfigError: a row is a conversation, and the tokenizer has no chat template.
            DataError: no pair is left, or a row is one completion with a label.
        """

        def make(number: int, raw: Any) -> tuple[Example, dict[str, object]]:
            record = parse_record(raw)
            where = f"{name}: row {number}"
            if record.desirable is not None:
                raise DataError(f"{where} is one completion with a label; allowed: pairs, with chosen and rejected")
            if not isinstance(record.prompt, str) and not self.tokenizer.chat_template:
                raise ConfigError(f"{where} is a conversation, but the base model's tokenizer has no chat template")
            return pair_of(record, self._rows(record.prompt, record.responses, record.template), source)

        return _encode_each(rows, make, name)

    def own_pairs(self, pairs: Iterable[PreferencePair], name: str, source: str = "") -> Encoded:
        """A run's pairs by their texts. Raises as :meth:`encode` does."""

        def make(number: int, pair: PreferencePair) -> tuple[Example, dict[str, object]]:
            if pair.prompt.messages and not self.tokenizer.chat_template:
                raise ConfigError(f"{name}: pair {pair.id} is a conversation, but the tokenizer has no chat template")
            prompt, answers = pair.prompt.messages or pair.prompt.text, (pair.chosen.text, pair.rejected.text)
            chosen, rejected = self._rows(prompt, answers, {})
            return Pair(chosen, rejected, pair.margin, 1.0, source, pair.prompt.id), {}

        return _encode_each(pairs, make, name)

    def _rows(self, prompt: Prompt, answers: Sequence[Answer], keywords: Mapping[str, Any]) -> list[Row]:
        """A row an answer. The prompt is as much of it as all of them begin with; it tells prompts apart, no more."""
        try:
            wholes = [self._reader.read(prompt, answer, keywords) for answer in answers]
        except UnreadableError as error:
            raise Unusable("refused_by_template", str(error)) from None
        if wholes[0] == wholes[1]:
            raise Unusable("identical", answers[0])
        longest = max(map(len, wholes))
        if self.longest is not None and longest > self.longest:
            raise Unusable("too_long", f"{longest} tokens")
        try:
            alone = self._reader.read_prompt(prompt, keywords)
        except UnreadableError:  # some templates want an answer
            alone = wholes[0]
        shared = min(min(_common(alone, whole), len(whole) - 1) for whole in wholes)
        return [Row(tuple(whole[:shared]), tuple(whole[shared:])) for whole in wholes]


def _encode_each(
    rows: Iterable[Any], make: Callable[[int, Any], tuple[Example, dict[str, object]]], name: str
) -> Encoded:
    tally, read = Tally(), 0
    examples: list[Example] = []
    for read, raw in enumerate(rows, start=1):
        try:
            example, changes = make(read, raw)
        except Unusable as why:
            tally.drop(read, why)
        else:
            examples.append(example)
            tally.alter(read, changes)
    return tally.result(examples, read, name)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
