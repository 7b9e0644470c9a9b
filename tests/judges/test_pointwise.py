"""A language model rating candidates one by one, over HTTP: faults abstain by name, evidence is kept, nothing is asked
twice."""

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from judges import Desk, make_judge
from judges.llm.jury import identity
from judges.llm.verdicts import REASONS
from judges.pointwise import PointwiseJudge
from pipeline import config as knobs
from pipeline.errors import ConfigError, JudgeError
from pipeline.types import Judgment
from tests.api_server import ApiServer
from tests.judges.asked import JURY, answers, group, shown
from tests.judges.replies import RATING, completion, fuzzed


def rate(text: str) -> str:
    """The judge of these tests: the number a text begins with."""
    return text[0]


Make = Callable[..., PointwiseJudge]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(str(tmp_path / "ledger.sqlite"), "test")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(answers(RATING, rate)) as started:
        yield started


def config(*servers: ApiServer, **more: Any) -> knobs.PointwiseJudge:
    endpoint = {name: more.pop(name) for name in list(more) if name in knobs.JudgeEndpoint.model_fields}
    endpoints = [JURY | {"base_url": each.base_url} | endpoint for each in servers]
    return knobs.PointwiseJudge(type="pointwise", **{"endpoints": endpoints} | more)


@pytest.fixture
def judge(desk: Desk) -> Iterator[Make]:
    """Judges on one ledger, made of servers and settings; closed at the end."""
    made: list[PointwiseJudge] = []

    def make(*servers: ApiServer, **more: Any) -> PointwiseJudge:
        made.append(PointwiseJudge(config(*servers, **more), "rater", desk))
        return made[-1]

    yield make
    for each in made:
        each.close()


# ---------------------------------------------------------------------------------------------- scores and evidence
def test_each_candidate_gets_the_number_and_the_votes_say_who_said_it(desk: Desk, server: ApiServer) -> None:
    made = make_judge(config(server), "rater", desk)
    (judgment,) = made.judge([group("3 a", "9 b")])
    assert isinstance(made, PointwiseJudge)
    made.close()
    assert (judgment.prompt_id, judgment.judge, judgment.scores) == ("p", "rater", (3.0, 9.0))
    (call,) = judgment.votes[1]["calls"]
    assert (call["model"], call["juror"], call["sample"], call["label"], call["value"]) == ("judge", 0, 0, "9", 9.0)
    assert len(call["key"]) == 64
    asked = server.calls[0].body
    assert asked["response_format"]["type"] == "json_schema"
    assert (asked["temperature"], asked["max_tokens"], asked["seed"]) == (0.0, 1024, 0)


def test_the_score_is_the_expected_value_where_the_endpoint_gives_log_probabilities(judge: Make) -> None:
    top = [{"token": "7", "logprob": math.log(0.5)}, {"token": "9", "logprob": math.log(0.25)}]
    soft = completion("7", logprobs={"content": [{"token": "7", "logprob": math.log(0.5), "top_logprobs": top}]})
    with ApiServer(lambda body: soft) as server:
        (judgment,) = judge(server, structured="choice").judge([group("x")])
        assert server.calls[0].body["structured_outputs"] == {"choice": [str(n) for n in range(1, 10)]}
    assert judgment.scores == (pytest.approx((7 * 0.5 + 9 * 0.25) / 0.75),)
    assert judgment.votes[0]["calls"][0]["label"] == "7"  # the raw one is kept


def test_candidates_with_the_same_text_are_asked_about_once(judge: Make, server: ApiServer) -> None:
    (judgment,) = judge(server).judge([group("3 a", "9 b", "3 a")])
    assert judgment.scores == (3.0, 9.0, 3.0)
    assert judgment.votes[2] == {"calls": [], "same_as": 0}
    assert len(server.calls) == 2


def test_several_samples_are_averaged_and_differ_in_seed_and_key(judge: Make) -> None:
    with ApiServer(lambda body: f'{{"score": {3 + body["seed"]}}}') as server:
        (judgment,) = judge(server, samples=3, temperature=1.0).judge([group("x")])
        assert sorted(call.body["seed"] for call in server.calls) == [0, 1, 2]
    assert judgment.scores == (4.0,)
    assert len({call["key"] for call in judgment.votes[0]["calls"]}) == 3


def test_no_seed_is_sent_where_none_is_wanted_and_extra_fields_win(judge: Make, server: ApiServer) -> None:
    judge(server, seed=None, extra={"max_completion_tokens": 99, "temperature": 1}).judge([group("3")])
    body = server.calls[0].body
    assert "seed" not in body
    assert "max_tokens" not in body
    assert (body["max_completion_tokens"], body["temperature"]) == (99, 1)


# ---------------------------------------------------------------------------------------------- jury
def test_a_jury_is_the_mean_of_those_that_did_not_abstain(judge: Make, server: ApiServer) -> None:
    with ApiServer(lambda body: '{"score": 5}') as second, ApiServer(lambda body: "Well.") as third:
        (judgment,) = judge(server, second, third).judge([group("8 a")])
        assert judgment.scores == (6.5,)
        assert [call.get("abstained") for call in judgment.votes[0]["calls"]] == [None, None, "unreadable"]
        (none,) = judge(server, second, third, quorum=3).judge([group("8 a")])
        assert none.scores == (None,)
        assert none.votes[0]["abstained"] == "no_quorum"
        assert len(server.calls) == 1  # the second jury read the ledger


# ---------------------------------------------------------------------------------------------- faults
FAULTS = {
    "prose": "unreadable", "wrong_schema": "missing_key", "cut_content": "unreadable", "empty": "empty",
    "refusal": "refused", "empty_choices": "no_choice", "server_error": "server_error", "timeout": "timeout",
    "rate_limited": "rate_limited", "cut_json": "bad_json",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_an_abstention_with_its_name_and_the_other_candidates_are_judged(judge: Make, fault: str) -> None:
    with ApiServer(answers(RATING, rate), script=[fault]) as server:
        patience = 1.5 if fault == "timeout" else 10.0
        (judgment,) = judge(server, timeout=patience, concurrency=1).judge([group("3 a", "9 b")])
    assert judgment.scores == (None, 9.0)
    assert judgment.votes[0]["abstained"] == judgment.votes[0]["calls"][0]["abstained"] == FAULTS[fault]
    assert "abstained" not in judgment.votes[1]


def test_json_cut_at_the_token_limit_abstains_as_truncated(judge: Make) -> None:
    cut = completion('{"reasoning": "It is', finish_reason="length")
    with ApiServer(lambda body: cut) as server:
        (judgment,) = judge(server).judge([group("3 a")])
    assert judgment.votes[0]["abstained"] == "truncated"


def test_an_answer_without_a_verdict_is_kept_and_not_asked_again(judge: Make) -> None:
    with ApiServer(lambda body: "Well.") as server:
        for _ in range(2):
            (judgment,) = judge(server, tries=5).judge([group("3 a")])
            assert judgment.votes[0]["abstained"] == "unreadable"
        assert len(server.calls) == 1


@pytest.mark.parametrize("fault", ["unauthorised", "insufficient_quota"])
def test_what_cannot_work_at_all_is_an_error_and_answers_on_their_way_are_kept(judge: Make, fault: str) -> None:
    groups = [group("3 a", "5 b", prompt=f"p{i}") for i in range(40)]
    with ApiServer(answers(RATING, rate), script=[None] * 5 + [fault] * 100, latency=0.05) as server:
        with pytest.raises(JudgeError):
            judge(server, concurrency=8).judge(groups)
        assert len(server.calls) < 40  # the rest was not even sent
        answered = len(server.answered)
        server.script.clear()
        judgments = judge(server).judge(groups)
        assert len(server.calls) - len(server.answered) < 40
        assert len(server.answered) == 80
        assert answered == 5
    assert all(judgment.scores == (3.0, 5.0) for judgment in judgments)


def test_where_one_of_a_jury_cannot_work_the_others_finish_what_is_on_its_way_and_no_more(judge: Make) -> None:
    groups = [group("3 a", prompt=f"p{i}") for i in range(60)]
    with ApiServer(script=["unauthorised"]) as broken, ApiServer(answers(RATING, rate), latency=0.2) as good:
        broken.gate = lambda: len(good.calls) >= 2
        with pytest.raises(JudgeError):
            judge(broken, good, concurrency=2).judge(groups)
        assert 2 <= len(good.calls) == len(good.answered) < 60


def test_a_thousand_fuzzed_replies_over_http_raise_nothing_and_invent_nothing(judge: Make) -> None:
    replies = {str(number): raw for number, raw in enumerate(fuzzed(RATING, "json_schema", 1000, seed=1))}
    groups = [group(*(str(4 * i + j) for j in range(4)), prompt=str(i)) for i in range(250)]
    with ApiServer(lambda body: replies[shown(body)[0]]) as server:
        judgments = judge(server).judge(groups)
    calls = [vote["calls"][0] for judgment in judgments for vote in judgment.votes]
    assert len(calls) == 1000
    judged = [call for call in calls if "value" in call]
    assert 100 < len(judged) < 900
    assert all(call["label"] in RATING.values for call in judged)
    reasons = {call["abstained"] for call in calls if "value" not in call}
    assert reasons <= {*REASONS, "no_choice", "bad_json"}


# ---------------------------------------------------------------------------------------------- work
def test_a_second_run_asks_nothing(judge: Make, server: ApiServer) -> None:
    groups = [group("3 a", "9 b", prompt=f"p{i}") for i in range(20)]
    first = judge(server).judge(groups)
    assert judge(server).judge(groups) == first
    assert len(server.calls) == 40


def test_the_plan_is_what_is_asked(judge: Make, server: ApiServer) -> None:
    rater = judge(server, samples=2, temperature=1.0)
    groups = [group("3 a", "9 b", "3 a", prompt=f"p{i}") for i in range(3)]
    planned = {request.key for _, request in rater.calls(groups)}
    assert server.calls == []
    judgments = rater.judge(groups)
    assert planned == {call["key"] for judgment in judgments for vote in judgment.votes for call in vote["calls"]}
    assert len(planned) == len(server.calls) == 12


def test_all_groups_are_asked_about_at_once_as_far_as_the_endpoint_allows(judge: Make) -> None:
    groups = [group("3 a", prompt=f"p{i}") for i in range(60)]
    with ApiServer(answers(RATING, rate), latency=0.01) as server:
        server.gate = lambda: len(server.calls) >= 30
        judge(server, concurrency=30).judge(groups)
        assert server.most_busy == 30


def test_two_threads_may_judge_at_once(judge: Make) -> None:
    with ApiServer(answers(RATING, rate), latency=0.02) as server:
        rater, made = judge(server), dict[int, list[Judgment]]()
        shards = [[group("3 a", "9 b", prompt=f"{shard} {i}") for i in range(20)] for shard in range(3)]

        def work(shard: int) -> None:
            made[shard] = rater.judge(shards[shard])

        threads = [threading.Thread(target=work, args=(shard,)) for shard in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rater.close()
    for shard in range(3):
        assert [judgment.prompt_id for judgment in made[shard]] == [each.prompt.id for each in shards[shard]]
        assert all(judgment.scores == (3.0, 9.0) for judgment in made[shard])


def test_a_wrong_template_is_refused_when_the_judge_is_made(judge: Make, server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ candidate }} {{ colour }}")
    with pytest.raises(ConfigError, match="colour"):
        judge(server, template=str(tmp_path / "own.jinja"))
    assert server.calls == []


# ---------------------------------------------------------------------------------------------- identity
def test_the_identity_has_all_that_scores_depend_on_and_nothing_else(server: ApiServer, tmp_path: Path) -> None:
    same = identity(config(server))
    for change in ({"concurrency": 3}, {"timeout": 1.0}, {"price_in": 1.0, "price_out": 2.0}, {"batch": True}):
        assert identity(config(server, **change)) == same
    own = tmp_path / "own.jinja"
    own.write_text("{{ candidate }} {{ form }}")
    changed = [
        identity(config(server, **change))
        for change in (
            {"structured": "none"}, {"logprobs": True}, {"model": "other"}, {"extra": {"top_p": 0.5}}, {"rubric": "x"},
            {"highest": 5}, {"reasoning": False}, {"seed": 1}, {"max_tokens": 99}, {"template": str(own)},
        )
    ]  # fmt: skip
    own.write_text("{{ candidate }}! {{ form }}")
    changed.append(identity(config(server, template=str(own))))
    assert all(each != same for each in changed)
    assert len({str(each) for each in changed}) == len(changed)
