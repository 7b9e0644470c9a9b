"""Real sentences for ``reviews.toml``: corpus, prompts and a judge, each a plain function. Copy it to bring your own.

The data are 10,662 sentences from film reviews, one a line, in ``rt-polarity.pos`` and ``rt-polarity.neg``
(Pang and Lee, ACL 2005). 512 of them are held out: the language model never sees these, and their first four words
are the prompts. The judge knows words, from half of the other sentences with their labels; the judge that evaluates
knows them from the other half, so it did not label what the policy was trained on.
"""

import hashlib
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path

from pipeline.errors import DataError

POSITIVE, NEGATIVE = "rt-polarity.pos", "rt-polarity.neg"
HELD_OUT = 512
EVALUATED = 128
"""Held-out sentences whose prompts are for evaluation alone; the rounds use the others."""
PROMPT_WORDS = 4
PRIOR = 20_000.0
"""Weight of the prior in words: what a word's odds are drawn towards until it has been seen often."""
SHORTEST = 8
"""Words over which a completion's log-odds are averaged at least, so that one happy word is no perfect review."""


# ---------------------------------------------------------------------------------------------- data
def corpus(path: str) -> list[str]:
    """What the base policy reads: every sentence that is not held out."""
    return [sentence for sentence, _ in _sentences(path)[1]]


def prompts(path: str) -> list[dict[str, str]]:
    """The first four words of each held-out sentence."""
    return [
        {
            "id": f"review-{number:03d}",
            "prompt": _opening(sentence),
            "split": "held_out" if number < EVALUATED else "rounds",
        }
        for number, (sentence, _) in enumerate(_sentences(path)[0])
    ]


@cache
def _sentences(path: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Held-out sentences and the others, each with whether it is positive, in an order that is random but fixed."""
    labelled: dict[str, bool] = {}
    for name, positive in ((POSITIVE, True), (NEGATIVE, False)):
        file = Path(path) / name
        if not file.is_file():
            raise DataError(f"vars.corpus: {path!r} holds no {name}; give the folder of the two rt-polarity files")
        labelled |= {" ".join(line.split()): positive for line in _text(file).split("\n") if line.strip()}
    held_out: dict[str, str] = {}
    order = sorted(labelled, key=lambda sentence: hashlib.sha256(sentence.encode()).digest())
    for sentence in order:
        if len(sentence.split()) >= 2 * PROMPT_WORDS and len(held_out) < HELD_OUT:
            held_out.setdefault(_opening(sentence), sentence)
    chosen = set(held_out.values())
    others = [(sentence, labelled[sentence]) for sentence in order if sentence not in chosen]
    return [(sentence, labelled[sentence]) for sentence in held_out.values()], others


def _text(file: Path) -> str:
    """Published in Latin-1, and also found converted to UTF-8."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _opening(sentence: str) -> str:
    return " ".join(sentence.split()[:PROMPT_WORDS])


# ---------------------------------------------------------------------------------------------- judge
def score(prompt: str, completions: list[str], path: str, half: int) -> list[float]:
    """How positive each completion's words are: their mean log-odds, so that length is not the reward.

    A judge may also return None for a completion it cannot judge; this one knows no such case.
    """
    odds = log_odds(path, half)
    found = [words(completion) for completion in completions]
    return [sum(odds.get(word, 0.0) for word in these) / max(len(these), SHORTEST) for these in found]


@cache
def log_odds(path: str, half: int) -> dict[str, float]:
    """How much likelier each word is in positive than in negative sentences, learnt from half 0 or 1 of them.

    Log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn, "Fightin' Words", 2008):
    each class is given ``PRIOR`` words more, distributed as in both classes together.
    """
    counts = {True: Counter[str](), False: Counter[str]()}
    for sentence, positive in _sentences(path)[1][half::2]:
        counts[positive].update(words(sentence))
    both = counts[True] + counts[False]

    def log_odds_in(positive: bool, word: str) -> float:
        share = (counts[positive][word] + PRIOR * both[word] / both.total()) / (counts[positive].total() + PRIOR)
        return math.log(share / (1 - share))

    return {word: log_odds_in(True, word) - log_odds_in(False, word) for word in both}


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower())
