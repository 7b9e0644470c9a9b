"""Pairing: groups and their judgments to preference pairs. Pure; every group gives its pairs or one named drop.

The rule is best against worst: of the candidates a judge scored, the highest is chosen and the lowest rejected. An
empty candidate is never chosen, nor, with ``drop_truncated``, is one that stopped at the token limit; both can be
rejected. With ``pairs_per_prompt`` above 1, a group that gives this pair gives its next widest ones too. The numeric
part works on columns [groups, candidates], padded to the largest group.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import PairingConfig
from pipeline.types import Candidate, Group, Judgment, PreferencePair

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.intp]

REASONS = ("abstained", "identical", "tie", "truncated", "empty", "margin", "floor")
"""Why a group gives no pair, whatever ``pairs_per_prompt`` is; where several hold, the first named:

abstained   fewer than two candidates have a score
identical   best and worst, or all candidates of a tie, are the same completion: the judge contradicts itself, or
            there is nothing to compare
tie         all scores are equal
truncated   what scored above the worst had stopped at the token limit (``drop_truncated``)
empty       what scored above the worst was empty
margin      the two scores differ by less than ``margin``
floor       the chosen score is below ``min_score_chosen``
"""
SLACK = 1e-9
"""Relative rounding allowed for: 0.7 − 0.4 reaches a margin of 0.3."""


@dataclass(frozen=True, slots=True)
class Pairing:
    pairs: list[PreferencePair]
    """In group order; those of a group together, widest margin first."""
    dropped: list[tuple[str, str, str]]
    """(prompt id, reason, detail) of every group without a pair, in group order."""

    @property
    def paired(self) -> int:
        """Groups with a pair; with those dropped, all the groups there were."""
        return len({pair.prompt.id for pair in self.pairs})

    @property
    def counts(self) -> Mapping[str, int]:
        """Groups dropped, by reason, in the order of ``REASONS``."""
        found = Counter(reason for _, reason, _ in self.dropped)
        return {reason: found[reason] for reason in REASONS if found[reason]}


def pair_groups(
    groups: Sequence[Group],
    judgments: Sequence[Judgment],
    config: PairingConfig,
    round: int,
    candidates_key: str,
    judgments_key: str,
) -> Pairing:
    """Pair each group's best candidate with its worst, and so on to ``config.pairs_per_prompt`` pairs a group.

    A group's pairs are its combinations of two scored candidates that may be paired, in order of margin; the first
    ones for a smaller ``pairs_per_prompt`` are the same. Two completions are paired once at most: no pair is repeated
    by a text that was sampled twice, or contradicted by one that was scored twice.

    Args:
        groups: one a prompt; the seeds within a group differ. Give a whole round at once: ``margin_unit = "sigma"``
            is the population standard deviation of all the scores given here.
        judgments: one a group, by prompt id, in any order. A score that is not finite counts as an abstention.
        candidates_key, judgments_key: artifacts that hold the groups and the judgments; part of each pair's id.
    """
    if not groups:
        return Pairing([], [])
    columns = _columns(groups, judgments)
    choice = _choose(columns, config)
    reasons = _reasons(groups, columns, choice)
    prefix = f"{candidates_key}\0{judgments_key}\0"
    pairs, dropped = [], []
    for row, group in enumerate(groups):
        if reason := str(reasons[row]):
            dropped.append((group.prompt.id, reason, _detail(reason, row, group, columns, choice)))
            continue
        scores = columns.scores[row].tolist()
        for chosen, rejected in _picks(row, group, columns, choice, config.pairs_per_prompt):
            winner, loser = group.candidates[chosen], group.candidates[rejected]
            pairs.append(
                PreferencePair(
                    _pair_id(prefix, group.prompt.id, winner, loser), group.prompt, winner, loser,
                    scores[chosen], scores[rejected], round, candidates_key, judgments_key,
                )
            )  # fmt: skip
    pairing = Pairing(pairs, dropped)
    assert pairing.paired + len(dropped) == len(groups), "a group went missing"
    return pairing


@dataclass(frozen=True, slots=True)
class _Columns:
    """Each [groups, candidates]."""

    scores: Floats
    """NaN where the judge abstained or the group is smaller."""
    empty: Bools
    truncated: Bools
    priority: Words
    """Among equal scores the lowest is taken."""

    @property
    def scored(self) -> Bools:
        return np.isfinite(self.scores)


@dataclass(frozen=True, slots=True)
class _Choice:
    """Each [groups] where no shape is given; meaningless for groups that :func:`_reasons` drops before they matter."""

    choosable: Bools
    """[groups, candidates]: scored, and neither empty nor, where that counts, truncated."""
    chosen: Indices
    rejected: Indices
    best: Floats
    """Score of the chosen candidate; −inf where none could be chosen."""
    worst: Floats
    """Lowest score of the group, the rejected candidate's."""
    top: Floats
    """Highest score of the group, whether or not it could be chosen."""
    least: float
    """Smallest score difference kept."""
    floor: float
    """Smallest score that a chosen candidate may have."""


def _columns(groups: Sequence[Group], judgments: Sequence[Judgment]) -> _Columns:
    by_prompt = {judgment.prompt_id: judgment for judgment in judgments}
    ordered = [by_prompt[group.prompt.id] for group in groups]
    assert len(by_prompt) == len(judgments) == len(groups), "every group has one judgment"
    sizes = np.array([len(group.candidates) for group in groups])
    assert all(len(j.scores) == size for j, size in zip(ordered, sizes, strict=True)), "every candidate has one score"
    shape = (len(groups), max(1, int(sizes.max())))
    present = np.arange(shape[1]) < sizes[:, None]
    flat = [candidate for group in groups for candidate in group.candidates]
    scores = np.full(shape, np.nan)
    scores[present] = np.array([score for j in ordered for score in j.scores], dtype=np.float64)  # None becomes NaN
    scores[~np.isfinite(scores)] = np.nan
    empty, truncated, seeds = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, np.int64)
    empty[present] = [not candidate.text or candidate.text.isspace() for candidate in flat]
    truncated[present] = [candidate.finish_reason == "length" for candidate in flat]
    seeds[present] = [candidate.seed for candidate in flat]
    return _Columns(scores, empty, truncated, _priority([group.prompt.id for group in groups], seeds.view(np.uint64)))


def _priority(prompt_ids: Sequence[str], seeds: Words) -> Words:
    """A hash of (prompt id, candidate seed), distinct for distinct seeds: who wins among equal scores.

    Not the position, so that the order of candidates means nothing. Not the text either: a hash of the text would let
    the same text win every tie it is in, all run long, and so teach a preference that no judge expressed. Seeds are
    drawn independently of what was sampled from them, so among equals each candidate is as likely as any other and
    a text is taken as often as the policy says it.
    """
    names = np.array(
        [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) for name in prompt_ids], np.uint64
    )
    mixed = seeds ^ names[:, None]  # then the finaliser of SplitMix64, a bijection
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _choose(columns: _Columns, config: PairingConfig) -> _Choice:
    scores, scored = columns.scores, columns.scored
    choosable = scored & ~columns.empty
    if config.drop_truncated:
        choosable &= ~columns.truncated
    best = np.where(choosable, scores, -np.inf).max(axis=1)
    worst = np.where(scored, scores, np.inf).min(axis=1)
    sigma = float(scores[scored].std()) if scored.any() else 0.0
    last = np.uint64(2**64 - 1)
    return _Choice(
        choosable=choosable,
        chosen=np.where(choosable & (scores == best[:, None]), columns.priority, last).argmin(axis=1),
        rejected=np.where(scored & (scores == worst[:, None]), columns.priority, last).argmin(axis=1),
        best=best,
        worst=worst,
        top=np.where(scored, scores, -np.inf).max(axis=1),
        least=config.margin * (sigma if config.margin_unit == "sigma" else 1.0) * (1 - SLACK),
        floor=-np.inf if config.min_score_chosen is None else config.min_score_chosen,
    )


def _reasons(groups: Sequence[Group], columns: _Columns, choice: _Choice) -> npt.NDArray[np.str_]:
    """One of ``REASONS`` a group, or "" where it gives a pair."""
    scored = columns.scored
    few = scored.sum(axis=1) < 2
    level = choice.top == choice.worst
    blocked = choice.best <= choice.worst  # something scored above the worst, but nothing of that could be chosen
    with_text = (scored & ~columns.empty & (columns.scores > choice.worst[:, None])).any(axis=1)
    same = np.zeros(len(groups), bool)
    for row in np.flatnonzero(level & ~few).tolist():
        same[row] = _same([groups[row].candidates[index] for index in np.flatnonzero(scored[row])])
    for row in np.flatnonzero(~level & ~few).tolist():
        same[row] = _same([groups[row].candidates[pick[row]] for pick in (choice.chosen, choice.rejected)])
    return np.select(
        [few, level & same, level, blocked & with_text, blocked, same,
         choice.best - choice.worst < choice.least, choice.best < choice.floor],
        ["abstained", "identical", "tie", "truncated", "empty", "identical", "margin", "floor"],
        "",
    )  # fmt: skip


def _picks(row: int, group: Group, columns: _Columns, choice: _Choice, count: int) -> list[tuple[int, int]]:
    """(chosen, rejected) of a group that is not dropped: at most ``count``, best against worst first.

    Widest margin first; of equal margins the higher chosen score, then the lower rejected one, since margins may be
    equal by rounding alone; of equal scores by priority, chosen before rejected.
    """
    first = int(choice.chosen[row]), int(choice.rejected[row])
    if count == 1:
        return [first]
    scores, priority = columns.scores[row], columns.priority[row]
    margins = scores[:, None] - scores  # NaN, so never kept, where one has no score
    kept = (margins > 0) & (margins >= choice.least) & (choice.choosable[row] & (scores >= choice.floor))[:, None]
    chosen, rejected = kept.nonzero()
    order = np.lexsort((priority[rejected], priority[chosen], scores[rejected], -scores[chosen], -margins[kept]))
    texts = [candidate.text for candidate in group.candidates]
    picks: dict[frozenset[str], tuple[int, int]] = {}
    for pick in zip(chosen[order].tolist(), rejected[order].tolist(), strict=True):
        compared = frozenset(texts[index] for index in pick)
        if len(compared) == 2:
            picks.setdefault(compared, pick)
        if len(picks) == count:
            break
    found = list(picks.values())
    assert found[0] == first, "the widest pair is best against worst"
    return found


def _same(candidates: Sequence[Candidate]) -> bool:
    """Whether all read the same or are the same ids."""
    first = candidates[0]
    return all(other.text == first.text or other.token_ids == first.token_ids for other in candidates)


def _detail(reason: str, row: int, group: Group, columns: _Columns, choice: _Choice) -> str:
    size = len(group.candidates)
    match reason:
        case "abstained":
            return f"{columns.scored[row].sum()} of {size} candidates have a score"
        case "identical":
            return f"{group.candidates[choice.rejected[row]].text[:80]!r}"
        case "tie":
            return f"all scores are {choice.worst[row]:g}"
        case "truncated" | "empty":
            barred = columns.truncated if reason == "truncated" else columns.empty
            return f"{barred[row].sum()} of {size} candidates are {reason}"
        case "margin":
            return f"{choice.best[row] - choice.worst[row]:g} < {choice.least:g}"
        case _:
            return f"the best score is {choice.best[row]:g}"


def _pair_id(prefix: str, prompt_id: str, chosen: Candidate, rejected: Candidate) -> str:
    """SHA-256, first 32 digits, over both artifact keys, the prompt's id, and both sequences of token ids."""
    ids = (*chosen.token_ids, *rejected.token_ids)
    identity = f"{prefix}{prompt_id}\0{len(chosen.token_ids)}\0".encode() + struct.pack(f"<{len(ids)}i", *ids)
    return hashlib.sha256(identity).hexdigest()[:32]
