"""Whether a judge can be trusted: how it agrees with people, with itself, and with no trick.

    verdicts(judge, pairs)      what a judge says of each pair, in both orders
    check(judge, pairs)         that, the canaries, and the figures they give (:mod:`judges.health.figures`)

Any judge can be checked. A pair becomes a group of two candidates, and the verdict is read off their scores: a, b, or a
tie where they differ by no more than a margin. Where the judge abstained there is no verdict.
"""

from collections.abc import Sequence

from judges.health.canaries import canaries, canary_report
from judges.health.figures import Health, Orders, Seen, measure
from judges.labels.reading import MIRROR, Label, LabelledPair
from pipeline.protocols import Judge, Progress, silent
from pipeline.store import digest
from pipeline.types import Candidate, Group, Judgment, Prompt

SHARD = 256
"""Groups a call of the judge."""


def check(
    judge: Judge,
    pairs: Sequence[LabelledPair],
    *,
    tie_margin: float = 0.0,
    with_canaries: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> Health:
    """The health of ``judge`` on ``pairs``, which may be none: then only the canaries are known.

    Args:
        tie_margin: scores that differ by no more are a tie.

    Raises:
        JudgeError: the judge cannot work at all.
    """
    asked = canaries() if with_canaries else []
    total = 2 * len(pairs) + len(asked)
    seen = verdicts(judge, pairs, tie_margin, _part(progress, 0, total))
    judged = _judged(judge, [each.group for each in asked], _part(progress, 2 * len(pairs), total))
    return measure(judge.name, seen, canary_report(asked, judged) if asked else None, seed)


def verdicts(
    judge: Judge, pairs: Sequence[LabelledPair], tie_margin: float = 0.0, progress: Progress = silent
) -> list[Seen]:
    """What ``judge`` says of each pair in both orders.

    A judge that asks in both orders itself, and says so in its votes as ``judges.pairwise`` does, is not asked again.

    Raises:
        JudgeError: the judge cannot work at all.
    """
    total = 2 * len(pairs)
    judgments = _judged(judge, groups(pairs), _part(progress, 0, total))
    orders = dict(enumerate(map(_own_orders, judgments)))
    again = [index for index, own in orders.items() if own is None]
    turned = _judged(
        judge, groups([pairs[index] for index in again], swapped=True), _part(progress, total - len(again), total)
    )
    for index, judgment in zip(again, turned, strict=True):
        straight, swapped = _verdict(judgments[index], tie_margin), _verdict(judgment, tie_margin)
        orders[index] = straight, swapped and MIRROR[swapped]
    seen = []
    for index, (pair, judgment) in enumerate(zip(pairs, judgments, strict=True)):
        (a, b), verdict = judgment.scores, _verdict(judgment, tie_margin)
        margin = None if a is None or b is None else abs(a - b)
        seen.append(Seen(pair, verdict, margin, orders[index] or (None, None), "" if verdict else _reason(judgment)))
    return seen


def groups(pairs: Sequence[LabelledPair], swapped: bool = False) -> list[Group]:
    """What a judge is given: a group of a and b for each pair, or of b and a."""
    return [_group(pair, swapped) for pair in pairs]


def drawn(pairs: Sequence[LabelledPair], limit: int | None, seed: int = 0) -> list[LabelledPair]:
    """``limit`` of the pairs in their own order: files are often sorted, so the first would be of one kind."""
    if limit is None or limit >= len(pairs):
        return list(pairs)
    ranked = sorted(range(len(pairs)), key=lambda index: digest([seed, pairs[index].id]))
    return [pairs[index] for index in sorted(ranked[:limit])]


def _group(pair: LabelledPair, swapped: bool) -> Group:
    """Both orders have an id of their own: a judge may remember what it said of a prompt."""
    texts = (pair.b, pair.a) if swapped else (pair.a, pair.b)
    prompt = Prompt(f"{pair.id}{'-swapped' if swapped else ''}", pair.prompt, (), pair.messages)
    return Group(prompt, tuple(Candidate(index, (), text, "stop", seed=index) for index, text in enumerate(texts)))


def _judged(judge: Judge, groups: Sequence[Group], progress: Progress) -> list[Judgment]:
    judgments: list[Judgment] = []
    for start in range(0, len(groups), SHARD):
        judgments += judge.judge(groups[start : start + SHARD])
        progress(len(judgments), len(groups), "")
    assert [len(each.scores) for each in judgments] == [2] * len(groups), "a score a candidate of every group"
    return judgments


def _part(progress: Progress, before: int, whole: int) -> Progress:
    return lambda done, total, note: progress(before + done, whole, note)


def _verdict(judgment: Judgment, tie_margin: float) -> Label | None:
    a, b = judgment.scores
    if a is None or b is None:
        return None
    return "tie" if abs(a - b) <= tie_margin else "a" if a > b else "b"


def _own_orders(judgment: Judgment) -> Orders | None:
    """The verdicts of both orders on record, told of the same a and b; None where there is no such record."""
    for vote in judgment.votes:
        if "straight" in vote and "swapped" in vote:
            chances = [vote["straight"], vote["swapped"]]  # that candidate number ``first`` is the better
            verdicts: list[Label | None] = [
                None if chance is None else "tie" if chance == 0.5 else "a" if chance > 0.5 else "b"
                for chance in chances
            ]
            straight, swapped = verdicts if vote["first"] == 0 else [each and MIRROR[each] for each in verdicts]
            return straight, swapped
    return None


def _reason(judgment: Judgment) -> str:
    """The first that the votes name: of a comparison before that of its candidates, which it explains."""
    return next((str(vote["abstained"]) for vote in judgment.votes if vote.get("abstained")), "no reason given")
