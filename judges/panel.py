"""Several judges as one: scores on one scale, vetoes, axes, length. Pure functions over judgments that exist.

A candidate's way to its score:

1. Each member's raw score becomes a z-score by the member's frozen scale (``normalise = "none"``: stays as it is).
2. A member with weight w > 0 counts as it is, with w < 0 turned round, with w = 0 not at all. Members of an axis make
   the axis, axes the score: Σ w·z / Σ |w| over those that spoke (``weighted_sum``); or the lowest (``minimum``); or
   the weighted mean minus λ times the weighted variance of an axis's members, axes then being averaged
   (``mean_minus_variance``, the uncertainty-weighted objective of 2310.02743).
3. What length explains is taken off, then the length penalty.
4. A candidate vetoed by any member gets ``calibration.last`` instead, whatever the others say, even where they abstain.
   It is finite and below every score that is not vetoed, in every group and round, because scores far below the
   calibration set's are squeezed, in order, to end above it.

An abstention never becomes a score. ``abstained`` in a candidate's votes names the reason:

required_member   a member that is required abstained
not_calibrated    a member that is required, or the panel itself, has no scale: it scored nothing on the calibration set
all_members       no member with a weight gave a score
disagreement      the z-scores of an axis's members differ by more than ``largest_disagreement``
not_finite        the numbers are beyond float64
"""

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from judges.normalisation import Calibration, LengthLine, Scale, finite
from pipeline import config as knobs
from pipeline.errors import JudgeError
from pipeline.protocols import Judge
from pipeline.types import Group, Judgment

Scores = Mapping[str, float | None]
"""One candidate's, by member."""


class PanelJudge:
    """Asks all members, at the same time, and combines what they say.

    The first groups a member scores are the calibration set unless ``calibration`` is given. Flows that judge in shards
    should keep the members' judgments and use :func:`calibrate` and :func:`combine`, which need no judge and give the
    same in whatever order shards come.
    """

    def __init__(
        self, config: knobs.PanelJudge, name: str, members: Mapping[str, Judge], calibration: Calibration | None = None
    ) -> None:
        self.name = name
        self.members = members
        self.calibration = calibration
        self._config = config
        self._calibrating = threading.Lock()

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        """Raises JudgeError where a member cannot work at all."""
        with ThreadPoolExecutor(len(self.members)) as pool:
            asked = {
                name: pool.submit(copy_context().run, member.judge, groups) for name, member in self.members.items()
            }
        judgments = {name: future.result() for name, future in asked.items()}
        with self._calibrating:
            calibration = self.calibration or calibrate(self._config, judgments, groups)
            if calibration.total is not None:
                self.calibration = calibration
        return combine(self._config, self.name, judgments, groups, calibration)

    def close(self) -> None:
        for member in self.members.values():
            member.close()


def calibrate(
    config: knobs.PanelJudge, members: Mapping[str, Sequence[Judgment]], groups: Sequence[Group]
) -> Calibration:
    """The scales, and the line of score on words, that ``groups`` and what the members said of them give.

    Args:
        members: by name as in the config, a judgment a group in the groups' order.
    """
    raw = _raw(config, members, groups)
    names = config.members if config.normalise == "zscore" else ()
    fitted = {name: Scale.fit([score for each in raw if (score := each[name]) is not None]) for name in names}
    scales = {name: scale for name, scale in fitted.items() if scale is not None}
    opinions = [_opinion(config, each, scales) for each in raw]
    words = [len(candidate.text.split()) for group in groups for candidate in group.candidates]
    scored = [(count, each.score) for count, each in zip(words, opinions, strict=True) if each.score is not None]
    line = LengthLine.fit(*zip(*scored, strict=True)) if config.length_regression and scored else None
    total = Scale.fit([score - _length(config, count, line) for count, score in scored])
    return Calibration(scales, line, total)


def combine(
    config: knobs.PanelJudge,
    name: str,
    members: Mapping[str, Sequence[Judgment]],
    groups: Sequence[Group],
    calibration: Calibration,
) -> list[Judgment]:
    """The panel's judgments. Votes hold, a candidate: raw scores, z-scores, axes, words, what was taken off for length,
    who vetoed, whose scale is constant, and why there is no score."""
    raw = iter(_raw(config, members, groups))
    judgments = []
    for group in groups:
        judged = [
            _candidate(config, next(raw), len(candidate.text.split()), calibration) for candidate in group.candidates
        ]
        judgments.append(
            Judgment(group.prompt.id, name, tuple(score for score, _ in judged), tuple(vote for _, vote in judged))
        )
    return judgments


@dataclass(frozen=True, slots=True)
class _Opinion:
    """What the members make of one candidate, length and vetoes aside."""

    z: Scores
    axes: Scores
    score: float | None
    abstained: str | None
    """The reason where there is no score."""


def _candidate(
    config: knobs.PanelJudge, raw: Scores, words: int, calibration: Calibration
) -> tuple[float | None, dict[str, Any]]:
    opinion = _opinion(config, raw, calibration.scales)
    vetoes = [
        name
        for name, member in config.members.items()
        if member.veto_below is not None and (score := raw[name]) is not None and score < member.veto_below
    ]
    off = _length(config, words, calibration.line)
    constant = [name for name, scale in calibration.scales.items() if scale.constant]
    vote = {
        "raw": dict(raw), "z": dict(opinion.z), "axes": dict(opinion.axes), "combined": opinion.score,
        "words": words, "off_for_length": off, "vetoed_by": vetoes, "constant": constant,
    }  # fmt: skip
    if calibration.total is None:
        return None, vote | {"abstained": opinion.abstained or "not_calibrated"}
    if vetoes:
        return calibration.last, vote
    if opinion.score is None:
        return None, vote | {"abstained": opinion.abstained}
    score = finite(opinion.score - off)
    return (None, vote | {"abstained": "not_finite"}) if score is None else (calibration.bounded(score), vote)


def _opinion(config: knobs.PanelJudge, raw: Scores, scales: Mapping[str, Scale]) -> _Opinion:
    z: dict[str, float | None] = {}
    for name in config.members:
        score, scale = raw[name], scales.get(name)
        if config.normalise == "none" or score is None:
            z[name] = score
        else:
            z[name] = None if scale is None else finite(scale.z(score))
    by_axis: dict[str, list[tuple[float, float]]] = {}
    for name, member in config.members.items():
        spoken = by_axis.setdefault(member.axis, [])
        value = z[name]
        if member.weight and value is not None:
            spoken.append((abs(member.weight), value if member.weight > 0 else -value))
    axes = {axis: _axis(config, spoken) for axis, spoken in by_axis.items()}
    reason = _reason(config, raw, z, by_axis)
    score = None if reason else _total(config, axes)
    if score is None or not math.isfinite(score):
        return _Opinion(z, axes, None, reason or ("all_members" if score is None else "not_finite"))
    return _Opinion(z, axes, score, None)


def _reason(
    config: knobs.PanelJudge, raw: Scores, z: Scores, by_axis: Mapping[str, Sequence[tuple[float, float]]]
) -> str | None:
    silent = [name for name, member in config.members.items() if member.required and z[name] is None]
    if silent:
        return "required_member" if any(raw[name] is None for name in silent) else "not_calibrated"
    limit = config.largest_disagreement
    if limit is not None and any(_variance(spoken, weighted=False) > limit * limit for spoken in by_axis.values()):
        return "disagreement"
    return None


def _axis(config: knobs.PanelJudge, spoken: Sequence[tuple[float, float]]) -> float | None:
    """What an axis's members, (weight, z-score) each and already turned, say together; None where none spoke."""
    if not spoken:
        return None
    if config.combine == "minimum":
        return min(z for _, z in spoken)
    mean = _mean(spoken)
    if config.combine == "weighted_sum":
        return mean
    return mean - config.variance_weight * _variance(spoken, weighted=True)


def _total(config: knobs.PanelJudge, axes: Scores) -> float | None:
    weights = {axis: config.axes.get(axis, 1.0) for axis in axes}
    spoken = [
        (abs(weight), value if weight > 0 else -value)
        for axis, weight in weights.items()
        if weight and (value := axes[axis]) is not None
    ]
    if not spoken:
        return None
    return min(value for _, value in spoken) if config.combine == "minimum" else _mean(spoken)


def _mean(spoken: Sequence[tuple[float, float]]) -> float:
    return sum(weight * z for weight, z in spoken) / sum(weight for weight, _ in spoken)


def _variance(spoken: Sequence[tuple[float, float]], weighted: bool) -> float:
    """Of the population; 0 of one or none."""
    if len(spoken) < 2:
        return 0.0
    each = spoken if weighted else [(1.0, z) for _, z in spoken]
    mean = _mean(each)
    return _mean([(weight, (z - mean) * (z - mean)) for weight, z in each])


def _length(config: knobs.PanelJudge, words: int, line: LengthLine | None) -> float:
    """What is taken off a score for its text's length."""
    explained = 0.0 if line is None else line.share(words)
    return explained + config.length_penalty * words / 100


def _raw(config: knobs.PanelJudge, members: Mapping[str, Sequence[Judgment]], groups: Sequence[Group]) -> list[Scores]:
    """A candidate each, in order. Raises JudgeError where the judgments are not those of the members and groups."""
    if members.keys() != config.members.keys():
        raise JudgeError(f"panel: judgments of {sorted(members)} were given; allowed: {sorted(config.members)}")
    shape = [(group.prompt.id, len(group.candidates)) for group in groups]
    for name, judgments in members.items():
        if [(judgment.prompt_id, len(judgment.scores)) for judgment in judgments] != shape:
            raise JudgeError(f"panel: member {name!r} did not judge these {len(groups)} groups and their candidates")
    return [
        {name: finite(judgments[row].scores[place]) for name, judgments in members.items()}
        for row, group in enumerate(groups)
        for place in range(len(group.candidates))
    ]
