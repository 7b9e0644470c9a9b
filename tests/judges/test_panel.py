"""The panel's claims, most of them as properties over any scores, abstentions, lengths and ways to combine."""

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from judges import make_judge
from judges.normalisation import Calibration
from judges.panel import PanelJudge, calibrate, combine
from pipeline import config as knobs
from pipeline.errors import JudgeError
from pipeline.types import Candidate, Group, Judgment, Prompt

ASKED = {"type": "rules", "rules": {"any": {"type": "length"}}}  # whoever a member is, its judgments are given here
WAYS = ("weighted_sum", "minimum", "mean_minus_variance")


def panel(members: Mapping[str, Mapping[str, Any]], **settings: Any) -> knobs.PanelJudge:
    document = {name: {"judge": ASKED, **member} for name, member in members.items()}
    return knobs.PanelJudge.model_validate({"type": "panel", "members": document, **settings})


def groups_of(*words: Sequence[int]) -> list[Group]:
    """A group each, with candidates of so many words."""
    return [
        Group(
            Prompt(f"p{row}", "a prompt", (1,)),
            tuple(Candidate(i, (5,), "word " * n, "stop", seed=i) for i, n in enumerate(group)),
        )
        for row, group in enumerate(words)
    ]


def said(name: str, groups: Sequence[Group], scores: Sequence[float | None]) -> list[Judgment]:
    left = iter(scores)
    return [Judgment(group.prompt.id, name, tuple(next(left) for _ in group.candidates)) for group in groups]


def everything(config: knobs.PanelJudge, groups: Sequence[Group], **scores: Sequence[float | None]) -> list[Judgment]:
    members = {name: said(name, groups, each) for name, each in scores.items()}
    return combine(config, "panel", members, groups, calibrate(config, members, groups))


def scores_of(judgments: Sequence[Judgment]) -> list[float | None]:
    return [score for judgment in judgments for score in judgment.scores]


def votes_of(judgments: Sequence[Judgment]) -> list[Mapping[str, Any]]:
    return [vote for judgment in judgments for vote in judgment.votes]


def near(scores: Sequence[float | None], tolerance: float = 1e-6) -> list[Any]:
    return [None if score is None else pytest.approx(score, abs=tolerance) for score in scores]


SCORE = st.integers(-1000, 1000).map(lambda n: n / 8)


@st.composite
def cases(draw: st.DrawFn) -> tuple[knobs.PanelJudge, list[Group], dict[str, list[float | None]]]:
    """A panel of two to four members on one or two axes, and what they said of a few groups."""
    names = ["a", "b", "c", "d"][: draw(st.integers(2, 4))]
    sizes = draw(st.lists(st.lists(st.integers(0, 300), min_size=2, max_size=4), min_size=1, max_size=3))
    total = sum(map(len, sizes))
    member = st.fixed_dictionaries(
        {
            "weight": st.sampled_from([1.0, 0.5, 2.0, -1.0]),
            "axis": st.sampled_from(["helpful", "harmless"]),
            "required": st.booleans(),
        },
        optional={"veto_below": SCORE},
    )
    config = panel(
        {name: draw(member) for name in names},
        combine=draw(st.sampled_from(WAYS)),
        length_penalty=draw(st.sampled_from([0.0, 1.0, 50.0])),
        length_regression=draw(st.booleans()),
        largest_disagreement=draw(st.none() | st.just(1.2345)),
    )
    column = st.lists(st.none() | SCORE, min_size=total, max_size=total)
    return config, groups_of(*sizes), {name: draw(column) for name in names}


# ---------------------------------------------------------------------------------------------- properties
@given(cases(), st.sampled_from([0.125, 3.0, 1000.0]), st.integers(-1000, 1000))
def test_the_unit_and_the_zero_of_a_members_scores_change_nothing(case: Any, unit: float, zero: int) -> None:
    config, groups, scores = case
    members = {
        name: member
        if name != "a" or member.veto_below is None
        else member.model_copy(update={"veto_below": member.veto_below * unit + zero})
        for name, member in config.members.items()
    }
    moved = {**scores, "a": [None if score is None else score * unit + zero for score in scores["a"]]}
    after = everything(config.model_copy(update={"members": members}), groups, **moved)
    before = everything(config, groups, **scores)
    assert scores_of(after) == near(scores_of(before))


@given(cases())
def test_only_abstentions_that_are_required_or_of_all_abstain_and_each_has_a_named_reason(case: Any) -> None:
    config, groups, scores = case
    members = {name: said(name, groups, each) for name, each in scores.items()}
    calibration = calibrate(config, members, groups)
    judgments = combine(config, "panel", members, groups, calibration)
    for place, (score, vote) in enumerate(zip(scores_of(judgments), votes_of(judgments), strict=True)):
        raw = {name: scores[name][place] for name in scores}
        assert vote["raw"] == raw
        assert ("abstained" in vote) == (score is None)
        silent = any(config.members[name].required and raw[name] is None for name in raw)
        if (silent or all(each is None for each in raw.values())) and not vote["vetoed_by"]:
            assert score is None
            assert vote["abstained"] == ("required_member" if silent else "all_members")
        elif score is None:
            assert vote["abstained"] == "disagreement" or calibration.total is None
        else:
            assert math.isfinite(score)
    assert json.loads(json.dumps(votes_of(judgments))) == votes_of(judgments)


@given(cases(), st.randoms(use_true_random=False))
def test_candidates_in_another_order_get_the_same_scores_in_that_order(case: Any, shuffle: random.Random) -> None:
    config, groups, scores = case
    members = {name: said(name, groups, each) for name, each in scores.items()}
    calibration = calibrate(config, members, groups)
    orders = [shuffle.sample(range(n), n) for n in (len(group.candidates) for group in groups)]
    turned = [
        replace(group, candidates=tuple(group.candidates[i] for i in order))
        for group, order in zip(groups, orders, strict=True)
    ]
    turned_members = {
        name: [
            replace(judgment, scores=tuple(judgment.scores[i] for i in order))
            for judgment, order in zip(judgments, orders, strict=True)
        ]
        for name, judgments in members.items()
    }
    straight = combine(config, "panel", members, groups, calibration)
    for judgment, other, order in zip(
        straight, combine(config, "panel", turned_members, turned, calibration), orders, strict=True
    ):
        assert other.scores == tuple(judgment.scores[i] for i in order)


@given(cases(), cases())
def test_a_vetoed_candidate_never_beats_one_that_is_not_in_any_group_or_round_whatever_its_length(
    case: Any, later: Any
) -> None:
    config, groups, scores = case
    members = {name: said(name, groups, each) for name, each in scores.items()}
    calibration = calibrate(config, members, groups)
    assume(calibration.total is not None)
    _, more, theirs = later
    total = sum(len(group.candidates) for group in more)
    columns = {name: [None if s is None else 1e6 * s for s in theirs.get(name, [0.0] * total)] for name in scores}
    members_later = {name: said(name, more, column) for name, column in columns.items()}
    judgments = [
        *combine(config, "panel", members, groups, calibration),
        *combine(config, "panel", members_later, more, calibration),
    ]
    each = list(zip(scores_of(judgments), votes_of(judgments), strict=True))
    vetoed = [score for score, vote in each if vote["vetoed_by"]]
    others = [score for score, vote in each if not vote["vetoed_by"] and score is not None]
    assert None not in vetoed
    assert all(math.isfinite(score) and score < other for score in vetoed for other in others)


@given(
    st.lists(st.integers(0, 400), min_size=4, max_size=12),
    st.lists(SCORE, min_size=24, max_size=24),
    st.sampled_from(WAYS),
)
def test_length_regression_leaves_no_correlation_with_length_on_the_calibration_set(
    words: list[int], drawn: list[float], way: str
) -> None:
    groups = groups_of(words)
    config = panel({"a": {}, "b": {"weight": 3.0}}, length_regression=True, combine=way)
    noise = {"a": drawn[: len(words)], "b": drawn[12 : 12 + len(words)]}
    leaning = {name: [0.5 * n + each for n, each in zip(words, column, strict=True)] for name, column in noise.items()}
    judgments = everything(config, groups, **leaning)
    final = [vote["combined"] - vote["off_for_length"] for vote in votes_of(judgments)]
    assume(statistics.pstdev(words) > 0 and statistics.pstdev(final) > 1e-6)
    assert statistics.correlation(words, final) == pytest.approx(0, abs=1e-4)


@given(cases())
def test_judgments_depend_on_the_calibration_and_not_on_which_groups_come_together(case: Any) -> None:
    config, groups, scores = case
    members = {name: said(name, groups, each) for name, each in scores.items()}
    calibration = Calibration.from_json(json.loads(json.dumps(calibrate(config, members, groups).to_json())))
    together = combine(config, "panel", members, groups, calibration)
    alone = [
        combine(config, "panel", {name: [each[row]] for name, each in members.items()}, [group], calibration)[0]
        for row, group in enumerate(groups)
    ]
    assert alone == together


# ---------------------------------------------------------------------------------------------- by hand
FOUR = groups_of([10, 20], [30, 40])
UP, DOWN = [1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]
Z = [(n - 2.5) / math.sqrt(1.25) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(3 * z - z) / 4 for z in Z]),
        ({"combine": "minimum"}, [-abs(z) for z in Z]),
        # mean (3z − z)/4 = z/2; variance 3/4·(z/2)² + 1/4·(3z/2)² = 3z²/4
        ({"combine": "mean_minus_variance", "variance_weight": 2.0}, [z / 2 - 2 * 0.75 * z * z for z in Z]),
        ({"normalise": "none"}, [(3 * u + d) / 4 for u, d in zip(UP, DOWN, strict=True)]),
        ({"length_penalty": 0.5}, [z / 2 - 0.005 * n for z, n in zip(Z, (10, 20, 30, 40), strict=True)]),
        ({"length_regression": True}, [0.0] * 4),
        ({"largest_disagreement": 1.0}, [None, Z[1] / 2, Z[2] / 2, None]),
    ],
)
def test_each_way_to_combine_two_members_of_weights_3_and_1(
    settings: dict[str, Any], expected: list[float | None]
) -> None:
    config = panel({"up": {"weight": 3.0}, "down": {}}, **settings)
    judgments = everything(config, FOUR, up=UP, down=DOWN)
    assert scores_of(judgments) == near(expected)
    assert [judgment.prompt_id for judgment in judgments] == ["p0", "p1"]


def test_axes_are_made_of_their_members_and_then_weighed() -> None:
    members = {"up": {"axis": "helpful"}, "again": {"axis": "helpful"}, "down": {"axis": "harmless"}}
    config = panel(members, axes={"harmless": 3.0})
    judgments = everything(config, FOUR, up=UP, again=UP, down=DOWN)
    assert scores_of(judgments) == near([(z - 3 * z) / 4 for z in Z])
    assert votes_of(judgments)[0]["axes"] == {"helpful": pytest.approx(Z[0]), "harmless": pytest.approx(-Z[0])}


def test_axes_may_differ_without_disagreeing_and_their_difference_is_no_uncertainty() -> None:
    members = {"up": {"axis": "helpful"}, "down": {"axis": "harmless"}}
    config = panel(members, combine="mean_minus_variance", largest_disagreement=0.1)
    assert scores_of(everything(config, FOUR, up=UP, down=DOWN)) == near([0.0] * 4)


def test_a_negative_weight_turns_a_member_round_and_weight_0_only_watches() -> None:
    turned = everything(panel({"up": {}, "down": {"weight": -1.0}}, combine="minimum"), FOUR, up=UP, down=DOWN)
    assert scores_of(turned) == near(Z)
    watched = everything(panel({"up": {}, "down": {"weight": 0.0}}, combine="minimum"), FOUR, up=UP, down=DOWN)
    assert scores_of(watched) == near(Z)
    assert [vote["raw"]["down"] for vote in votes_of(watched)] == DOWN


def test_a_constant_member_counts_0_and_the_votes_say_so() -> None:
    judgments = everything(panel({"up": {}, "same": {}}), FOUR, up=UP, same=[0.1] * 4)
    assert scores_of(judgments) == near([z / 2 for z in Z])
    assert [vote["constant"] for vote in votes_of(judgments)] == [["same"]] * 4


def test_an_optional_member_that_abstains_leaves_the_score_to_the_others() -> None:
    config = panel({"up": {}, "other": {"required": False, "weight": 5.0}})
    judgments = everything(config, FOUR, up=UP, other=[None] * 4)
    assert scores_of(judgments) == near(Z)


def test_a_veto_holds_where_another_required_member_abstains_and_nan_is_an_abstention() -> None:
    config = panel({"safe": {"veto_below": 2.0, "weight": 0.0}, "good": {}})
    judgments = everything(config, FOUR, safe=[1.0, 1.0, 2.0, math.nan], good=[None, 9.0, 5.0, 6.0])
    first, second, third, fourth = scores_of(judgments)
    assert first is not None
    assert first == second
    assert third is not None
    assert first < third
    assert fourth is None
    assert [vote["vetoed_by"] for vote in votes_of(judgments)] == [["safe"], ["safe"], [], []]


def test_a_member_that_scored_nothing_on_the_calibration_set_has_no_scale_so_its_scores_are_no_opinion() -> None:
    config = panel({"up": {}, "late": {}})
    calibration = calibrate(panel({"up": {}}), {"up": said("up", FOUR, UP)}, FOUR)
    members = {"up": said("up", FOUR, UP), "late": said("late", FOUR, DOWN)}
    judgments = combine(config, "panel", members, FOUR, calibration)
    assert scores_of(judgments) == [None] * 4
    assert {vote["abstained"] for vote in votes_of(judgments)} == {"not_calibrated"}


# ---------------------------------------------------------------------------------------------- the judge
REAL = {
    "type": "panel",
    "members": {
        "brief": {"judge": {"type": "rules", "rules": {"short": {"type": "length", "maximum": 25}}}},
        "right": {"judge": {"type": "rules", "rules": {"right": {"type": "final_answer"}}}, "required": False},
    },
}


def test_the_first_groups_that_are_scored_calibrate_it_and_later_ones_change_nothing() -> None:
    judge = make_judge(TypeAdapter(knobs.JudgeConfig).validate_python(REAL), "panel")
    assert isinstance(judge, PanelJudge)
    first = judge.judge(FOUR)
    calibration = judge.calibration
    assert calibration is not None
    assert scores_of(first) == [1.0, 1.0, -1.0, -1.0]
    assert first[0].judge == "panel"
    assert scores_of(judge.judge(groups_of([1, 1]))) == [1.0, 1.0]
    assert judge.calibration is calibration


def test_groups_that_nobody_scores_calibrate_nothing() -> None:
    config = panel({"only": {}})
    given_later = {"scores": [None] * 4}

    class Member:
        name = "only"

        def judge(self, groups: Sequence[Group]) -> list[Judgment]:
            return said(self.name, groups, given_later["scores"])

    judge = PanelJudge(config, "panel", {"only": Member()})
    assert scores_of(judge.judge(FOUR)) == [None] * 4
    assert judge.calibration is None
    given_later["scores"] = list(UP)
    assert scores_of(judge.judge(FOUR)) == near(Z)


def test_judgments_of_other_members_or_groups_are_refused() -> None:
    config = panel({"up": {}})
    with pytest.raises(JudgeError, match=r"judgments of \['down'\] were given; allowed: \['up'\]"):
        calibrate(config, {"down": said("down", FOUR, DOWN)}, FOUR)
    with pytest.raises(JudgeError, match="member 'up' did not judge these 2 groups"):
        calibrate(config, {"up": said("up", FOUR, UP)[::-1]}, FOUR)


@pytest.mark.parametrize(
    ("members", "settings", "complaint"),
    [
        ({"a": {"weight": 0.0}}, {}, "all weights"),
        ({"a": {"axis": "helpful"}}, {"axes": {"helpful": 0.0}}, "all weights"),
        ({"a": {"axis": "helpful"}}, {"axes": {"helpfull": 1.0}}, "no member is on 'helpfull'; allowed: helpful"),
    ],
)
def test_weights_that_go_to_nothing_are_refused(
    members: dict[str, Any], settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        panel(members, **settings)
