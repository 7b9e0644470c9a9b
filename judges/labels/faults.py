"""What can be wrong with a row of a preference file, by name, and which faults cost the row."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from judges.labels.formats import Format, Label, Raw, label_of
from pipeline.types import Message

DROPS: Mapping[str, str] = MappingProxyType({
    "not_a_record": "no object with keys",
    "missing": "no prompt or no response where one must be",
    "boolean": "a response that is JSON's true or false: its text was lost",
    "not_text": "a prompt or response that is neither text nor messages",
    "no_prompt": "an empty prompt, or dialogues without one",
    "prompt_mismatch": "the two responses answer different prompts",
    "unknown_label": "a label that means nothing in this format",
    "both_empty": "two empty responses",
    "identical_with_winner": "the same response twice, and one of the two preferred",
    "identical": "the same response twice",
    "contradictory_duplicate": "as an earlier row, with another label",
    "duplicate": "as an earlier row",
    "contradictory_flip": "as an earlier row in the other order, and the two labels contradict each other",
    "flipped": "as an earlier row in the other order",
})  # fmt: skip
"""Why a row gives no pair; where several hold, the first."""
FLAGS: Mapping[str, str] = MappingProxyType({
    "one_empty": "one of the responses is empty; people labelled it all the same",
    "no_label": "nobody labelled it; some figures need no people",
    "no_majority": "no label has more than half of the annotators: a tie",
})  # fmt: skip
"""What is noted of a row, and costs it nothing."""
MIRROR: Mapping[Label, Label] = {"a": "b", "b": "a", "tie": "tie"}
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A row with its prompt and labels understood, its responses as they come."""

    number: int
    """From 1 on."""
    raw: Raw
    labels: Mapping[str, Label]
    """Those that mean something, by annotator."""
    messages: tuple[Message, ...]
    """Of a conversation with more than one turn."""
    prompt: str
    """Empty where there is none, or none that can be read."""

    @property
    def key(self) -> Key:
        """What was compared, in order; of responses that are no text, as they are written."""
        return repr([self.prompt, self.messages]), repr(self.raw.a), repr(self.raw.b)


def flipped(key: Key) -> Key:
    return key[0], key[2], key[1]


def majority(labels: Iterable[Label]) -> Label | None:
    """The label that more than half gave; a tie where none did, and None without labels."""
    given = list(labels)
    if not given:
        return None
    return next((label for label in sorted(set(given)) if 2 * given.count(label) > len(given)), "tie")


def parse(number: int, row: Mapping[str, Any], form: Format) -> Parsed:
    raw = form.read({**dict.fromkeys(form.keys), **row})
    labels = {name: label for name, value in raw.labels.items() if (label := label_of(raw, value))}
    if isinstance(raw.prompt, list) and all(map(_is_message, raw.prompt)):
        turns = tuple(Message(role=turn["role"], content=turn["content"]) for turn in raw.prompt)
        said = [turn["content"] for turn in turns if turn["role"] == "user"]
        return Parsed(number, raw, labels, turns if len(turns) > 1 else (), said[-1] if said else "")
    return Parsed(number, raw, labels, (), raw.prompt if isinstance(raw.prompt, str) else "")


def own_faults(each: Parsed) -> set[str]:
    """Faults that a row has by itself."""
    raw, responses = each.raw, (each.raw.a, each.raw.b)
    texts = [response.strip() for response in responses if isinstance(response, str)]
    same = len(texts) == 2 and texts[0] == texts[1]
    won = majority(each.labels.values()) in ("a", "b")
    readable = isinstance(raw.prompt, str) or (isinstance(raw.prompt, list) and all(map(_is_message, raw.prompt)))
    written = [value for value in raw.labels.values() if value is not None and value != ""]
    holds = {
        "missing": raw.prompt is None or any(response is None for response in responses),
        "boolean": any(isinstance(response, bool) for response in responses),
        "not_text": not (readable or raw.prompt is None)
        or any(not isinstance(response, str | bool | None) for response in responses),
        "no_prompt": readable and not each.prompt.strip(),
        "prompt_mismatch": raw.mismatch,
        "unknown_label": any(label_of(raw, value) is None for value in written),
        "both_empty": texts == ["", ""],
        "identical_with_winner": same and won,
        "identical": same and not won,
        "one_empty": len(texts) == 2 and (texts[0] == "") != (texts[1] == ""),
        "no_label": not written,
    }
    return {name for name, held in holds.items() if held}


def repeat_faults(each: Parsed, others: Mapping[Key, Parsed]) -> set[str]:
    """Faults that a row has beside ``others``, earlier rows by what they compare."""
    label, faults = majority(each.labels.values()), set()
    if (same := others.get(each.key)) is not None:
        contradicted = majority(same.labels.values()) != label
        faults |= {"duplicate", "contradictory_duplicate"} if contradicted else {"duplicate"}
    if each.raw.a != each.raw.b and (twin := others.get(flipped(each.key))) is not None:
        theirs = majority(twin.labels.values())
        contradicted = label != (theirs and MIRROR[theirs])
        faults |= {"flipped", "contradictory_flip"} if contradicted else {"flipped"}
    return faults


def _is_message(turn: Any) -> bool:
    return isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
