"""A row of text as the very ids that were sampled, where it has them too.

Text does not say how it was cut into tokens, nor whether it ended by itself or at a limit. A data set that Ratchet
exported has the ids too; they are taken to be another tokenizer's until they prove the contrary.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from trainers.records import Message, Record, Unusable, text_of


def sampled_ids(
    record: Record, prompt: Sequence[int], tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]
) -> tuple[tuple[int, ...], ...] | None:
    """The ids of prompt and completions as they were sampled; None where this tokenizer did not make them.

    It did where it writes the prompt in the same ids, give or take the BOS that a sampler puts first, and reads each
    completion's as its text.

    Args:
        prompt: the ids this tokenizer gives the prompt.
        ends: ids that end a completion.
    """
    if not record.token_ids or record.token_ids[0] not in (tuple(prompt), (tokenizer.bos_token_id, *prompt)):
        return None
    for ids, response in zip(record.token_ids[1:], record.responses, strict=True):
        if not ids or max(ids) >= len(tokenizer) or any(token in ends for token in ids[:-1]):
            return None
        if tokenizer.decode(list(ids), skip_special_tokens=True) != _words(response):
            return None
    return record.token_ids


def refuse_empty(record: Record) -> None:
    """Raises Unusable where a response has no words: without its ids there is nothing of it to learn."""
    if empty := [response for response in record.responses if not _words(response).strip()]:
        raise Unusable("empty_completion", empty[0])


def _words(response: str | Message) -> str:
    return response if isinstance(response, str) else text_of(response)
