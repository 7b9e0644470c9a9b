"""Records to text, as a policy reads it: conversations by the tokenizer's chat template, plain prompts as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipeline.errors import ConfigError, DataError
from trainers.records import Message, Record, Unusable, text_of


@dataclass(frozen=True, slots=True)
class Rendered:
    prompt: str
    wholes: tuple[str, ...]
    """The prompt with each response after it."""


class Renderer:
    """Args: ``keywords`` for the chat template where a record has no others."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, keywords: Mapping[str, Any]) -> None:
        self.tokenizer, self.keywords = tokenizer, keywords

    def render(self, record: Record, where: str) -> Rendered:
        """Text that holds all its special tokens but a plain prompt's BOS, which is given as an id.

        Args:
            where: what errors call the record.

        Raises:
            Unusable: the template refuses it or leaves an answer out, or a BOS stands in the middle.
            ConfigError: it is a conversation, and the tokenizer has no chat template.
            DataError: the template renders the prompt otherwise when an answer follows.
        """
        bos = self.tokenizer.bos_token
        if isinstance(record.prompt, str):
            prompt = record.prompt.removeprefix(bos) if bos else record.prompt  # it gets its BOS as an id
            _refuse_inside(bos, prompt)
            return Rendered(prompt, tuple(f"{prompt}{response}" for response in record.responses))
        if not self.tokenizer.chat_template:
            raise ConfigError(
                f"{where} is a conversation, but the tokenizer of {self.tokenizer.name_or_path!r} has no chat template"
            )
        _refuse_inside(bos, *map(text_of, record.prompt))
        prompt = self._apply_template(record.prompt, record.template, begin_answer=True)
        answered = [(*record.prompt, response) for response in record.responses if isinstance(response, Mapping)]
        wholes = tuple(self._apply_template(messages, record.template) for messages in answered)
        for whole, messages in zip(wholes, answered, strict=True):
            if not whole.startswith(prompt):
                raise DataError(
                    f"{where}: the chat template renders the prompt otherwise when an answer follows it: alone it ends"
                    f" {prompt[-40:]!r}, with an answer it is {whole[: len(prompt)][-40:]!r}; the policy would be"
                    " trained on a prompt it never sees. Another template or chat_template_kwargs may mend it"
                )
            last = text_of(messages[-1]).split()[-1:]
            if last and last[0] not in whole[len(prompt) :]:  # templates for images leave out what is no block
                raise Unusable("refused_by_template", whole[len(prompt) :])
        return Rendered(prompt, wholes)

    def _apply_template(
        self, messages: Sequence[Message], keywords: Mapping[str, Any], begin_answer: bool = False
    ) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), add_generation_prompt=begin_answer, tokenize=False, **{**self.keywords, **keywords}
                )
            )
        except (TemplateError, TypeError) as error:  # a template refuses, or adds to a string what is none
            raise Unusable("refused_by_template", str(error)) from None


def _refuse_inside(bos: str | None, *texts: str) -> None:
    """Read as a token, a BOS within a prompt would begin the sequence anew in the middle."""
    if bos and any(bos in text for text in texts):
        raise Unusable("special_inside", next(text for text in texts if bos in text))
