"""Preferences to token ids: the sampler's own ids checked, and text rendered and encoded, once.

A row is a prompt, which begins with one BOS at most, and a completion, which has an EOS nowhere but at its end.
Text gets the ids that sampling would give it. A prompt is encoded alone: a conversation by the chat template, with the
turn of the assistant begun; a plain string with a BOS in front if the tokenizer itself puts one there. A completion
gets the ids that follow the prompt's when both are encoded as one text. Where one token would reach across the border
it is encoded apart from the prompt, whose last token no sampler can take back.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from pipeline.errors import DataError
from pipeline.types import PreferencePair
from trainers.encoded import Encoded, Tally, pair_of
from trainers.examples import Example, Pair, Row, Single
from trainers.records import Message, Record, Unusable, parse_record, text_of
from trainers.rendering import Rendered, Renderer
from trainers.sampled import refuse_empty, sampled_ids

T = TypeVar("T")
Specials = tuple[int | None, frozenset[int]]
"""The BOS id, if there is one, and every id that ends a completion."""

CHUNK = 1024
"""Rows tokenised in one call."""
COMPARED = 50
"""Pairs whose ids are read as text, and compared with theirs."""


def special_ids(tokenizer: PreTrainedTokenizerBase, model: Any = None) -> Specials:
    """The BOS and every EOS: the tokenizer's, and those at which ``model``'s ``generation_config`` stops."""
    generation = getattr(model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    bos = tokenizer.bos_token_id
    return bos if isinstance(bos, int) else None, frozenset(token for token in found if isinstance(token, int))


# ---------------------------------------------------------------------------------------------- our own pairs
def encode_pairs(
    pairs: Iterable[PreferencePair], specials: Specials, source: str = "", *, logits: bool = False
) -> list[Pair]:
    """Every pair as its own sampled ids. Raises DataError as :func:`pair_rows` does.

    Args:
        logits: scores are Bradley-Terry strengths, so that a pair's margin says how probable its label is.
    """
    encoded = [pair_rows(pair, *specials, source) for pair in pairs]
    return [replace(each, preference=1 / (1 + math.exp(-each.margin))) for each in encoded] if logits else encoded


def pair_rows(pair: PreferencePair, bos: int | None, eos: frozenset[int], source: str = "") -> Pair:
    """A pair as the very ids that were sampled, with the judge's margin.

    Args:
        source: of a pair whose prompt names none.

    Raises:
        DataError: an empty prompt or completion, a prompt that begins with two BOS, or an EOS that is not the
            completion's last token: the ids are not what the policy saw. A BOS later in the prompt is none of these:
            some chat templates begin every turn with one.
    """
    prompt = pair.prompt.token_ids
    if not prompt or (bos is not None and prompt[:2] == (bos, bos)):
        raise DataError(
            f"pair {pair.id}: prompt {prompt[:8]}… must be non-empty and begin with one BOS ({bos}) at most"
        )
    for name, candidate in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        ids = candidate.token_ids
        if not ids or any(token in eos for token in ids[:-1]):
            raise DataError(
                f"pair {pair.id}: {name} completion {ids[:8]}… must be non-empty, with an EOS"
                f" ({', '.join(map(str, sorted(eos)))}) nowhere but at its end"
            )
    chosen, rejected = Row(prompt, pair.chosen.token_ids), Row(prompt, pair.rejected.token_ids)
    return Pair(chosen, rejected, margin=pair.margin, source=pair.prompt.source or source, prompt_id=pair.prompt.id)


# ---------------------------------------------------------------------------------------------- text
class Encoder:
    """Turns rows of text into examples for one tokenizer. The formats are those of :mod:`trainers.records`.

    Args:
        specials: of :func:`special_ids`, so that a completion ends where the policy would stop.
        max_prompt_tokens: longer prompts keep their end (and their BOS).
        max_completion_tokens: longer completions keep their start, and so lose their EOS.
        max_length: of prompt and completion together; longer rows are dropped.
        chat_template_kwargs: keywords for the chat template (``enable_thinking``, say) where a row has no others.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        specials: Specials,
        *,
        max_prompt_tokens: int | None = None,
        max_completion_tokens: int | None = None,
        max_length: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.specials = tokenizer, specials
        self.bos, self.ends = specials
        self.max_prompt_tokens, self.max_completion_tokens = max_prompt_tokens, max_completion_tokens
        self.max_length = max_length
        self._renderer = Renderer(tokenizer, chat_template_kwargs or {})
        adds_bos = self.bos is not None and tokenizer("a")["input_ids"][:1] == [self.bos]
        self._plain_start = (self.bos,) if adds_bos and self.bos is not None else ()
        own_end = tokenizer.eos_token_id
        self._eos = own_end if own_end is not None else min(self.ends, default=None)

    def encode(self, rows: Iterable[Any], name: str = "rows", source: str = "") -> Encoded:
        """Examples of ``rows``, which are mappings from column to value.

        Args:
            name: what errors call the rows.
            source: the ``source`` of examples whose row names none.

        Raises:
            ConfigError: a row is a conversation, and the tokenizer has no chat template.
            DataError: no row is left, or the chat template renders a prompt otherwise when an answer follows.
        """
        numbered, tally, read = enumerate(rows, start=1), Tally(), 0
        examples: list[Example] = []
        while chunk := list(islice(numbered, CHUNK)):
            read = chunk[-1][0]
            rendered = []
            for number, raw in chunk:
                try:
                    record = parse_record(raw)
                    rendered.append((number, record, self._renderer.render(record, f"{name}: row {number}")))
                except Unusable as why:
                    tally.drop(number, why)
            ids = self._tokenize([text for _, _, texts in rendered for text in (texts.prompt, *texts.wholes)])
            for number, record, texts in rendered:
                try:
                    example, changes = self._example(record, texts, ids, source)
                except Unusable as why:
                    tally.drop(number, why)
                else:
                    examples.append(example)
                    tally.alter(number, changes)
        return tally.result(examples, read, name)

    def own_pairs(self, pairs: Iterable[PreferencePair], name: str, source: str = "") -> Encoded:
        """Pairs with the ids they were sampled with. None is ever cut, but ``max_length`` drops here too.

        Raises:
            DataError: as of :func:`pair_rows`, or the ids are another tokenizer's.
        """
        tally, read = Tally(), 0
        examples: list[Example] = []
        pairs = iter(pairs)
        head = list(islice(pairs, COMPARED))
        self._refuse_strangers(head, name)
        for read, pair in enumerate(chain(head, pairs), start=1):
            example = pair_rows(pair, *self.specials, source)
            highest = max(max(row.prompt + row.completion) for row in example.rows)
            if highest >= len(self.tokenizer):
                raise DataError(
                    f"{name}: pair {pair.id} has the id {highest}, and the tokenizer {len(self.tokenizer)} ids:"
                    " another policy's pairs"
                )
            longest = max(map(len, example.rows))
            if self.max_length is not None and longest > self.max_length:
                tally.drop(read, Unusable("too_long", f"{longest} tokens"))
            else:
                examples.append(example)
        return tally.result(examples, read, name)

    def _refuse_strangers(self, pairs: Sequence[PreferencePair], name: str) -> None:
        """Raises DataError where this tokenizer reads most completions otherwise than the one that sampled them.

        Most, not one: other models' answers (``Candidate.model``) were encoded from text, which some tokenizers do not
        give back letter by letter.
        """
        completions = [each for pair in pairs for each in (pair.chosen, pair.rejected) if each.token_ids]
        others = [(each.text, text) for each in completions if (text := self._text(each.token_ids)) != each.text]
        if 2 * len(others) > len(completions):
            theirs, ours = others[0]
            raise DataError(
                f"{name}: {len(others)} of its first {len(completions)} completions are other text in this tokenizer"
                f" (first: {ours[:40]!r}, and {theirs[:40]!r} was sampled): another policy's pairs"
            )

    # ------------------------------------------------------------------------------------------ token ids
    def _text(self, ids: Sequence[int]) -> str:
        """As ``Candidate.text`` is made; ids beyond the vocabulary are left out."""
        known = [token for token in ids if token < len(self.tokenizer)]
        return str(self.tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _tokenize(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Ids by text. No special token is added: rendered texts hold theirs, plain ones get theirs as ids."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return {}
        batch = self.tokenizer(unique, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return dict(zip(unique, batch["input_ids"], strict=True))

    def _example(
        self, record: Record, texts: Rendered, ids: Mapping[str, list[int]], source: str
    ) -> tuple[Example, dict[str, object]]:
        changes: dict[str, object] = {}
        whole_prompt = self._with_start(ids[texts.prompt], isinstance(record.prompt, str))
        if own := sampled_ids(record, whole_prompt, self.tokenizer, self.ends):
            whole_prompt, *sampled = own
            completions = [self._cut_completion(each, changes) for each in sampled]
        else:
            if record.token_ids:
                refuse_empty(record)
                changes["other_ids"] = record.responses[0]
            completions = [
                self._completion(texts, whole, ids, response, changes)
                for whole, response in zip(texts.wholes, record.responses, strict=True)
            ]
        prompt = self._cut_prompt(whole_prompt, changes)
        rows = [Row(prompt, completion) for completion in completions]
        longest = max(map(len, rows))
        if self.max_length is not None and longest > self.max_length:
            raise Unusable("too_long", f"{longest} tokens")
        if record.desirable is not None:
            return Single(rows[0], record.desirable, record.source or source, record.prompt_id), changes
        if completions[0] == completions[1]:
            raise Unusable("identical", record.responses[0])
        pair, more = pair_of(record, rows, source)
        return pair, changes | more

    def _with_start(self, ids: Sequence[int], plain: bool) -> tuple[int, ...]:
        prompt = (*self._plain_start, *ids) if plain else tuple(ids)
        while self.bos is not None and prompt[:2] == (self.bos, self.bos):
            prompt = prompt[1:]
        if not prompt:
            raise Unusable("empty_prompt", ids)
        return prompt

    def _cut_prompt(self, prompt: tuple[int, ...], changes: dict[str, object]) -> tuple[int, ...]:
        limit = self.max_prompt_tokens
        if limit is None or len(prompt) <= limit:
            return prompt
        changes["truncated_prompt"] = f"{len(prompt)} tokens"
        start = prompt[:1] if prompt[0] == self.bos else ()
        return start + prompt[len(prompt) - limit + len(start) :]

    def _completion(
        self,
        texts: Rendered,
        whole: str,
        ids: Mapping[str, list[int]],
        response: str | Message,
        changes: dict[str, object],
    ) -> tuple[int, ...]:
        prompt, both = ids[texts.prompt], ids[whole]
        if both[: len(prompt)] == prompt:
            completion = both[len(prompt) :]
        else:
            completion = self._encode_apart(whole[len(texts.prompt) :])
            changes["encoded_apart"] = whole[max(len(texts.prompt) - 10, 0) : len(texts.prompt) + 10]
        completion = self._close(completion, response)
        if all(token in self.ends for token in completion):
            raise Unusable("empty_completion", response)
        if any(token in self.ends or token == self.bos for token in completion[:-1]):
            raise Unusable("special_inside", response)
        if completion[-1] not in self.ends:
            changes["without_eos"] = response
        return self._cut_completion(completion, changes)

    def _cut_completion(self, completion: Sequence[int], changes: dict[str, object]) -> tuple[int, ...]:
        limit = self.max_completion_tokens
        if limit is not None and len(completion) > limit:
            changes["truncated_completion"] = f"{len(completion)} tokens"
        return tuple(completion[:limit])

    def _encode_apart(self, text: str) -> list[int]:
        """The ids of ``text`` not at the beginning of a text, where some tokenizers would put a space before it."""
        for before in ("\n", ".", "a"):  # one at least does not grow together with the text
            ids = self._tokenize([before, before + text])
            if ids[before + text][: len(ids[before])] == ids[before]:
                return ids[before + text][len(ids[before]) :]
        return self._tokenize([text])[text]

    def _close(self, ids: list[int], response: str | Message) -> list[int]:
        """``ids`` up to their first EOS, without what a template puts after it; with an EOS if they have none.

        Raises:
            Unusable: the first EOS stands in the response itself, before its end.
        """
        end = next((index for index, token in enumerate(ids) if token in self.ends), None)
        if end is None:
            return ids if self._eos is None else [*ids, self._eos]
        rest = ids[end + 1 :]
        if any(token in self.ends for token in rest) or str(self.tokenizer.decode(rest)).strip():
            words = response if isinstance(response, str) else text_of(response)
            if isinstance(response, str) or any(token in self.ends for token in self._tokenize([words])[words]):
                raise Unusable("special_inside", words)
        return ids[: end + 1]
