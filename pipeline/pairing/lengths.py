"""Lengths of completions, and scores that length has been taken out of.

A judge that likes long answers teaches long answers. Two remedies, both of which leave the judge's scores as they are
in the judgments and change what pairing compares: a penalty a token, and the residual of a line fitted on the scores of
the whole round. The line is turned about the round's mean length, so that scores stay in the judge's units.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import PairingConfig

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
PENALISED = 100.0
"""Tokens that ``length_penalty`` is given for."""


@dataclass(frozen=True, slots=True)
class Line:
    """The score that length explains: ``slope · (length − middle)``."""

    slope: float = 0.0
    """Score a token (or word)."""
    middle: float = 0.0
    """Mean length of the round's scored candidates."""


def lengths_of(token_ids: pa.ChunkedArray, present: Bools, texts: Callable[[], pa.ChunkedArray]) -> Floats:
    """Tokens of each candidate, [groups, candidates]; words in groups none of whose candidates has token ids.

    Texts are fetched where words have to be counted.
    """
    counted = pc.fill_null(pc.list_value_length(token_ids), 0).to_numpy()
    lengths = np.full(present.shape, np.nan)
    lengths[present] = counted
    wordy = present.any(axis=1) & (np.nansum(lengths, axis=1) == 0)
    if wordy.any():
        words = np.full(present.shape, np.nan)
        words[present] = pc.count_substring_regex(texts(), r"\S+").to_numpy()
        lengths[wordy] = words[wordy]
    return lengths


def compared_scores(raw: Floats, lengths: Floats, config: PairingConfig, line: Line) -> Floats:
    """The scores that pairing compares; those of the judge where no length control is asked for."""
    if not controls_length(config):
        return raw
    explained = line.slope * (lengths - line.middle)
    penalty: Floats = config.length_penalty * lengths / PENALISED
    return raw - explained - penalty


def controls_length(config: PairingConfig) -> bool:
    return config.length_regression or config.length_penalty > 0


def fit_line(scores: list[Floats], lengths: list[Floats]) -> Line:
    """Least squares of scores on lengths, both finite. A flat line where all lengths are equal."""
    mean_score, mean_length = mean(scores), mean(lengths)
    apart = [block - mean_length for block in lengths]
    spread = exact_sum(block * block for block in apart)
    shared = exact_sum((score - mean_score) * length for score, length in zip(scores, apart, strict=True))
    return Line(shared / spread if spread > 0 else 0.0, mean_length)


def mean(blocks: list[Floats]) -> float:
    """0 of nothing."""
    count = sum(map(len, blocks))
    return exact_sum(blocks) / count if count else 0.0


def deviation(blocks: list[Floats]) -> float:
    """Population standard deviation; 0 of nothing."""
    middle, count = mean(blocks), sum(map(len, blocks))
    return math.sqrt(exact_sum((block - middle) ** 2 for block in blocks) / count) if count else 0.0


def exact_sum(blocks: Iterable[Floats]) -> float:
    """Rounded once, so that neither the order of the numbers nor their division into blocks changes it."""
    return math.fsum(chain.from_iterable(block.tolist() for block in blocks))
