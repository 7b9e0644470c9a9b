"""Pairs of random completions for the tiny policies, the same ones for the same arguments in any process."""

import torch

from pipeline.types import Candidate, PreferencePair, Prompt
from tests.tiny import ALPHABET, EOS, SPECIAL, token_ids

PROMPTS = ("ravin likes ", "a", "what is it? ")


def make_pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    """``count`` pairs of very different lengths; every other rejected completion was cut, and so has no EOS."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shortest: int, longest: int) -> tuple[int, ...]:
        length = int(torch.randint(shortest, longest, (), generator=generator))
        return tuple(torch.randint(len(SPECIAL), len(SPECIAL) + len(ALPHABET), (length,), generator=generator).tolist())

    return [
        make_pair((*draw(0, 4), EOS), draw(1, 12) if index % 2 else (*draw(0, 8), EOS), PROMPTS[index % 3], str(index))
        for index in range(count)
    ]


def make_pair(
    chosen: tuple[int, ...], rejected: tuple[int, ...], prompt: str | tuple[int, ...] = "a", name: str = "p"
) -> PreferencePair:
    ids = token_ids(prompt) if isinstance(prompt, str) else prompt
    return PreferencePair(
        id=name,
        prompt=Prompt(name, "", ids),
        chosen=Candidate(0, chosen, text_of(chosen), "stop" if chosen[-1:] == (EOS,) else "length", 0),
        rejected=Candidate(1, rejected, text_of(rejected), "stop" if rejected[-1:] == (EOS,) else "length", 1),
        score_chosen=1.0,
        score_rejected=0.0,
        round=0,
        candidates_key="",
        judgments_key="",
    )


def text_of(ids: tuple[int, ...]) -> str:
    """As the tiny policies' tokenizer reads it, without special tokens."""
    return "".join(ALPHABET[token - len(SPECIAL)] for token in ids if 0 <= token - len(SPECIAL) < len(ALPHABET))
