"""What text is made of, as far as rules can tell: its sentences and its language."""

import functools
import re
from typing import Any

_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s|$)|[。！？]+[”’」』）]*")
_NEVER_END = frozenset({
    "mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "mt", "gen", "col", "capt", "lt", "sgt", "rev", "hon", "vs",
    "cf", "ca", "approx", "e.g", "i.e",
})  # fmt: skip
_BEFORE_A_NUMBER = frozenset({"no", "nos", "vol", "fig", "eq", "p", "pp", "sec", "ch"})
_MAY_END = frozenset({
    "etc", "inc", "ltd", "co", "corp", "dept", "est", "al", "a.m", "p.m", "u.s", "u.k", "e.u", "jan", "feb", "aug",
    "sept", "oct", "nov", "dec",
})  # fmt: skip


def count_sentences(text: str) -> int:
    """Stretches of ``text`` that end in ``.``, ``!``, ``?``, ``…`` or their full-width kin, and what is left over.

    No end: the stop of a title or abbreviation, of an initial, of a number that opens a line ("1. Bread"); an ellipsis
    or a quotation that goes on in lower case.
    """
    ends = [match.end() for match in _END.finditer(text) if _ends_a_sentence(text, match)]
    stretches = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return sum(re.search(r"\w", stretch) is not None for stretch in stretches)


def _ends_a_sentence(text: str, end: re.Match[str]) -> bool:
    mark = end[0].rstrip("\"'”’)]*_")
    following = text[end.end() : end.end() + 40].lstrip()[:1]
    if mark in ("...", "…"):
        return not following.islower()
    if mark != ".":
        return mark == end[0] or not following.islower()  # “Go!” he said.
    before = text[max(0, end.start() - 40) : end.start()]
    word = re.split(r"[\s(\[\"'“‘*_]", before)[-1]
    if word.isdigit() and re.search(r"(?:^|\n)[ \t*_]*$", before[: len(before) - len(word)]):
        return False
    if len(word) == 1 and word.isupper() and word != "I" and following != "":
        return False
    if word.lower() in _MAY_END:
        return not following.islower()
    if word.lower() in _BEFORE_A_NUMBER:
        return not following.isdigit()
    return word.lower() not in _NEVER_END or following == ""


@functools.lru_cache(maxsize=1024)
def language_of(text: str) -> str | None:
    """ISO 639-1 code of the language ``text`` is most likely in, Chinese as ``zh-cn`` or ``zh-tw``; None: no letters.

    The same text gives the same code (langdetect draws at random; its seed is fixed here). Short texts are a guess.
    """
    from langdetect.lang_detect_exception import LangDetectException

    detector = _languages().create()
    detector.append(text)
    try:
        found = str(detector.detect())
    except LangDetectException:
        return None
    return None if found == "unknown" else found


@functools.cache
def _languages() -> Any:
    # Not the library's own factory: another thread sees that one while its profiles are still being read.
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory
