"""Words of a text and runs of them, as texts are compared."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

# Scripts that put no space between words: Thai to Burmese, Khmer, kana, Han. Each of their signs is a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORDS = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
WORDS_AND_SIGNS = re.compile(rf"{WORDS.pattern}|[^\w\s]")


def words(text: str, signs: bool = False) -> list[str]:
    """The words of ``text``, whatever their case. With ``signs``, each punctuation mark too: 2+2 is not 2-2."""
    return (WORDS_AND_SIGNS if signs else WORDS).findall(unicodedata.normalize("NFKC", text).casefold())


def runs(words: Sequence[str], length: int) -> Iterator[str]:
    """Every ``length`` words in a row; none where there are fewer."""
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))
