"""Final answers: found in a worked solution, and compared with a reference as people would, numbers as numbers.

Made for GSM8K (2110.14168), whose solutions end ``#### 18``, and for the ways chat models write the same:
``\\boxed{18}``, "The answer is $18 a day.", "A: 18".
"""

import re
from fractions import Fraction

_STATED = re.compile(
    r"""[#]{4}\s*(?=(?P<marked>[^\n]*))
      | (?:\banswer\b\s*(?:\bis\b|:)|^[ ]*A:)[\s:]*(?=(?P<said>[^\n]*))
      | \\boxed\{(?P<boxed>)
    """,
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
"""Looks ahead only: a line may state two answers, and the last one counts."""
_LONGEST_BOX = 1000
"""Characters; a box that is not closed by then is none."""
_LONGEST_NUMBER = 60
"""Characters; what is longer is no answer, and Python takes its time over it."""

_NOISE = re.compile(r"\\[$,!;:()\[\] ]|[$€£¥₹]|\*\*|\\(?:left|right|displaystyle)\b")
_COMMAND_WITH_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\{([^{}]*)\}")
_NUMBER = re.compile(
    r"""(?P<sign>(?<![\w)\]}.])-)?
        (?: \\[dt]?frac\{(?P<top>-?\d++)\}\{(?P<bottom>\d++)\}
          | (?<![\w.])(?:(?P<whole>\d++)\s+)?(?P<over>\d++)/(?P<under>\d++)(?![\d/])
          | (?<![\w.])(?P<plain>(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?![\d,])|\d++)(?:\.\d++)?+(?:e[+-]?\d{1,3}(?!\w))?)
          | (?<![\w.])(?P<small>\.\d++)
        )(?![inxyz]\b)""",
    re.VERBOSE | re.IGNORECASE,
)
_GOES_ON = re.compile(r"\s*(?:[+^×÷]|[-*/]\s*[\d(])")
"""After a number: it is the beginning of an expression that nobody has worked out."""


def is_correct(completion: str, reference: str, pattern: str | None = None, tolerance: float = 1e-6) -> bool:
    """Whether the final answer of ``completion`` is ``reference``, an answer as :func:`reference_answer` gives it.

    Where the reference is a number, so must the answer be, whatever currency, percent sign or unit stands with it;
    they may differ by ``tolerance`` times the reference. Else both are compared as words: without regard to case,
    punctuation around them and white space.

    Args:
        pattern: its last match is the answer, the first group where it has one. None: the last thing that is stated
            as the answer (after ``####``, in ``\\boxed{…}``, after "the answer is"); where nothing is, the last number,
            or for words the whole completion.
    """
    expected = _bare_number(reference)
    given = stated_answer(completion) if pattern is None else _last_match(pattern, completion)
    if expected is None:
        words = _words(completion if given is None and pattern is None else given or "")
        return words != "" and words == _words(reference)
    number = _last_number(completion) if given is None and pattern is None else first_number(given or "")
    return number is not None and abs(number - expected) <= Fraction(tolerance) * abs(expected)


def reference_answer(answer: str | None) -> str | None:
    """The answer proper of a prompt's reference, which may be a worked solution; None where there is none in it."""
    if answer is None or not answer.strip():
        return None
    stated = stated_answer(answer)
    if stated is not None or "\n" not in answer.strip():
        return stated or answer.strip()
    number = _last_number(answer)
    return None if number is None else str(number)


def stated_answer(text: str) -> str | None:
    """The last of what ``text`` states as its answer, in so many words; None where it states none."""
    found = None
    for match in _STATED.finditer(text):
        stated = match["marked"]
        if match["said"] is not None:
            stated = re.split(r"\.\s", match["said"], maxsplit=1)[0]
        if match["boxed"] is not None:
            stated = _until_closed(text, match.end())
        if stated and stated.strip(" .*:"):
            found = stated.strip()
    return found


def first_number(text: str) -> Fraction | None:
    """The first number in a stated answer, what follows its last equals sign; None where it goes on to calculate."""
    clean = _clean(text.rpartition("=")[2])
    match = _NUMBER.search(clean)
    return None if match is None or _GOES_ON.match(clean, match.end()) else _value(match)


def _bare_number(text: str) -> Fraction | None:
    """The number that ``text`` is, with nothing before it and no other after it."""
    clean = _clean(text.rpartition("=")[2])
    match = _NUMBER.match(clean)
    if match is None or _GOES_ON.match(clean, match.end()) or re.search(r"\d", clean[match.end() :]):
        return None
    return _value(match)


def _last_number(text: str) -> Fraction | None:
    last = _last(_NUMBER, _clean(text))
    return None if last is None else _value(last)


def _last_match(pattern: str, text: str) -> str | None:
    last = _last(re.compile(pattern), text)
    if last is None:
        return None
    return last[1] if last.re.groups and last[1] is not None else last[0]


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    return found


def _until_closed(text: str, start: int) -> str | None:
    """``text`` from ``start`` up to the brace that closes the one before it."""
    depth = 1
    for place in range(start, min(len(text), start + _LONGEST_BOX)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start:place]
    return None


def _clean(text: str) -> str:
    """``text`` without currency signs, emphasis and LaTeX's spacing; minus signs and digit grouping are ASCII's."""
    text = text.replace("−", "-").replace("{,}", ",").replace("\\%", "%")
    return _NOISE.sub("", _COMMAND_WITH_TEXT.sub(r" \1 ", text)).strip()


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _LONGEST_NUMBER:
        return None
    sign = -1 if match["sign"] else 1
    top, bottom = match["top"] or match["over"], match["bottom"] or match["under"]
    if bottom is None:
        return sign * Fraction((match["plain"] or match["small"]).replace(",", ""))
    return None if int(bottom) == 0 else sign * (int(match["whole"] or 0) + Fraction(int(top), int(bottom)))


def _words(text: str | None) -> str:
    return "" if text is None else " ".join(_clean(text).casefold().split()).strip(" .,:;!?()[]{}\"'`")
