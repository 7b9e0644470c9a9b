"""Rows of preference data sets, in the formats TRL names, read into prompts with responses.

    columns                          the row is
    chosen, rejected                 a pair; what both begin with is the prompt (implicit prompt)
    prompt, chosen, rejected         a pair (explicit prompt)
    prompt, completion, label        one completion, desirable where label is true (KTO's unpaired data)

Prompts and responses are all plain strings or all conversations (lists of messages with ``role`` and ``content``).
Of conversations these mixtures are read too: a prompt of messages with responses that are strings (the assistant's
words), a string prompt with responses that are one assistant message each (the user's words), and a string prompt
beside responses that are whole conversations (it only repeats their first turn, and is not used).

Where an implicit prompt ends:

* two conversations differ in their last message alone, the assistant's;
* two dialogues written as ``\\n\\nHuman: … \\n\\nAssistant: …`` differ after their last ``\\n\\nAssistant:`` alone;
* any other two strings share a prompt up to the last place in their common beginning that is not inside a word.

Optional columns:

    margin                           the judge's score of chosen minus that of rejected
    score_chosen, score_rejected     give the margin where there is no ``margin``
    preference                       probability that chosen is the better one: a soft label, 0 … 1
    label                            of a pair, where true, false, 1 or 0: false says that rejected is the better one
    source                           the data set or axis the row is from; selects its β
    prompt_id                        names the prompt
    prompt_token_ids, chosen_token_ids, rejected_token_ids
                                     of a pair, all three: what was sampled, see ``trainers.sampled``
    tools, chat_template_kwargs      go to the chat template; tools may be JSON in a string

A preference below one half swaps chosen and rejected, as a false label does; a row whose two disagree is dropped. All
other columns are ignored.

A response is one message, all of it the policy's own: of several, what tools and users say would be trained on too.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]
"""A turn of a conversation: role, content, and whatever else the chat template reads."""

HUB_NAME = re.compile(r"(?P<path>[\w-][\w.-]*/[\w.-]+?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
"""How data sets of rows on the Hub are called here."""
PAIR = frozenset({"chosen", "rejected"})
UNPAIRED = frozenset({"prompt", "completion", "label"})
ASSISTANT = "\n\nAssistant:"
HUMAN = "\n\nHuman:"

REASONS = {
    "not_a_record": "no object with columns",
    "missing": "no value in a column it needs",
    "not_text": "a prompt or response that is neither text nor messages",
    "bad_value": "a label, preference, margin, tools or chat_template_kwargs that cannot be read, or two that disagree",
    "prompt_mismatch": "chosen and rejected answer different prompts",
    "not_one_turn": "a response that is not one message of the assistant's, such as one with a tool's answer in it",
    "empty_prompt": "an empty prompt, or no common beginning to take as one",
    "empty_completion": "an empty response",
    "identical": "chosen and rejected are the same",
    "refused_by_template": "the chat template refuses the conversation, or leaves out the answer",
    "special_inside": "a BOS or EOS token within the text",
    "too_long": "longer than max_length",
}
"""Why a row gives no example; where several hold, the first that is met."""


class Unusable(Exception):
    """Why a row cannot be an example: a key of ``REASONS``, and the offending value."""

    def __init__(self, reason: str, value: object) -> None:
        assert reason in REASONS
        super().__init__(reason)
        self.reason, self.value = reason, value


@dataclass(frozen=True, slots=True)
class Record:
    prompt: str | tuple[Message, ...]
    responses: tuple[str | Message, ...]
    """Chosen and rejected, or the one completion; strings with a string prompt, else messages of the assistant."""
    desirable: bool | None = None
    """The label of a lone completion; None for a pair."""
    margin: float = 0.0
    """May be negative: the scores contradict the label."""
    preference: float = 1.0
    """In [0.5, 1]."""
    source: str = ""
    prompt_id: str = ""
    token_ids: tuple[tuple[int, ...], ...] = ()
    """Of prompt and responses, as they were sampled, by whatever tokenizer; empty where the row does not say."""
    swapped: bool = False
    """Chosen and rejected have changed places: the row's preference was below one half, or its label false."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Keywords for the chat template, ``tools`` included."""


def parse_record(raw: Any) -> Record:
    """The record of one row.

    Raises:
        Unusable: it cannot be one.
    """
    if not isinstance(raw, Mapping):
        raise Unusable("not_a_record", raw)
    row = {name: _clean(value) for name, value in raw.items() if value is not None}
    source, prompt_id, template = str(row.get("source", "")), str(row.get("prompt_id", "")), _template(row)
    if not row.keys() >= PAIR:
        if missing := UNPAIRED - row.keys():
            raise Unusable("missing", sorted(missing))
        prompt, responses = _explicit(row["prompt"], [row["completion"]])
        return Record(prompt, responses, _boolean(row["label"]), source=source, prompt_id=prompt_id, template=template)
    ids = _token_ids(row)
    prompt, responses = _pair(row, may_be_empty=bool(ids))
    if responses[0] == responses[1]:
        raise Unusable("identical", responses[0])
    margin, preference = _margin(row), _preference(row)
    if preference < 0.5:
        swapped = (*ids[:1], *ids[:0:-1])
        return Record(
            prompt, responses[::-1], None, -margin, 1.0 - preference, source, prompt_id, swapped, True, template
        )
    return Record(prompt, responses, None, margin, preference, source, prompt_id, ids, False, template)


# ---------------------------------------------------------------------------------------------- prompt and responses
def _pair(row: Mapping[str, Any], may_be_empty: bool) -> tuple[str | tuple[Message, ...], tuple[str | Message, ...]]:
    chosen, rejected = row["chosen"], row["rejected"]
    conversations = [_messages(value) for value in (chosen, rejected) if isinstance(value, list)]
    whole = len(conversations) == 2 and all(turns[0]["role"] != "assistant" for turns in conversations)
    if whole and not isinstance(row.get("prompt"), list):
        return _implicit_conversation(*conversations)
    if "prompt" in row:
        return _explicit(row["prompt"], [chosen, rejected], may_be_empty)
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise Unusable("empty_prompt" if conversations else "not_text", [chosen, rejected])
    if chosen == rejected:
        raise Unusable("identical", chosen)
    at = _dialogue_prompt(chosen, rejected) if chosen.startswith(HUMAN) else _shared_prompt(chosen, rejected)
    return _explicit(chosen[:at], [chosen[at:], rejected[at:]])


def _explicit(
    prompt: Any, responses: Sequence[Any], may_be_empty: bool = False
) -> tuple[str | tuple[Message, ...], tuple[str | Message, ...]]:
    if isinstance(prompt, str) and all(isinstance(response, str) for response in responses):
        if not prompt.strip():
            raise Unusable("empty_prompt", prompt)
        if (empty := [response for response in responses if not response.strip()]) and not may_be_empty:
            raise Unusable("empty_completion", empty[0])
        return prompt, tuple(responses)
    if isinstance(prompt, str) and prompt.strip():
        prompt = [{"role": "user", "content": prompt}]
    if prompt in ("", []):
        raise Unusable("empty_prompt", prompt)
    return tuple(_messages(prompt)), tuple(_response(response, may_be_empty) for response in responses)


def _implicit_conversation(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("prompt_mismatch", (chosen[:-1], rejected[:-1]))
    return tuple(chosen[:-1]), (_response(chosen[-1:]), _response(rejected[-1:]))


def _dialogue_prompt(chosen: str, rejected: str) -> int:
    at = chosen.rfind(ASSISTANT) + len(ASSISTANT)
    if at < len(ASSISTANT) or at != rejected.rfind(ASSISTANT) + len(ASSISTANT) or chosen[:at] != rejected[:at]:
        differ = _common(chosen, rejected)
        raise Unusable("prompt_mismatch", (chosen[differ : differ + 40], rejected[differ : differ + 40]))
    return at


def _shared_prompt(chosen: str, rejected: str) -> int:
    """Where the prompt ends: not in a word, and before the single space that most tokenizers begin a word with."""
    at = _common(chosen, rejected)
    while at and any(_inside_word(text, at) for text in (chosen, rejected)):
        at -= 1
    return at - chosen[:at].endswith(" ")


def _common(one: str, other: str) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _inside_word(text: str, at: int) -> bool:
    # Scripts from U+2E80 on, Chinese and Japanese among them, are written without spaces: each sign is a word.
    return at < len(text) and all(letter.isalnum() and letter < "\u2e80" for letter in text[at - 1 : at + 1])


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise Unusable("not_text", value)
    for message in value:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise Unusable("not_text", message)
        if not isinstance(content, str | list) and not message.get("tool_calls"):
            raise Unusable("not_text", message)
    return value


def _response(value: Any, may_be_empty: bool = False) -> Message:
    messages = [{"role": "assistant", "content": value}] if isinstance(value, str) else _messages(value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise Unusable("not_one_turn", messages)
    if not (may_be_empty or text_of(messages[0]).strip() or messages[0].get("tool_calls")):
        raise Unusable("empty_completion", messages[0])
    return messages[0]


def text_of(message: Message) -> str:
    """The words of a message; of content in blocks, those of its text blocks."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(block.get("text", "")) for block in content if isinstance(block, Mapping))


# ---------------------------------------------------------------------------------------------- the other columns
def _clean(value: Any) -> Any:
    """Without the keys that are None: columnar files fill every message with the keys of all the others."""
    if isinstance(value, Mapping):
        return {key: _clean(each) for key, each in value.items() if each is not None}
    return [_clean(each) for each in value] if isinstance(value, list) else value


def _template(row: Mapping[str, Any]) -> dict[str, Any]:
    tools, keywords = row.get("tools"), row.get("chat_template_kwargs", {})
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            raise Unusable("bad_value", tools) from None
    if not isinstance(keywords, Mapping) or not isinstance(tools, list | None):
        raise Unusable("bad_value", keywords if isinstance(tools, list | None) else tools)
    # No tools is not an empty list of them: some templates announce those.
    return {**keywords, **({"tools": tools} if tools else {})}


def _token_ids(row: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Of prompt, chosen and rejected; empty unless all are lists of ids."""
    found = [row.get(f"{name}_token_ids") for name in ("prompt", "chosen", "rejected")]
    if not all(isinstance(ids, list) and ids and all(type(each) is int for each in ids) for ids in found):
        return ()
    return tuple(tuple(ids) for ids in found if ids)


def _named(label: Any) -> bool | None:
    """None where it is no boolean, however written."""
    named = {"true": True, "1": True, "false": False, "0": False}.get(str(label).lower())
    return named if isinstance(label, bool | int | str) else None


def _boolean(label: Any) -> bool:
    named = _named(label)
    if named is None:
        raise Unusable("bad_value", label)
    return named


def _margin(row: Mapping[str, Any]) -> float:
    if row.get("margin", "") != "":
        return _number(row["margin"])
    scores = [row.get(name, "") for name in ("score_chosen", "score_rejected")]
    return 0.0 if "" in scores else _number(scores[0]) - _number(scores[1])


def _preference(row: Mapping[str, Any]) -> float:
    label = _named(row.get("label"))
    if row.get("preference", "") == "":
        return 0.0 if label is False else 1.0
    preference = _number(row["preference"])
    if not 0 <= preference <= 1 or (label is not None and preference != 0.5 and label != (preference > 0.5)):
        raise Unusable("bad_value", {name: row[name] for name in ("preference", "label") if name in row})
    return preference


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise Unusable("bad_value", value)
    return number
