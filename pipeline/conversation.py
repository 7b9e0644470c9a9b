"""A prompt and an answer as a reward model reads them: one text by its own chat template, encoded once.

The judge asks through this and the trainer teaches through it, so that a reward model is asked what it was taught.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError


class UnreadableError(Exception):
    """The model has no way to read this; the message says why. Never leaves the judge or the trainer that asked."""


class Reader:
    """Token ids of conversations under one tokenizer.

    With a chat template a plain prompt is a user's turn. Templates write their own BOS, so the tokenizer adds none;
    without a template the tokenizer's special tokens (BOS, CLS) go around the plain text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def read(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        answer: str | Mapping[str, Any],
        keywords: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The ids of ``prompt``, a plain text or messages, and its ``answer``.

        Args:
            keywords: for the chat template.

        Raises:
            UnreadableError: a conversation without a template, or one that the template refuses, or two BOS.
        """
        if self.tokenizer.chat_template:
            turn = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
            ids = self._encode(self._render([*_turns(prompt), turn], keywords or {}), special=False)
        elif isinstance(prompt, str) and isinstance(answer, str):
            ids = self._encode(prompt.removeprefix(self.tokenizer.bos_token or "") + answer, special=True)
        else:
            raise UnreadableError("its tokenizer has no chat template, and this is a chat")
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise UnreadableError(f"it begins with two BOS ({self.tokenizer.bos_token!r})")
        return ids

    def read_prompt(
        self, prompt: str | Sequence[Mapping[str, Any]], keywords: Mapping[str, Any] | None = None
    ) -> list[int]:
        """The ids of the prompt alone, which need not be a beginning of :meth:`read`'s."""
        if self.tokenizer.chat_template:
            return self._encode(self._render(_turns(prompt), keywords or {}), special=False)
        assert isinstance(prompt, str), "a chat without a template was refused with its answer"
        return self._encode(prompt.removeprefix(self.tokenizer.bos_token or ""), special=True)

    def _render(self, turns: Sequence[Mapping[str, Any]], keywords: Mapping[str, Any]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(list(turns), tokenize=False, **keywords))
        except (TemplateError, TypeError) as error:  # some take no system message, or no two turns of one role
            raise UnreadableError(f"its chat template refuses: {error}") from error

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _turns(prompt: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
