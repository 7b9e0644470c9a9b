"""A language model comparing candidates: always both orders, an abstention is never half a point."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from judges import Desk, make_judge
from judges.llm.jury import identity
from judges.llm.tournament import most_comparisons
from judges.llm.verdicts import REASONS
from judges.pairwise import PairwiseJudge
from pipeline import config as knobs
from pipeline.types import Judgment
from tests.api_server import ApiServer
from tests.judges.asked import JURY, answers, group, shown
from tests.judges.replies import COMPARISON, completion, fuzzed


def better(first: str, second: str) -> str:
    """The judge of these tests: the later letter is better."""
    return "C" if first == second else "A" if first > second else "B"


Make = Callable[..., PairwiseJudge]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(str(tmp_path / "ledger.sqlite"), "test")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(answers(COMPARISON, better)) as started:
        yield started


def config(*servers: ApiServer, **more: Any) -> knobs.PairwiseJudge:
    endpoint = {name: more.pop(name) for name in list(more) if name in knobs.JudgeEndpoint.model_fields}
    endpoints = [JURY | {"base_url": each.base_url} | endpoint for each in servers]
    return knobs.PairwiseJudge(type="pairwise", **{"endpoints": endpoints} | more)


@pytest.fixture
def judge(desk: Desk) -> Iterator[Make]:
    """Judges on one ledger, made of servers and settings; closed at the end."""
    made: list[PairwiseJudge] = []

    def make(*servers: ApiServer, **more: Any) -> PairwiseJudge:
        made.append(PairwiseJudge(config(*servers, **more), "arbiter", desk))
        return made[-1]

    yield make
    for each in made:
        each.close()


def comparisons(judgment: Judgment) -> list[Any]:
    return [vote for vote in judgment.votes if "first" in vote]


# ---------------------------------------------------------------------------------------------- both orders
def test_every_comparison_is_asked_in_both_orders_and_the_votes_name_each(desk: Desk, server: ApiServer) -> None:
    made = make_judge(config(server), "arbiter", desk)
    (judgment,) = made.judge([group("a", "c", "b")])
    assert isinstance(made, PairwiseJudge)
    made.close()
    assert sorted(shown(call.body) for call in server.calls) == [
        [one, other] for one in "abc" for other in "abc" if one != other
    ]
    first, second, third = judgment.scores
    assert first is not None
    assert second is not None
    assert third is not None
    assert first < third < second
    assert first + second + third == pytest.approx(0)
    vote = comparisons(judgment)[0]
    assert (vote["first"], vote["second"], vote["result"]) == (0, 1, 0.0)
    assert (vote["straight"], vote["swapped"], vote["contradicted"]) == (0.0, 0.0, False)
    assert [(call["order"], call["label"], call["value"]) for call in vote["calls"]] == [
        ("straight", "B", 0.0), ("swapped", "A", 1.0)
    ]  # fmt: skip


def test_a_judge_that_always_prefers_what_comes_first_calls_only_ties(judge: Make) -> None:
    with ApiServer(answers(COMPARISON, lambda first, second: "A")) as server:
        (judgment,) = judge(server).judge([group("a", "b", "c")])
        (knocked,) = judge(server, schedule="knockout").judge([group("a", "b", "c")])
    assert judgment.scores == pytest.approx((0.0, 0.0, 0.0))
    assert all(vote["contradicted"] and vote["result"] == 0.5 for vote in comparisons(judgment))
    assert knocked.scores == (0.0, 0.0, 0.0)


def test_a_tie_in_one_order_is_half_a_win(judge: Make) -> None:
    with ApiServer(answers(COMPARISON, lambda first, second: "C" if first == "a" else "A")) as server:
        (judgment,) = judge(server).judge([group("a", "b")])
    (vote,) = comparisons(judgment)
    assert (vote["straight"], vote["swapped"], vote["result"], vote["contradicted"]) == (0.5, 0.0, 0.25, False)


def test_soft_labels_are_averaged_over_both_orders(judge: Make) -> None:
    def soft(body: Any) -> Any:
        chance = 0.9 if shown(body) == ["a", "b"] else 0.2
        top = [{"token": "A", "logprob": math.log(chance)}, {"token": "B", "logprob": math.log(1 - chance)}]
        return completion("A", logprobs={"content": [{"token": "A", "logprob": -1.0, "top_logprobs": top}]})

    with ApiServer(soft) as server:
        (judgment,) = judge(server, structured="choice").judge([group("a", "b")])
        assert server.calls[0].body["structured_outputs"] == {"choice": ["A", "B", "C"]}
    (vote,) = comparisons(judgment)
    assert vote["straight"] == pytest.approx(0.9)
    assert vote["swapped"] == pytest.approx(0.8)
    assert vote["result"] == pytest.approx(0.85)
    first, second = judgment.scores
    assert first is not None
    assert second is not None
    assert first > second


def test_without_ties_there_is_no_letter_for_one(judge: Make, server: ApiServer) -> None:
    (judgment,) = judge(server, ties=False).judge([group("a", "b")])
    schema = server.calls[0].body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["verdict"]["enum"] == ["A", "B"]
    assert "equally" not in server.calls[0].body["messages"][-1]["content"]
    assert comparisons(judgment)[0]["result"] == 0.0


# ---------------------------------------------------------------------------------------------- abstentions
FAULTS = {
    "prose": "unreadable", "wrong_schema": "missing_key", "cut_content": "unreadable", "empty": "empty",
    "refusal": "refused", "empty_choices": "no_choice", "server_error": "server_error", "timeout": "timeout",
    "rate_limited": "rate_limited", "cut_json": "bad_json",
}  # fmt: skip


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_order_that_failed_is_an_abstention_never_a_half(judge: Make, fault: str, place: int) -> None:
    script = [None] * place + [fault]
    with ApiServer(answers(COMPARISON, better), script=script) as server:
        patience = 1.5 if fault == "timeout" else 10.0
        (judgment,) = judge(server, timeout=patience, concurrency=1).judge([group("a", "b")])
    assert judgment.scores == (None, None)
    vote, *missing = judgment.votes
    assert (vote["result"], vote["abstained"]) == (None, FAULTS[fault])
    assert missing == [{"candidate": i, "abstained": "no_comparison"} for i in (0, 1)]


def test_a_candidate_whose_comparisons_all_failed_abstains_and_the_others_are_ranked(judge: Make) -> None:
    replies = answers(COMPARISON, better)
    with ApiServer(lambda body: "Well." if "b" in shown(body) else replies(body)) as server:
        (judgment,) = judge(server).judge([group("a", "b", "c", "d")])
    a, b, c, d = judgment.scores
    assert b is None
    assert a is not None
    assert c is not None
    assert d is not None
    assert a < c < d
    assert judgment.votes[-1] == {"candidate": 1, "abstained": "no_comparison"}


def test_a_jurors_failed_order_leaves_the_others_to_decide(judge: Make, server: ApiServer) -> None:
    with ApiServer(lambda body: "Well.") as second:
        (judgment,) = judge(server, second).judge([group("a", "b")])
        (vote,) = comparisons(judgment)
        assert (vote["result"], vote["straight"], vote["swapped"], len(vote["calls"])) == (0.0, 0.0, 0.0, 4)
        (none,) = judge(server, second, quorum=2).judge([group("a", "b")])
    assert none.scores == (None, None)
    assert comparisons(none)[0]["abstained"] == "no_quorum"


def test_a_thousand_fuzzed_replies_over_http_raise_nothing_and_invent_nothing(judge: Make) -> None:
    replies = list(fuzzed(COMPARISON, "none", 1000, seed=2))
    groups = [group(f"{i} a", f"{i} b", prompt=str(i)) for i in range(500)]

    def reply(body: Any) -> Any:
        first, _ = shown(body)
        return replies[2 * int(first.split()[0]) + (first[-1] == "b")]

    with ApiServer(reply) as server:
        judgments = judge(server, structured="none").judge(groups)
    calls = [call for judgment in judgments for vote in comparisons(judgment) for call in vote["calls"]]
    assert len(calls) == 1000
    assert {call["abstained"] for call in calls if "value" not in call} <= {*REASONS, "no_choice", "bad_json"}
    for judgment in judgments:
        (vote,) = comparisons(judgment)
        assert (vote["result"] is None) == any("value" not in call for call in vote["calls"])
        assert (judgment.scores == (None, None)) == (vote["result"] is None)
    assert 20 < sum(judgment.scores[0] is not None for judgment in judgments) < 450


# ---------------------------------------------------------------------------------------------- schedules
def test_identical_candidates_are_a_tie_that_nobody_is_asked_about(judge: Make, server: ApiServer) -> None:
    (judgment,) = judge(server).judge([group("a", "b", "a")])
    assert judgment.scores[0] == judgment.scores[2] != judgment.scores[1]
    assert len(server.calls) == 2
    assert comparisons(judgment)[-1] == {"first": 0, "second": 2, "result": 0.5, "identical": True}
    (same,) = judge(server).judge([group("a", "a")])
    assert same.scores == (0.0, 0.0)
    assert len(server.calls) == 2


def test_a_lone_candidate_abstains_because_there_is_nothing_to_compare(judge: Make, server: ApiServer) -> None:
    (judgment,) = judge(server).judge([group("a")])
    assert (judgment.scores, judgment.votes) == ((None,), ({"candidate": 0, "abstained": "alone"},))


@pytest.mark.parametrize("texts", ["ab", "abc", "dbcaeg", "hgfedcba"])
def test_a_knockout_finds_best_and_worst(judge: Make, server: ApiServer, texts: str) -> None:
    (judgment,) = judge(server, schedule="knockout").judge([group(*texts)])
    expected = [1.0 if text == max(texts) else -1.0 if text == min(texts) else 0.0 for text in texts]
    assert list(judgment.scores) == expected
    assert len(server.calls) == 2 * most_comparisons("knockout", len(texts))


def test_the_plan_is_what_is_asked_by_all_pairs_and_a_bound_for_a_knockout(judge: Make, server: ApiServer) -> None:
    groups = [group("a", "c", "bb", "a", prompt=f"p{i}") for i in range(3)]
    arbiter = judge(server)
    planned = {request.key for _, request in arbiter.calls(groups)}
    assert server.calls == []
    judgments = arbiter.judge(groups)
    asked = {call["key"] for each in judgments for vote in comparisons(each) for call in vote.get("calls", [])}
    assert planned == asked
    eight = [group(*"abcdefgh")]
    bound = list(judge(server, schedule="knockout").calls(eight))
    assert len(bound) == 2 * most_comparisons("knockout", 8)


def test_a_second_run_asks_nothing_and_a_knockout_shares_the_answers(judge: Make, server: ApiServer) -> None:
    first = judge(server).judge([group(*"abcd")])
    assert judge(server).judge([group(*"abcd")]) == first
    judge(server, schedule="knockout").judge([group(*"abcd")])
    assert len(server.calls) == 12


def test_the_identity_names_the_schedule_and_whether_ties_are_allowed(server: ApiServer) -> None:
    changes = ({}, {"schedule": "knockout"}, {"ties": False}, {"structured": "choice"})
    assert len({str(identity(config(server, **change))) for change in changes}) == len(changes)
