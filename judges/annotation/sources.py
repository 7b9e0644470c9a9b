"""Where tasks come from: the groups of a round, or a file of preferences."""

import random
from collections.abc import Iterable, Mapping, Sequence

from judges.annotation.tasks import Outcome, Task, compare, conversation_of
from judges.labels.reading import Label, LabelledPair
from pipeline.types import Group, Judgment

OUTCOME_OF: Mapping[Label, Outcome] = {"a": "first", "b": "second", "tie": "tie"}


def tasks_from_groups(
    groups: Sequence[Group], per_group: int = 1, seed: int = 0, judgments: Sequence[Judgment] | None = None
) -> list[Task]:
    """At most ``per_group`` comparisons a group, none of equal texts, none twice.

    With ``judgments`` of the same groups, the best against the worst comes first, where scores tell them apart; all
    others are drawn, each by a seed of its own prompt, so one group more changes no other's.
    """
    scores = {judgment.prompt_id: judgment.scores for judgment in judgments or ()}
    return [task for group in groups for task in _tasks_of(group, per_group, seed, scores.get(group.prompt.id))]


def tasks_from_pairs(pairs: Iterable[LabelledPair], known: bool = False) -> list[Task]:
    """A task a pair of different texts, none twice. ``known``: calibration items, of the pairs that have a label."""
    made = [
        compare(pair.messages or pair.prompt, pair.a, pair.b, OUTCOME_OF[pair.label] if known and pair.label else None)
        for pair in pairs
        if pair.a != pair.b and (pair.label or not known)
    ]
    return list({task.id: task for task in made}.values())


def _tasks_of(group: Group, count: int, seed: int, scores: Sequence[float | None] | None) -> list[Task]:
    texts = list(dict.fromkeys(candidate.text for candidate in group.candidates))
    pairs = [(one, other) for i, one in enumerate(texts) for other in texts[i + 1 :]]
    random.Random(f"{seed} {group.prompt.id}").shuffle(pairs)
    chosen = [*_best_and_worst(group, scores or ()), *pairs]
    made = [compare(conversation_of(group.prompt), *pair, prompt_id=group.prompt.id) for pair in chosen]
    return list({task.id: task for task in made}.values())[:count]


def _best_and_worst(group: Group, scores: Sequence[float | None]) -> list[tuple[str, str]]:
    """One pair, or none where the scores name no best or their texts are the same."""
    scored = [(score, c.text) for score, c in zip(scores, group.candidates, strict=False) if score is not None]
    if not scored:
        return []
    best, worst = max(scored, key=lambda each: each[0]), min(scored, key=lambda each: each[0])
    return [(best[1], worst[1])] if best[0] > worst[0] and best[1] != worst[1] else []
