"""Rounds small enough to read, paired as the stage pairs them but in memory."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pipeline.config import PairingConfig
from pipeline.pairing import REASONS, Origin, Shard, columns_of, pair
from pipeline.pairing.artifact import survey
from pipeline.pairing.columns import Floats, joined
from pipeline.tables import candidates_table, judgments_table, prompts_table, read_pairs
from pipeline.types import Candidate, Group, Judgment, PreferencePair, Prompt

Scores = Sequence[float | None]
ORIGIN = Origin(3, "candidates", "judgments")


@dataclass(frozen=True)
class Found:
    pairs: list[PreferencePair]
    dropped: list[tuple[str, str, str]]

    @property
    def counts(self) -> Mapping[str, int]:
        counts = Counter(reason for _, reason, _ in self.dropped)
        return {reason: counts[reason] for reason in REASONS if counts[reason]}

    @property
    def by_prompt(self) -> dict[str, list[PreferencePair]]:
        pairs = defaultdict(list)
        for one in self.pairs:
            pairs[one.prompt.id].append(one)
        return pairs


class Held:
    """A round's shards in memory, as ``artifact.Round`` has them on disk."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def shard(self, number: int) -> Shard:
        return self.shards[number]

    def scores(self, number: int) -> tuple[Floats, Floats]:
        return columns_of(self.shards[number], True).raw.ravel(), np.empty(0)

    def scores_and_lengths(self, number: int) -> tuple[Floats, Floats]:
        columns = columns_of(self.shards[number], True)
        return columns.raw.ravel(), columns.lengths.ravel()


def group(name: str, texts: Sequence[str], truncated: Sequence[int] = (), ids: bool = True) -> Group:
    """A token a letter, and one more where it ended by itself. ``ids`` is False for a group of text alone."""
    candidates = tuple(
        Candidate(
            index=index,
            token_ids=tuple(ord(letter) for letter in text) + (() if index in truncated else (2,)) if ids else (),
            text=text,
            finish_reason="length" if index in truncated else "stop",
            seed=1000 + index,
        )
        for index, text in enumerate(texts)
    )
    return Group(Prompt(name, name, (1,)), candidates)


def judged(groups: Sequence[Group], scores: Sequence[Scores]) -> list[Judgment]:
    return [Judgment(one.prompt.id, "judge", tuple(values)) for one, values in zip(groups, scores, strict=True)]


def shard_of(groups: Sequence[Group], judgments: Sequence[Judgment]) -> Shard:
    prompts = prompts_table(one.prompt for one in groups)
    return Shard(prompts, candidates_table(groups), judgments_table(judgments))


def pair_round(
    groups: Sequence[Group], judgments: Sequence[Judgment], config: PairingConfig, per_shard: int = 1000,
    origin: Origin = ORIGIN, together: int = 1,
) -> Found:  # fmt: skip
    """``per_shard`` groups lie in a shard, and ``together`` shards are paired at once."""
    starts = range(0, max(len(groups), 1), per_shard)
    shards = [shard_of(groups[at : at + per_shard], judgments[at : at + per_shard]) for at in starts]
    yardstick = survey(Held(shards), config)
    blocks = [joined(shards[at : at + together]) for at in range(0, len(shards), together)]
    parts = [pair(block, config, yardstick, origin) for block in blocks]
    for part in parts:
        assert part.kept + part.dropped.num_rows == part.groups
    dropped = [tuple(row.values()) for part in parts for row in part.dropped.to_pylist()]
    return Found([row for part in parts for row in read_pairs(part.pairs)], dropped)


def paired(groups: Sequence[Group], scores: Sequence[Scores], **settings: Any) -> Found:
    return pair_round(groups, judged(groups, scores), PairingConfig(**settings))


def only_drop(texts: Sequence[str], scores: Scores, truncated: Sequence[int] = (), **settings: Any) -> tuple[str, str]:
    found = paired([group("p", texts, truncated)], [scores], **settings)
    assert found.pairs == []
    ((name, reason, detail),) = found.dropped
    assert name == "p"
    return reason, detail


def only_pair(texts: Sequence[str], scores: Scores, truncated: Sequence[int] = (), **settings: Any) -> tuple[str, str]:
    (pair,) = paired([group("p", texts, truncated)], [scores], **settings).pairs
    return pair.chosen.text, pair.rejected.text


def all_pairs(texts: Sequence[str], scores: Scores, count: int, **settings: Any) -> list[str]:
    """``chosen rejected`` of each pair, in order."""
    found = paired([group("p", texts)], [scores], pairs_per_prompt=count, **settings)
    return [f"{pair.chosen.text}{pair.rejected.text}" for pair in found.pairs]


# ---------------------------------------------------------------------------------------------- drawn by hypothesis
Drawn = list[list[tuple[float | None, str, bool]]]
score = st.none() | st.integers(-4, 4).map(float)
candidate = st.tuples(score, st.sampled_from(["", "a", "b", "c", "dd", "eeee", " dd"]), st.booleans())
rounds = st.lists(st.lists(candidate, max_size=6), max_size=5)
RULES = ("best_worst", "best_mu_minus_2sigma", "best_random", "all_pairs", "threshold")


def configs(rules: Sequence[str] = RULES, **fixed: Any) -> st.SearchStrategy[PairingConfig]:
    drawn: dict[str, Any] = {
        "rule": st.sampled_from(rules),
        "margin": st.sampled_from([0.0, 0.5, 2.0]),
        "margin_unit": st.sampled_from(["score", "sigma"]),
        "keep": st.sampled_from([1.0, 0.5]),
        "min_score_chosen": st.none() | st.just(1.0),
        "drop_truncated": st.booleans(),
        "drop_same_words": st.booleans(),
        "max_similarity": st.none() | st.just(0.5),
        "max_length_ratio": st.none() | st.just(2.0),
        "pairs_per_prompt": st.sampled_from([1, 2, 3, 99]),
        "length_penalty": st.sampled_from([0.0, 12.5]),  # an eighth a token: no rounding
        "length_regression": st.booleans(),
    }
    return st.builds(PairingConfig, **(drawn | {name: st.just(value) for name, value in fixed.items()}))


def build(drawn: Drawn) -> tuple[list[Group], list[Judgment]]:
    groups = [
        group(f"p{number}", [text for _, text, _ in row], [i for i, (_, _, cut) in enumerate(row) if cut])
        for number, row in enumerate(drawn)
    ]
    return groups, judged(groups, [[value for value, _, _ in row] for row in drawn])
