"""Preference data of given lengths: random tokens with a difference between chosen and rejected that can be learnt."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

EOS = 2
FIRST_WORD = 3
"""Ids below are the pad, begin and end tokens."""


@dataclass(frozen=True, slots=True)
class Preference:
    """One pair as token ids, with the reference's summed log-probabilities (nats) once they are known."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    reference: tuple[float, float] = (0.0, 0.0)
    """Of chosen and of rejected."""

    def with_reference(self, chosen: float, rejected: float) -> "Preference":
        return replace(self, reference=(chosen, rejected))


@dataclass(frozen=True, slots=True)
class Lengths:
    """A log-normal length in tokens, clipped to [low, high]."""

    median: int
    sigma: float
    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        return max(self.low, min(self.high, round(self.median * math.exp(rng.gauss(0, self.sigma)))))


@dataclass(frozen=True, slots=True)
class Regime:
    prompt: Lengths
    completion: Lengths


REGIMES = {
    "short": Regime(Lengths(30, 0.3, 4, 100), Lengths(200, 0.4, 4, 400)),
    "typical": Regime(Lengths(150, 0.7, 8, 512), Lengths(120, 0.6, 4, 400)),
    "long": Regime(Lengths(600, 0.1, 400, 800), Lengths(100, 0.3, 4, 400)),
}

SCHEMES: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "2 of 4": (4, ((0, 1), (2, 3))),
    "best against rest": (4, ((0, 1), (0, 2), (0, 3))),
    "4 pairs": (4, ((0, 2), (0, 3), (1, 2), (1, 3))),
    "all 6 pairs": (4, ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))),
}
"""Completions of a prompt, and which are paired (chosen, rejected)."""

ONE_PAIR: tuple[int, tuple[tuple[int, int], ...]] = (2, ((0, 1),))


def groups_per_step(pairs_per_step: int, scheme: str) -> int:
    """Prompts of an optimiser step with about ``pairs_per_step`` pairs: a multiple of 4, for even batches."""
    _, paired = SCHEMES[scheme]
    return max(4, 4 * round(pairs_per_step / len(paired) / 4))


def preferences(regime: str, prompts: int, vocabulary: int, seed: int, scheme: str | None = None) -> list[Preference]:
    """Pairs of ``prompts`` prompts, one each, or as many as the scheme pairs.

    The tokens of a prompt's completion number i come from the i-th part of the vocabulary, so a policy can learn which
    one wins and the loss falls: with pure noise equal loss curves would show little.
    """
    rng = random.Random(seed)
    lengths = REGIMES[regime]
    completions, paired = SCHEMES[scheme] if scheme else ONE_PAIR
    width = (vocabulary - FIRST_WORD) // completions

    def words(count: int, first: int, last: int) -> list[int]:
        return [rng.randrange(first, last) for _ in range(count)]

    pairs = []
    for _ in range(prompts):
        prompt = tuple(words(lengths.prompt.draw(rng), FIRST_WORD, vocabulary))
        rows = [
            (*words(lengths.completion.draw(rng) - 1, FIRST_WORD + i * width, FIRST_WORD + (i + 1) * width), EOS)
            for i in range(completions)
        ]
        pairs += [Preference(prompt, rows[better], rows[worse]) for better, worse in paired]
    return pairs


def row_tokens(pairs: Sequence[Preference]) -> int:
    """Tokens without any sharing or padding: the prompt once for each completion of each pair."""
    return sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs)


def unique_tokens(pairs: Sequence[Preference]) -> int:
    """Tokens with every prompt once and every completion once."""
    prompts: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for pair in pairs:
        prompts.setdefault(pair.prompt, set()).update((pair.chosen, pair.rejected))
    return sum(len(prompt) + sum(map(len, completions)) for prompt, completions in prompts.items())
