"""Checkable instructions: the 25 kinds of IFEval (2311.07911), under its names and with its keyword arguments.

Written from the paper's definitions. Where its program and a reader of the instruction would differ, the reader is
followed: keywords are literal text; ``---`` is no bullet point; JSON is read strictly; capital text is lowered before
its language is told; text without letters is in no language; sentences are found by a rule here, not by a model.
A blank text keeps no instruction.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from judges.checks.documents import parse_json
from judges.checks.sentences import count_sentences, language_of
from pipeline.config.judge.constraints import check_arguments
from pipeline.errors import ConfigError

Relation = Literal["at least", "less than"]

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_WORD_IN_CAPITALS = re.compile(r"[^\W_]+(?:[-.'’][^\W_]+)*")


def checker(constraint: str, args: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a text keeps ``constraint``, as a function of the text.

    Raises:
        ConfigError: there is no such constraint, or it does not take these arguments.
    """
    if constraint not in CHECKS:
        raise ConfigError(f"constraint {constraint!r} is not known; allowed: {', '.join(CHECKS)}")
    try:
        check_arguments(constraint, args)
    except ValueError as error:
        raise ConfigError(f"constraint {constraint!r}: {error}") from None
    check = functools.partial(CHECKS[constraint], **args)
    return lambda text: text.strip() != "" and check(text)


# ---------------------------------------------------------------------------------------------- keywords
def existence(text: str, keywords: Sequence[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: Relation) -> bool:
    return _holds(text.lower().count(keyword.lower()), relation, frequency)


def forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    """Whole words: "rock" does not forbid "rocket"."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


# ---------------------------------------------------------------------------------------------- language, length
def response_language(text: str, language: str) -> bool:
    found = language_of(text)
    return found is not None and (found == language or found.partition("-")[0] == language)


def number_sentences(text: str, num_sentences: int, relation: Relation) -> bool:
    return _holds(count_sentences(text), relation, num_sentences)


def number_words(text: str, num_words: int, relation: Relation) -> bool:
    return _holds(len(re.findall(r"\w+", text)), relation, num_words)


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs with the divider ``***`` between them, none of them empty."""
    return _whole_parts(text, "***") == num_paragraphs


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs with an empty line between them; the word without quotation marks before and punctuation after it."""
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs:
        return False
    first = paragraphs[nth_paragraph - 1].split()[0].lstrip("\"'“‘")
    return re.split(r"[.,?!'\"’”]", first)[0].lower() == first_word.strip().lower()


# ---------------------------------------------------------------------------------------------- content, format
def number_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    """``P.S.`` and ``P.P.S`` may have a space after a stop."""
    letters = [re.escape(letter) for letter in postscript_marker.replace(" ", "").rstrip(".").split(".")]
    marker = r"\.\s?".join(letters) if "." in postscript_marker else re.escape(postscript_marker)
    ends_in_a_stop = postscript_marker.rstrip().endswith(".")
    return re.search(marker + (r"\." if ends_in_a_stop else ""), text, re.IGNORECASE) is not None


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    """Lines that begin with one ``*`` or one ``-``."""
    lines = [line.lstrip() for line in text.splitlines()]
    return sum(line[:1] in ("*", "-") and line[1:2] not in ("", line[0]) for line in lines) == num_bullets


def constrained_response(text: str) -> bool:
    return any(answer in text for answer in ANSWERS)


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """Stretches of a line between single or double asterisks that hold something."""
    found = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", text)
    return len([1 for double, single in found if (double or single).strip()]) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """Headings: the word and a number."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def title(text: str) -> bool:
    return any(found.strip() for found in re.findall(r"<<([^<>\n]+)>>", text))


# ---------------------------------------------------------------------------------------------- the whole text
def two_responses(text: str) -> bool:
    """Two different ones with the divider ``******`` between them."""
    parts = [part.strip() for part in text.split("******")]
    return _whole_parts(text, "******") == 2 and len({part for part in parts if part}) == 2


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    """A quotation mark may close it."""
    return text.strip().strip('"').strip().lower().endswith(end_phrase.strip().strip('"').strip().lower())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: Relation) -> bool:
    """Words all of whose letters are capitals; "I" and "U.S" are among them."""
    words = _WORD_IN_CAPITALS.findall(text)
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    return text.isupper() and language_of(text.lower()) == "en"


def english_lowercase(text: str) -> bool:
    return text.islower() and language_of(text) == "en"


def no_comma(text: str) -> bool:
    return "," not in text


def _holds(count: int, relation: Relation, limit: int) -> bool:
    return count >= limit if relation == "at least" else count < limit


def _whole_parts(text: str, divider: str) -> int:
    """Number of parts between dividers, one before the first and one after the last aside where blank; 0 where any
    other is."""
    parts = [part.strip() for part in text.split(divider)]
    parts = parts[1:] if len(parts) > 1 and not parts[0] else parts
    parts = parts[:-1] if len(parts) > 1 and not parts[-1] else parts
    return len(parts) if all(parts) else 0


CHECKS: Mapping[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
