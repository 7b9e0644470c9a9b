"""Whether a prompt shares text with an evaluation set (arXiv 2005.14165, appendix C)."""

from collections.abc import Sequence
from hashlib import blake2b

from pipeline.config import Decontamination, PromptsConfig
from pipeline.prompts.row import prompt_texts
from pipeline.prompts.sources import columns_of, read
from pipeline.prompts.tally import Reading, Tally
from pipeline.prompts.turns import Unusable
from pipeline.prompts.words import runs, words

SHORTEST = 8
"""Words that must be shared for an overlap to mean something (the paper's least n)."""


class Evaluations:
    """The words of evaluation texts, as 64-bit digests of runs: 13-grams, and whole texts that are shorter."""

    def __init__(self, ngram: int) -> None:
        self._ngram = ngram
        self._runs: dict[int, set[bytes]] = {}
        self._whole: set[bytes] = set()

    def add(self, texts: Sequence[str]) -> None:
        """What one row asks, turn by turn."""
        said, shortest = [words(text) for text in texts], min(SHORTEST, self._ngram)
        if 0 < sum(map(len, said)) < shortest:
            self._whole.add(_whole(said))
        for turn in said:
            if len(turn) >= shortest:
                length = min(len(turn), self._ngram)
                self._runs.setdefault(length, set()).update(map(_digest, runs(turn, length)))

    def share_text_with(self, texts: Sequence[str]) -> bool:
        """Whether a turn of this prompt has a run of words in common with these, or it is one of the shortest."""
        said = [words(text) for text in texts]
        return _whole(said) in self._whole or any(
            _digest(run) in known for length, known in self._runs.items() for turn in said for run in runs(turn, length)
        )


def read_evaluations(config: PromptsConfig, asked: Decontamination) -> tuple[Evaluations, list[Reading]]:
    """What prompts must not share text with, and what reading each set came to.

    Raises:
        DataError: a source cannot be read, has no rows, or has more unusable rows than ``bad_rows`` allows.
    """
    evaluations, tally = Evaluations(asked.ngram), Tally()
    readings = []
    for index, source in enumerate(asked.against):
        key = f"prompts.decontaminate.against.{index}"
        for raw in read(source, key):
            number = tally.read(key)
            try:
                evaluations.add(prompt_texts(raw, columns_of(source)))
            except Unusable as reason:
                tally.unusable(key, number, str(reason))
                tally.check_beginning(key, key, config.bad_rows)
        readings.append(tally.check(key, key, config.bad_rows))
    return evaluations, readings


def _whole(said: Sequence[Sequence[str]]) -> bytes:
    return _digest(" ".join(word for turn in said for word in turn))


def _digest(run: str) -> bytes:
    return blake2b(run.encode("utf-8", "surrogatepass"), digest_size=8).digest()
