import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from judges import make_judge
from judges.health.check import check, drawn, groups, verdicts
from judges.health.figures import Seen, measure, unmet
from judges.labels.reading import Label, LabelledPair, read_labels
from pipeline.config import HealthConfig, JudgeConfig
from pipeline.config.health import HEALTH_METRICS
from pipeline.types import Group, Judgment

Scores = tuple[float | None, ...]


class Scorer:
    """A judge of two texts; remembers the groups it was given."""

    name = "scorer"

    def __init__(self, score: Callable[[Sequence[str]], Scores]) -> None:
        self._score = score
        self.asked: list[Group] = []

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        assert len(groups) <= 256
        self.asked += groups
        return [Judgment(g.prompt.id, self.name, self._score([c.text for c in g.candidates])) for g in groups]


def each(score: Callable[[str], float | None]) -> Scorer:
    return Scorer(lambda texts: tuple(score(text) for text in texts))


def pair(a: str, b: str, label: Label | None, name: str = "1", **others: object) -> LabelledPair:
    return LabelledPair(name, "q", a, b, label, **others)  # type: ignore[arg-type]


def numbered(count: int, label: Label = "a") -> list[LabelledPair]:
    return [pair(f"good {i}", f"bad answer {i}", label, str(i)) for i in range(count)]


LONGER = each(lambda text: float(len(text)))
GOOD = each(lambda text: float("good" in text))
FIRST = Scorer(lambda texts: (1.0, 0.0))
SILENT = Scorer(lambda texts: (None, 1.0))


def test_scores_become_verdicts_and_a_small_difference_a_tie() -> None:
    pairs = [pair("11", "1", "a", "1"), pair("1", "111", "b", "2"), pair("12", "13", "tie", "3")]
    assert [seen.verdict for seen in verdicts(LONGER, pairs)] == ["a", "b", "tie"]
    assert [seen.verdict for seen in verdicts(LONGER, pairs, tie_margin=1.0)] == ["tie", "b", "tie"]
    assert [seen.margin for seen in verdicts(LONGER, pairs)] == [1.0, 2.0, 0.0]


def test_a_perfect_judge_agrees_with_people_and_with_itself() -> None:
    health = check(GOOD, [*numbered(20), *(pair(p.b, p.a, "b", f"b{p.id}") for p in numbered(20))])
    assert (health.agreement.value, health.kappa.value, health.kappa.low) == (1.0, 1.0, 1.0)
    assert (health.swap_consistency.value, health.tie_rate.value, health.abstention_rate.value) == (1.0, 0.0, 0.0)
    assert health.length_bias.value == 0.0


def test_who_always_prefers_the_first_place_is_never_consistent_and_no_better_than_chance() -> None:
    pairs = [pair(f"x{i}", f"y{i}", "a" if i % 2 else "b", str(i)) for i in range(40)]
    health = check(FIRST, pairs)
    assert health.swap_consistency.value == 0.0
    assert health.agreement.value == 0.5
    assert health.kappa.value == 0.0


def test_both_orders_are_asked_with_ids_of_their_own_in_calls_of_at_most_256() -> None:
    judge = each(lambda text: 0.0)
    verdicts(judge, numbered(300))
    assert len(judge.asked) == len({group.prompt.id for group in judge.asked}) == 600
    straight, swapped = judge.asked[0], judge.asked[300]
    assert [c.text for c in straight.candidates] == [c.text for c in reversed(swapped.candidates)]
    assert [c.index for c in swapped.candidates] == [0, 1]
    assert judge.asked[:300] == groups(numbered(300))


class BothOrders:
    """Votes as ``judges.pairwise`` writes them; a contradiction is a tie."""

    name = "pairwise"

    def __init__(self, chances: Sequence[tuple[float | None, float | None]], first: int = 0) -> None:
        self.chances, self.first, self.calls = chances, first, 0

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        self.calls += len(groups)
        return [self._judgment(g, *chances) for g, chances in zip(groups, self.chances, strict=False)]

    def _judgment(self, group: Group, straight: float | None, swapped: float | None) -> Judgment:
        vote = {"first": self.first, "second": 1 - self.first, "straight": straight, "swapped": swapped}
        if straight is None or swapped is None:
            return Judgment(group.prompt.id, self.name, (None, None), ({**vote, "abstained": "timeout"},))
        score = (straight + swapped) / 2 - 0.5
        return Judgment(group.prompt.id, self.name, (score, -score) if self.first == 0 else (-score, score), (vote,))


@pytest.mark.parametrize("first", [0, 1])
def test_a_judge_that_asks_in_both_orders_is_not_asked_again_and_its_votes_tell(first: int) -> None:
    judge = BothOrders([(1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.5, 1.0), (None, 1.0)], first)
    seen = verdicts(judge, numbered(5))
    assert judge.calls == 5
    straight: list[tuple[Label | None, Label | None]]
    straight = [("a", "a"), ("a", "b"), ("b", "b"), ("tie", "a"), (None, "a")]
    turned: dict[Label | None, Label | None] = {"a": "b", "b": "a", "tie": "tie", None: None}
    expected = straight if first == 0 else [(turned[one], turned[other]) for one, other in straight]
    assert [each.orders for each in seen] == expected
    assert [each.verdict for each in seen[1:2]] == ["tie"]
    assert measure("j", seen).swap_consistency.value == 0.5
    assert measure("j", seen).abstentions == {"timeout": 1}


def test_abstentions_are_named_and_count_in_no_other_figure() -> None:
    half = Scorer(lambda texts: (1.0, 0.0) if texts[0].endswith(("0", "2", "4", "6", "8")) else (None, 0.0))
    health = check(half, numbered(10))
    assert health.abstention_rate.value == 0.5
    assert health.abstentions == {"no reason given": 5}
    assert health.agreement.value == 1.0
    assert health.agreement.items == 5


def test_a_judge_that_never_speaks_has_no_figures_and_meets_no_condition() -> None:
    health = check(SILENT, numbered(10))
    assert health.figures["abstention_rate"] == 1.0
    assert {name for name, value in health.figures.items() if value is not None} == {"abstention_rate"}
    assert unmet(health.figures, ["kappa_low >= -1", "length_bias <= 1"]) == [
        "kappa_low >= -1 does not hold (not known)", "length_bias <= 1 does not hold (not known)"
    ]  # fmt: skip


def test_on_pairs_that_people_decided_a_tie_counts_half() -> None:
    pairs = [*numbered(4), pair("same", "diff", "tie", "t")]
    tied = measure("j", verdicts(each(lambda text: 0.0), pairs))
    assert tied.agreement.value == 0.2
    assert tied.agreement_decided.value == 0.5
    assert tied.tie_rate.value == 1.0
    assert tied.people_tie_rate == 0.2


def test_length_bias_is_how_much_more_than_people_a_judge_likes_the_longer() -> None:
    pairs = [pair("long " * (i + 2), "short", "a" if i < 6 else "b", str(i)) for i in range(10)]
    longer = measure("j", verdicts(LONGER, pairs))
    assert longer.length_bias.value == pytest.approx(0.4)
    shorter = measure("j", verdicts(each(lambda text: -float(len(text))), pairs))
    assert shorter.length_bias.value == pytest.approx(-0.6)
    assert math.isnan(longer.length_correlation.value)  # it never varies: a is always the longer
    mixed = [pair(p.b, p.a, "tie", f"x{p.id}") for p in pairs]
    assert measure("j", verdicts(LONGER, [*pairs, *mixed])).length_correlation.value > 0.9


def test_agreement_by_margin_starts_with_the_widest_and_keeps_equal_margins_together() -> None:
    def seen(margin: float, right: bool) -> Seen:
        return Seen(pair("a", "b", "a"), "a" if right else "b", margin, (None, None))

    wide, narrow = [seen(float(m), True) for m in range(10, 20)], [seen(m / 10, m % 2 == 0) for m in range(10)]
    slices = measure("j", [*narrow, *wide]).by_margin
    assert [part.pairs for part in slices] == [5, 5, 5, 5]
    assert [part.agreement for part in slices[:2]] == [1.0, 1.0]
    assert slices[0].name == "15 to 19"
    constant = measure("j", [seen(1.0, True)] * 8).by_margin
    assert [(part.pairs, part.agreement) for part in constant] == [(8, 1.0)]


def test_agreement_by_category() -> None:
    pairs = [pair("good", "bad", "a", "1", category="chat"), pair("good", "bad", "b", "2", category="code"),
             pair("good", "bad", "a", "3", category="code"), pair("good", "bad", "a", "4")]  # fmt: skip
    found = measure("j", verdicts(GOOD, pairs)).by_category
    assert [(part.name, part.pairs, part.agreement) for part in found] == [("chat", 1, 1.0), ("code", 2, 0.5)]


def test_people_are_measured_against_each_other_too() -> None:
    agreed = pair("x", "y", "a", "1", annotators={"anna": "a", "ben": "a"})
    other = pair("x", "y", "b", "2", annotators={"anna": "b", "ben": "b"})
    assert measure("j", verdicts(GOOD, [agreed, other])).people_alpha == 1.0
    assert math.isnan(measure("j", verdicts(GOOD, numbered(3))).people_alpha)


def test_unlabelled_pairs_still_tell_ties_and_orders() -> None:
    health = measure("j", verdicts(FIRST, [pair("x", "y", None, str(i)) for i in range(4)]))
    assert health.figures["swap_consistency"] == 0.0
    assert health.figures["agreement"] is None


def test_without_labels_there_are_only_canaries() -> None:
    health = check(LONGER, [])
    assert {name for name, value in health.figures.items() if value is not None} == {"canaries"}
    assert health.canaries is not None
    assert "padding" in health.canaries.fallen
    assert check(LONGER, numbered(2), with_canaries=False).canaries is None


def test_figures_are_what_conditions_may_name_and_what_fails_is_said() -> None:
    health = check(GOOD, numbered(10))
    assert tuple(health.figures) == HEALTH_METRICS
    config = HealthConfig(labels="l.jsonl", require=("agreement >= 0.9", "abstention_rate <= 0.05", "canaries > 2"))
    assert unmet(health.figures, config.require) == ["canaries > 2 does not hold (1)"]


def test_json_holds_everything_and_no_nan() -> None:
    health = check(GOOD, numbered(3))
    document = json.loads(json.dumps(health.to_json(), allow_nan=False))
    assert document["figures"] == health.figures
    assert document["people_alpha"] is None
    assert document["agreement"]["items"] == 3
    assert document["canaries"]["fallen"] == {}


def test_a_limit_draws_from_the_whole_file_and_always_the_same() -> None:
    pairs = numbered(1000)
    few = drawn(pairs, 50)
    assert few == drawn(pairs, 50)
    assert few != drawn(pairs, 50, seed=1)
    assert [int(p.id) for p in few] == sorted(int(p.id) for p in few)
    assert len({int(p.id) // 250 for p in few}) == 4
    assert drawn(pairs, None) == drawn(pairs, 1000) == pairs


def test_progress_counts_every_question_once() -> None:
    told: list[tuple[int, int]] = []
    check(GOOD, numbered(300), progress=lambda done, total, note: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] == 600 + 64


RULES = TypeAdapter(JudgeConfig).validate_python(
    {"type": "rules", "rules": {"long": {"type": "length", "minimum": 30}}}
)


def test_a_judge_made_from_a_config_is_checked_on_pandalm(shared_data: Path) -> None:
    pairs = read_labels(shared_data / "preferences" / "pandalm_testset_v1.json").pairs
    health = check(make_judge(RULES, "long"), pairs)
    assert (health.pairs, health.agreement.items, health.swap_consistency.value) == (861, 861, 1.0)
    assert round(health.people_alpha, 3) == 0.861
    assert 0.0 < health.agreement.low < health.agreement.value < health.agreement.high < 0.5
    assert health.length_correlation.low > 0.0
