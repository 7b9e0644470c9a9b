"""Prompts as the policy reads them: rendered once, by its chat template or as they are, to token ids."""

from collections.abc import Sequence
from typing import Any

from pipeline.prompts.row import Row
from pipeline.prompts.turns import Unusable


def render(row: Row, tokenizer: Any) -> str:
    """The text to be encoded; where there is no tokenizer, what would be rendered.

    Raises:
        Unusable: the chat template refuses the conversation.
    """
    if not row.messages or tokenizer is None:
        return row.text
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(row.messages), add_generation_prompt=True, tokenize=False))
    except (TemplateError, TypeError) as error:  # two turns of the user in a row, or no system message, for example
        raise Unusable(f"is refused by the chat template: {error}") from None


def encode(rendered: Sequence[str], template: str, tokenizer: Any) -> list[tuple[int, ...]]:
    """Token ids with the BOS the text begins with, or, if plain, the tokenizer's; never a second one."""
    if not rendered:
        return []
    bos = tokenizer.bos_token_id
    batch = tokenizer(list(rendered), add_special_tokens=False, return_attention_mask=False, verbose=False)
    encoded = []
    for ids in batch["input_ids"]:
        if bos is not None and template == "plain":
            ids = [bos, *ids]
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        encoded.append(tuple(ids))
    return encoded
