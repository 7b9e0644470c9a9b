"""The checkable instructions of IFEval (2311.07911): their names and keyword arguments, as in its data files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LANGUAGES = (
    "af", "ar", "bg", "bn", "ca", "cs", "cy", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "gu", "he", "hi",
    "hr", "hu", "id", "it", "ja", "kn", "ko", "lt", "lv", "mk", "ml", "mr", "ne", "nl", "no", "pa", "pl", "pt", "ro",
    "ru", "sk", "sl", "so", "sq", "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "zh", "zh-cn", "zh-tw",
)  # fmt: skip
"""ISO 639-1 codes of the languages that can be told apart; ``zh`` is either kind of Chinese."""
RELATIONS = ("at least", "less than")


@dataclass(frozen=True)
class Argument:
    allowed: str
    """For people."""
    accepts: Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


_COUNT = Argument("a whole number ≥ 1", lambda value: type(value) is int and value >= 1)
_RELATION = Argument(", ".join(map(repr, RELATIONS)), lambda value: value in RELATIONS)
_TEXT = Argument("a string that is not blank", _text)
_WORDS = Argument(
    "an array of strings, at least one",
    lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(map(_text, value)),
)
_LETTER = Argument("one character", lambda value: _text(value) and len(value) == 1)
_LANGUAGE = Argument(", ".join(LANGUAGES), lambda value: value in LANGUAGES)

CONSTRAINTS: Mapping[str, Mapping[str, Argument]] = {
    "keywords:existence": {"keywords": _WORDS},
    "keywords:frequency": {"keyword": _TEXT, "frequency": _COUNT, "relation": _RELATION},
    "keywords:forbidden_words": {"forbidden_words": _WORDS},
    "keywords:letter_frequency": {"letter": _LETTER, "let_frequency": _COUNT, "let_relation": _RELATION},
    "language:response_language": {"language": _LANGUAGE},
    "length_constraints:number_sentences": {"num_sentences": _COUNT, "relation": _RELATION},
    "length_constraints:number_paragraphs": {"num_paragraphs": _COUNT},
    "length_constraints:number_words": {"num_words": _COUNT, "relation": _RELATION},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": _COUNT, "nth_paragraph": _COUNT, "first_word": _TEXT,
    },
    "detectable_content:number_placeholders": {"num_placeholders": _COUNT},
    "detectable_content:postscript": {"postscript_marker": _TEXT},
    "detectable_format:number_bullet_lists": {"num_bullets": _COUNT},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": _COUNT},
    "detectable_format:multiple_sections": {"section_spliter": _TEXT, "num_sections": _COUNT},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": _TEXT},
    "startend:end_checker": {"end_phrase": _TEXT},
    "startend:quotation": {},
    "change_case:capital_word_frequency": {"capital_frequency": _COUNT, "capital_relation": _RELATION},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
}  # fmt: skip
"""Keyword arguments of each, all of them required."""


def check_arguments(constraint: str, args: Mapping[str, Any]) -> None:
    """Raises ValueError, which quotes the argument and what is allowed, where ``args`` are not those it takes."""
    arguments = CONSTRAINTS[constraint]
    for name, value in args.items():
        if name not in arguments:
            raise ValueError(f"args: {constraint!r} takes no {name!r}; allowed: {', '.join(arguments) or 'none'}")
        if not arguments[name].accepts(value):
            raise ValueError(f"args.{name}: {value!r} is not allowed; allowed: {arguments[name].allowed}")
    if missing := [name for name in arguments if name not in args]:
        raise ValueError(f"args.{missing[0]}: is missing; allowed: {arguments[missing[0]].allowed}")
    nth, paragraphs = args.get("nth_paragraph"), args.get("num_paragraphs")
    if nth is not None and paragraphs is not None and nth > paragraphs:
        raise ValueError(f"args.nth_paragraph: {nth} is not allowed; allowed: at most num_paragraphs, {paragraphs}")
