"""From scores to the comparisons that become pairs, and a reason for every group that has none."""

from dataclasses import dataclass

import numpy as np

from pipeline.config import PairingConfig
from pipeline.pairing import rules
from pipeline.pairing.columns import Bools, Columns, Floats, Indices
from pipeline.pairing.filters import filters, text_codes
from pipeline.pairing.identity import same_words, similarities
from pipeline.pairing.standings import Standings, refusals
from pipeline.pairing.yardstick import Yardstick

AT_ONCE = 2**18
"""Comparisons looked at together: what bounds memory where groups are large."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Each [pairs] but the reasons: by group in order, and a group's in the order of its rule."""

    group: Indices
    chosen: Indices
    """Place in the group."""
    rejected: Indices
    reasons: np.ndarray
    """[groups] of str: why a group has no pair; "" where it has one."""

    @property
    def first(self) -> Bools:
        """Whether a pair is the first of its group."""
        first: Bools = np.diff(self.group, prepend=-1) > 0
        return first


def compare(
    columns: Columns, scores: Floats, standings: Standings, config: PairingConfig, yardstick: Yardstick
) -> Comparisons:
    """At most ``config.pairs_per_prompt`` comparisons a group; ``keep`` has not been asked yet."""
    reasons = refusals(columns, scores, standings, yardstick).astype("U16")
    open_groups = np.flatnonzero(reasons == "")
    done = np.zeros(len(reasons), bool)
    if config.rule == "best_worst" and config.pairs_per_prompt == 1:
        done[open_groups] = _passes(columns, scores, standings, open_groups, config, yardstick)
    settled = np.flatnonzero(done)
    parts = [(settled, standings.chosen[settled], standings.rejected[settled])]
    rest = np.flatnonzero((reasons == "") & ~done)
    step = max(1, AT_ONCE // scores.shape[1] ** 2)
    for start in range(0, len(rest), step):
        groups = rest[start : start + step]
        found, why = _search(columns, scores, standings, groups, config, yardstick)
        reasons[groups] = why
        parts.append(found)
    group, chosen, rejected = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.argsort(group, kind="stable")
    return Comparisons(group[order], chosen[order], rejected[order], reasons)


def keep_widest(found: Comparisons, scores: Floats, yardstick: Yardstick) -> Comparisons:
    """Without the groups whose first pair is narrower than the cut-off, and without such pairs of the others."""
    margins = margins_of(found, scores)
    wide = margins >= yardstick.cutoff
    narrow = found.group[found.first & ~wide]
    reasons = found.reasons.copy()
    reasons[narrow] = "keep"
    kept = wide & ~np.isin(found.group, narrow)
    return Comparisons(found.group[kept], found.chosen[kept], found.rejected[kept], reasons)


def margins_of(found: Comparisons, scores: Floats) -> Floats:
    margins: Floats = scores[found.group, found.chosen] - scores[found.group, found.rejected]
    return margins


# ---------------------------------------------------------------------------------------------- the usual case
def _passes(
    columns: Columns, scores: Floats, standings: Standings, groups: Indices, config: PairingConfig, yardstick: Yardstick
) -> Bools:
    """Whether best against worst passes every filter: then there is nothing to search. They are not identical."""
    chosen, rejected = standings.chosen[groups], standings.rejected[groups]
    margins = scores[groups, chosen] - scores[groups, rejected]
    passes: Bools = (columns.raw[groups, chosen] != columns.raw[groups, rejected]) & (margins > yardstick.rounding)
    passes &= margins >= yardstick.least(config)
    if config.min_score_chosen is not None:
        passes &= standings.best[groups] >= config.min_score_chosen
    if config.max_length_ratio is not None:
        one, other = columns.lengths[groups, chosen], columns.lengths[groups, rejected]
        passes &= np.maximum(one, other) <= config.max_length_ratio * np.minimum(one, other)
    if config.drop_same_words:
        left = np.flatnonzero(passes)
        rows = (columns.rows(groups[left], place[left]) for place in (chosen, rejected))
        passes[left] = ~same_words(columns, *rows)
    if config.max_similarity is not None:
        left = np.flatnonzero(passes)
        rows = (columns.rows(groups[left], place[left]) for place in (chosen, rejected))
        passes[left] = similarities(columns, *rows) <= config.max_similarity
    return passes


# ---------------------------------------------------------------------------------------------- every case
def _search(
    columns: Columns, scores: Floats, standings: Standings, groups: Indices, config: PairingConfig, yardstick: Yardstick
) -> tuple[tuple[Indices, Indices, Indices], np.ndarray]:
    """The comparisons of the groups, as (group, chosen, rejected), and a reason a group, "" where it has one."""
    block = rules.Block(scores[groups], standings.choosable[groups], standings.chosen[groups], columns.priority(groups))
    left = rules.allowed(block, config)
    reasons = np.where(left.any(axis=(1, 2)), "", "threshold").astype("U16")
    codes = text_codes(columns, groups)
    for name, leaves in filters(columns, scores, codes, groups, config, yardstick):
        before, left = left, leaves(left)
        reasons[before.any(axis=(1, 2)) & ~left.any(axis=(1, 2))] = name
    group, chosen, rejected = left.nonzero()
    order = rules.ordered(block, (group, chosen, rejected), config)
    group, chosen, rejected = group[order], chosen[order], rejected[order]
    once = _once(codes, group, chosen, rejected)
    group, chosen, rejected = group[once], chosen[once], rejected[once]
    if config.max_similarity is None:
        taken = _turns(group) < config.pairs_per_prompt
    else:
        taken = _unlike(columns, groups, group, chosen, rejected, config)
        reasons[np.setdiff1d(group, group[taken])] = "near_identical"
    return (groups[group[taken]], chosen[taken], rejected[taken]), reasons


def _once(codes: Indices, group: Indices, chosen: Indices, rejected: Indices) -> Indices:
    """The first comparison of any two texts: none is repeated by a text that was sampled twice, or contradicted by
    one that was scored twice."""
    one, other = codes[group, chosen], codes[group, rejected]
    base = codes.max(initial=0) + 1
    texts = (group * base + np.minimum(one, other)) * base + np.maximum(one, other)
    return np.sort(np.unique(texts, return_index=True)[1])


def _turns(group: Indices) -> Indices:
    """0, 1, 2, … within each run of equal numbers."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    turns: Indices = np.arange(len(group)) - np.repeat(starts, np.diff(starts, append=len(group)))
    return turns


def _unlike(
    columns: Columns, groups: Indices, group: Indices, chosen: Indices, rejected: Indices, config: PairingConfig
) -> Bools:
    """The first ``pairs_per_prompt`` comparisons of each group that are not too similar, none measured in vain."""
    assert config.max_similarity is not None
    taken, waiting = np.zeros(len(group), bool), np.arange(len(group))
    missing = np.full(len(groups), config.pairs_per_prompt)
    while len(waiting):
        now = _turns(group[waiting]) < missing[group[waiting]]
        looked = waiting[now]
        left, right = (columns.rows(groups[group[looked]], place[looked]) for place in (chosen, rejected))
        found = looked[similarities(columns, left, right) <= config.max_similarity]
        taken[found] = True
        missing -= np.bincount(group[found], minlength=len(groups))
        waiting = waiting[~now]
        waiting = waiting[missing[group[waiting]] > 0]
    return taken
