"""Candidates of served models: what is asked, what becomes of every kind of answer, and that nothing is paid twice."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from pipeline.calls.client import AHEAD
from pipeline.calls.ledger import Ledger
from pipeline.calls.request import Desk
from pipeline.config import Endpoint, SamplingConfig, ServedModel
from pipeline.errors import SamplingError
from pipeline.sampling.proposals import Proposed, Proposer, in_ids
from pipeline.types import Candidate, Message, Prompt
from tests.api_server import ApiServer
from tests.tiny import BOS, EOS, make_policy

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = [Prompt(f"p{number}", f"question {number}", ()) for number in range(6)]


def model(*servers: ApiServer, n: int = 3, extra: dict[str, Any] | None = None, **more: Any) -> ServedModel:
    endpoints = tuple(
        Endpoint(model="big", base_url=server.base_url, timeout=5.0, tries=2, extra=extra or {}) for server in servers
    )
    return ServedModel(type="server", endpoints=endpoints, n=n, **more)


def propose(
    config: ServedModel, ledger: Path, prompts: list[Prompt] = PROMPTS, name: str = "big", unanswered: float = 0.2
) -> Proposed:
    proposer = Proposer(name, config, Desk(str(ledger), "run"), seed=0, round=0, unanswered=unanswered)
    try:
        return proposer.propose(prompts)
    finally:
        proposer.close()


def said(body: Mapping[str, Any]) -> str:
    return f"{body['messages'][-1]['content']} drawn with {body['seed']}"


def finished(text: str | None, reason: str | None, **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}]}


# --------------------------------------------------------------------------------------------------- what is asked
def test_every_candidate_is_a_call_with_a_seed_of_its_own(tmp_path: Path) -> None:
    with ApiServer(said) as server:
        made = propose(model(server, temperature=0.7, top_p=0.9, max_tokens=50), tmp_path / "ledger")
        assert [group.prompt for group in made.groups] == PROMPTS
        for group in made.groups:
            assert [candidate.index for candidate in group.candidates] == [0, 1, 2]
            for each in group.candidates:
                assert each.text == f"{group.prompt.text} drawn with {each.seed}"
                assert (each.model, each.token_ids, each.cumulative_logprob) == ("big", (), None)
        seeds = {call.body["seed"] for call in server.calls}
        assert len(seeds) == 18 and all(0 <= seed < 2**31 for seed in seeds)
        asked = server.calls[0].body
        assert (asked["temperature"], asked["top_p"], asked["max_tokens"]) == (0.7, 0.9, 50)
        other = propose(model(server), tmp_path / "ledger", name="other")
        drawn = {each.seed for group in other.groups for each in group.candidates}
        assert not drawn & {int(seed) for seed in seeds}


def test_a_conversation_is_asked_as_it_is_and_a_system_message_only_where_it_has_none(tmp_path: Path) -> None:
    turns = (Message(role="user", content="a"), Message(role="assistant", content="b"),
             Message(role="user", content="c"))  # fmt: skip
    with_system = (Message(role="system", content="own"), turns[0])
    prompts = [Prompt("plain", "text", ()), Prompt("chat", "c", (), turns), Prompt("system", "a", (), with_system)]
    with ApiServer(said) as server:
        propose(model(server, n=1, system="Be brief."), tmp_path / "ledger", prompts)
        asked = {call.body["messages"][-1]["content"]: call.body["messages"] for call in server.calls}
    brief = {"role": "system", "content": "Be brief."}
    assert asked["text"] == [brief, {"role": "user", "content": "text"}]
    assert asked["c"] == [brief, *turns]
    assert asked["a"] == list(with_system)


def test_the_endpoints_own_fields_win(tmp_path: Path) -> None:
    with ApiServer(lambda body: "yes") as server:
        extra = {"max_completion_tokens": 9, "reasoning_effort": "low", "temperature": 0.1}
        propose(model(server, n=1, extra=extra), tmp_path / "ledger", PROMPTS[:1])
        asked = server.calls[0].body
    assert extra.items() <= asked.items()
    assert "max_tokens" not in asked


# --------------------------------------------------------------------------------------------------- what is answered
@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (finished("all of it", "stop"), ("all of it", "stop")),
        (finished("cut of", "length"), ("cut of", "length")),
        (finished("who knows", None), ("who knows", "stop")),
        (finished(None, "stop", refusal="I cannot help with that."), ("I cannot help with that.", "stop")),
        (finished("half a pair \ud83d", "stop"), ("half a pair ?", "stop")),
        (finished(None, "length"), "empty"),
        (finished(" \n", "stop"), "empty"),
        (finished("", "content_filter"), "content_filter"),
        (finished("half of it", "content_filter"), "content_filter"),
    ],
)
def test_every_kind_of_answer_is_a_candidate_or_missing_by_name(
    tmp_path: Path, completion: dict[str, Any], expected: tuple[str, str] | str
) -> None:
    with ApiServer(lambda body: completion) as server:
        made = propose(model(server, n=1), tmp_path / "ledger", PROMPTS[:1])
    (group,) = made.groups
    if isinstance(expected, str):
        assert group.candidates == ()
        assert [(each.prompt_id, each.index, each.reason) for each in made.unusable] == [("p0", 0, expected)]
    else:
        assert [(each.text, each.finish_reason) for each in group.candidates] == [expected]
    assert made.given_up == ()


def test_a_call_given_up_leaves_a_candidate_out_and_the_others_as_they_are(tmp_path: Path) -> None:
    def unless_chosen(body: Mapping[str, Any]) -> Any:
        return {"choices": []} if body["messages"][-1]["content"] == "question 2" else said(body)

    with ApiServer(unless_chosen) as server:
        made = propose(model(server), tmp_path / "ledger")
        whole = propose(model(server), tmp_path / "other", [each for each in PROMPTS if each.id != "p2"])
    assert {(each.prompt_id, each.reason) for each in made.given_up} == {("p2", "no_choice")}
    assert len(made.given_up) == 3
    assert tuple(group for group in made.groups if group.prompt.id != "p2") == whole.groups


def test_too_many_calls_given_up_stop_and_what_was_answered_is_free_the_next_time(tmp_path: Path) -> None:
    with ApiServer(said, faults={"server_error": 0.7}, seed=3) as server:
        with pytest.raises(SamplingError, match=r"model 'big': \d+ of 18 calls were given up .*limits.unanswered"):
            propose(model(server), tmp_path / "ledger")
        answered = len(server.answered)
        server.faults = {}
        made = propose(model(server), tmp_path / "ledger")
        assert sum(len(group.candidates) for group in made.groups) == 18
        assert len(server.answered) == 18 and 0 < answered < 18


def test_a_model_that_cannot_be_asked_is_named(tmp_path: Path) -> None:
    with ApiServer(faults={"unauthorised": 1.0}) as server, pytest.raises(SamplingError, match="model 'big': big at"):
        propose(model(server), tmp_path / "ledger")


def test_a_server_that_goes_down_leaves_its_calls_to_the_other(tmp_path: Path) -> None:
    with ApiServer(said, latency=0.01) as stays:
        with ApiServer(said, latency=0.01) as goes:
            first = propose(model(goes, stays), tmp_path / "ledger", PROMPTS[:3])
        second = propose(model(goes, stays), tmp_path / "ledger")
        assert second.groups[:3] == first.groups
        assert sum(len(group.candidates) for group in second.groups) == 18
        assert len(goes.calls) + len(stays.calls) == 18


def test_servers_of_one_model_are_asked_the_same() -> None:
    one, other = Endpoint(model="m", extra={"top_k": 5}), Endpoint(model="m")
    with pytest.raises(ValidationError, match="allowed: the same for all"):
        ServedModel(type="server", endpoints=(one, other))
    with pytest.raises(ValidationError, match="batch is set of one of 2"):
        ServedModel(type="server", endpoints=(Endpoint(model="m", batch=True), other))
    with pytest.raises(ValidationError, match="proposers"):
        SamplingConfig(proposers={"a/b": ServedModel(type="server", endpoints=(other,))})


@pytest.mark.parametrize("field", ["model", "messages", "stream", "n"])
def test_further_fields_do_not_change_what_is_asked(field: str) -> None:
    with pytest.raises(ValidationError, match=f"extra.{field}: 'x'; allowed: fields other than"):
        Endpoint(model="m", extra={field: "x"})


# --------------------------------------------------------------------------------------------------- paid for once
PROPOSE = """
import json, sys
from pipeline.calls.request import Desk
from pipeline.config import ServedModel
from pipeline.sampling.proposals import Proposer
from pipeline.types import Prompt
config, ledger, count = ServedModel(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
prompts = [Prompt(str(number), f"question {number}", ()) for number in range(count)]
made = Proposer("big", config, Desk(ledger, "run"), 0, 0, 0.5).propose(prompts)
print(json.dumps([[each.text for each in group.candidates] for group in made.groups]))
"""


def test_resume_after_kill_asks_for_nothing_that_was_answered(tmp_path: Path) -> None:
    ledger, count, concurrency = tmp_path / "ledger", 40, 8
    with ApiServer(said, faults={"server_error": 0.1, "cut_body": 0.1}, latency=0.02) as one, ApiServer(
        said, latency=0.02
    ) as other:  # fmt: skip
        endpoints = [
            {"model": "big", "base_url": server.base_url, "concurrency": concurrency} for server in (one, other)
        ]
        config = {"type": "server", "n": 3, "endpoints": endpoints}
        command = [sys.executable, "-c", PROPOSE, json.dumps(config), str(ledger), str(count)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            while len(one.answered) + len(other.answered) < count:
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
        texts = json.loads(done.stdout)
        assert [len(group) for group in texts] == [3] * count
        paid = len(one.answered) + len(other.answered)
        # Sent and answered twice can only be what was on its way, not yet in the ledger, when the process was killed.
        assert 3 * count <= paid <= 3 * count + math.ceil(AHEAD * 2 * concurrency)
        again = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
        assert json.loads(again.stdout) == texts
        assert len(one.answered) + len(other.answered) == paid
    assert Ledger(ledger).balance("run").reserved == 0.0


# --------------------------------------------------------------------------------------------------- in token ids
@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_policy(tmp_path_factory.mktemp("policy"), layers=1).path)


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("yes", "stop", "ids and an end"),
        ("yes", "length", "ids"),
        ("yes<eos>", "stop", "special_token"),
        ("<bos>yes", "length", "special_token"),
        ("YES", "stop", "special_token"),  # not in the alphabet: all unknown
        ("a" * 16, "length", "ids"),
        ("a" * 16, "stop", "too_long"),
        ("a" * 17, "length", "too_long"),
        ("", "length", "empty"),
    ],
)
def test_others_text_becomes_the_policys_ids_or_is_left_out_by_name(
    tokenizer: Any, text: str, finish: Any, expected: str
) -> None:
    prompt = Prompt("p", "go", (BOS, 5, 6, 7))
    made = in_ids(prompt, Candidate(0, (), text, finish, 1, model="big"), tokenizer, frozenset({EOS}), longest=20)
    if isinstance(made, str):
        assert made == expected
        return
    own = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert made.token_ids == (own if expected == "ids" else (*own, EOS))
    assert (made.text, made.finish_reason, made.model) == (text, finish, "big")
    assert tokenizer.decode(made.token_ids, skip_special_tokens=True) == text
