"""Judges in a run: a language model behind the ledger, panels on frozen scales, people, and health before training."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.annotation import candidates_of, preferences
from flows.console import Console
from flows.judging import judge as judge_stage
from flows.judging import judge_identity
from flows.session import Session
from judges.annotation.sources import tasks_from_groups
from judges.annotation.store import Vote, VoteStore
from judges.annotation.tasks import compare
from pipeline.calls.ledger import opened
from pipeline.candidates import write_asked
from pipeline.deadline import within
from pipeline.errors import ConfigError, DataError, JudgeError, OverdueError, StoreError, UnfitJudgeError
from pipeline.recipe import load_recipe
from pipeline.runs import Run
from pipeline.store import Artifact, Draft, Spec
from pipeline.tables import candidates_table, read_judgments
from pipeline.types import Candidate, Group, Prompt
from tests.api_server import ApiServer
from tests.judges.asked import answers
from tests.judges.replies import RATING
from tests.tiny_chat import chat_policy, reward_model

from .conftest import RunSmall, Said
from .small import RECIPE, store_of

ONE = (
    "rounds=1", "prompts.source.call.args.ravin=6", "prompts.source.call.args.held_out=4", "prompts.held_out=4",
    "policy.epochs=4",
)  # fmt: skip
RULES = {"type": "rules", "rules": {"pizza": {"type": "regex", "pattern": "pizza"}}}


def rate(text: str) -> str:
    return "9" if "pizza" in text else str(1 + len(text) % 5)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer(answers(RATING, rate)) as started:
        yield started


def judge(**settings: Any) -> str:
    """A whole [judge] as one setting."""
    return f"judge={_toml(settings)}"


def llm(api: ApiServer, **more: Any) -> dict[str, Any]:
    endpoint = {"model": "rater", "base_url": api.base_url, "price_in": 1.0, "price_out": 1.0} | more
    return {"type": "pointwise", "endpoints": [endpoint], "max_tokens": 64}


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


# ---------------------------------------------------------------------------------------------- language models
def test_a_language_model_judges_a_round_and_another_run_pays_nothing_for_the_same(
    run_small: RunSmall, api: ApiServer, tmp_path: Path
) -> None:
    config = (*ONE, judge(**llm(api)), "limits.budget=1.0")
    first = run_small("paid", *config, workspace=tmp_path)
    ledger = opened(str(tmp_path / "ledger.sqlite"))
    asked, balance = len(api.calls), ledger.balance("paid")
    assert asked > 0
    assert 0 < balance.spent <= 1.0
    run_small("paid-again", *config, "pairing.margin=2.0", "trainer.beta=0.2", workspace=tmp_path)
    again = [call.body["messages"] for call in api.calls[asked:]]
    assert again
    assert not [messages for messages in again if messages in [call.body["messages"] for call in api.calls[:asked]]]
    (scored,) = {judgment.judge for judgment in _judgments(first)}
    assert scored == "rater"


def test_a_budget_that_is_reached_stops_the_run_and_a_larger_one_goes_on_without_paying_twice(
    run_small: RunSmall, api: ApiServer, tmp_path: Path
) -> None:
    config = (*ONE, judge(**llm(api)), "limits.retries=0")
    with pytest.raises(JudgeError, match="budget"):
        run_small("short", *config, "limits.budget=0.002", workspace=tmp_path)
    ledger = opened(str(tmp_path / "ledger.sqlite"))
    assert ledger.balance("short").spent <= 0.002
    paid = [json.dumps(call.body, sort_keys=True) for call in api.calls if call.answered]
    assert run_small("short", *config, "limits.budget=1.0", workspace=tmp_path)["state"] == "complete"
    everything = [json.dumps(call.body, sort_keys=True) for call in api.calls if call.answered]
    assert len(everything) == len(set(everything)) > len(paid) > 0


# ---------------------------------------------------------------------------------------------- panels
def panel(**more: Any) -> str:
    members = {
        "food": {"judge": RULES, "weight": 2.0},
        "short": {"judge": {"type": "rules", "rules": {"short": {"type": "length", "maximum": 3}}}},
    }
    return judge(**{"type": "panel", "members": members} | more)


def test_a_panel_is_arithmetic_on_its_members_judgments_with_scales_of_the_first_round(
    run_small: RunSmall, tmp_path: Path
) -> None:
    status = run_small("panel", "rounds=2", panel(), workspace=tmp_path)
    store = store_of(status)
    made = [store.get("judgments", entry["artifacts"]["judgments"]) for entry in status["rounds"]]
    first, second = (artifact.info["calibration"] for artifact in made)
    assert first == second
    assert first["scales"]["food"]["std"] > 0
    for judgment in read_judgments(made[1].table()):
        for score, vote in zip(judgment.scores, judgment.votes, strict=True):
            assert score is not None
            assert vote["raw"].keys() == {"food", "short"}
    before = set(tmp_path.glob("artifacts/judgments/*"))
    reweighted = run_small("panel-2", "rounds=2", panel(combine="minimum"), "rounds=1", workspace=tmp_path)
    assert reweighted["rounds"][0]["artifacts"]["candidates"] == status["rounds"][0]["artifacts"]["candidates"]
    members = {made[0].manifest["inputs"][f"member {name}"] for name in ("food", "short")}
    again = store.get("judgments", reweighted["rounds"][0]["artifacts"]["judgments"])
    assert {again.manifest["inputs"][f"member {name}"] for name in ("food", "short")} == members
    assert members <= {path.name for path in before}


# ---------------------------------------------------------------------------------------------- people
def test_members_that_ask_others_are_asked_side_by_side(tmp_path: Path) -> None:
    def answering(text: str) -> str:
        return str(1 + len(text) % 5)

    with ApiServer(answers(RATING, answering)) as one, ApiServer(answers(RATING, answering)) as other:
        one.gate = other.gate = lambda: bool(one.calls and other.calls)  # in turn, neither would ever be answered
        members = {name: {"judge": llm(each)} for name, each in (("one", one), ("other", other))} | {
            "rules": {"judge": RULES}
        }
        session = _panel_of(members, tmp_path)
        made = judge_stage(session, _three_groups(session), session.config.judge, "judge")
    named = [name.removeprefix("member ") for name in made.manifest["inputs"] if name.startswith("member ")]
    assert named == ["one", "other", "rules"]
    assert made.manifest["rows"] == 3


def test_a_judge_that_does_not_answer_ends_with_its_stages_time_and_what_others_said_is_kept(tmp_path: Path) -> None:
    import openai  # noqa: F401 (it takes longer than six answers)

    with ApiServer(answers(RATING, rate)) as quick, ApiServer(answers(RATING, rate)) as silent:
        silent.gate = lambda: False
        members = {name: {"judge": llm(each)} for name, each in (("a", silent), ("quick", quick), ("b", silent))}
        session = _panel_of(members, tmp_path)
        candidates = _three_groups(session)
        with (
            pytest.raises(OverdueError, match=r"^stage 'judge' takes longer than limits\.stage_timeout = 3 ") as raised,
            within(3.0, "judge"),
        ):
            judge_stage(session, candidates, session.config.judge, "judge")
        assert not hasattr(raised.value, "__notes__")  # it is one stage, and said once
        silent.gate = None
        assert judge_stage(session, candidates, session.config.judge, "judge").manifest["rows"] == 3
        assert len(quick.calls) == 6  # nothing twice


def _panel_of(members: dict[str, Any], workspace: Path) -> Session:
    config = load_recipe(str(RECIPE), RECIPE.parent, [judge(type="panel", members=members)])
    return Session(config, Run(workspace, "panel"), Console(quiet=True))


def _three_groups(session: Session) -> Artifact:
    """Of two candidates each."""
    prompts = [Prompt(f"p{number}", f"question {number}", (1,)) for number in range(3)]
    groups = [Group(each, tuple(Candidate(i, (5,), "x" * i, "stop", i) for i in range(2))) for each in prompts]

    def sampled(draft: Draft) -> Artifact:
        write_asked(draft, prompts)
        draft.commit_shard(0, candidates_table(groups))
        return draft.finish()

    return session.store.make(Spec("candidates", 1), sampled)


def test_a_run_waits_for_people_and_goes_on_when_they_have_voted(run_small: RunSmall, tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    config = (*ONE, judge(type="human", votes=str(votes)), f"evaluation.judge={_toml(RULES)}", "limits.retries=0")
    with pytest.raises(JudgeError, match="ratchet annotate"):
        run_small("people", *config, workspace=tmp_path)
    groups, judgments = candidates_of(Run.existing(tmp_path, "people"), None)
    assert judgments is None
    with VoteStore(votes) as store:
        tasks = tasks_from_groups(groups, per_group=2)
        store.add_tasks(tasks)
        for task in tasks:
            better = "first" if "pizza" in task.first else "second" if "pizza" in task.second else "both_bad"
            store.cast(Vote(task.id, "ann", better, "first"))
    status = run_small("people", *config, workspace=tmp_path)
    assert status["state"] == "complete"
    assert status["rounds"][0]["pairs"] > 0
    scores = [score for judgment in _judgments(status) for score in judgment.scores]
    assert {1.0, 0.0} <= set(scores)


# ---------------------------------------------------------------------------------------------- health
def _labels(path: Path, count: int = 12) -> str:
    rows = [{"prompt": f"food of {n}?", "a": f"pizza {n}", "b": f"stone {n}", "label": "a"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_judge_that_people_do_not_agree_with_trains_nothing(run_small: RunSmall, tmp_path: Path) -> None:
    labels = _labels(tmp_path / "labels.jsonl")
    wrong = {"type": "rules", "rules": {"stone": {"type": "regex", "pattern": "stone.*"}}}
    health = f"health={_toml({'labels': labels, 'require': ['agreement >= 0.9']})}"
    with pytest.raises(UnfitJudgeError, match=r"agreement >= 0\.9 does not hold \(0\)"):
        run_small("unfit", *ONE, judge(**wrong), health, workspace=tmp_path)
    assert not list(tmp_path.glob("artifacts/policy/*/manifest.json"))
    right = {"type": "rules", "rules": {"pizza": {"type": "regex", "pattern": "pizza.*"}}}
    status = run_small("fit", *ONE, judge(**right), health, workspace=tmp_path)
    assert status["initial"]["health"]["figures"]["agreement"] == 1.0


# ---------------------------------------------------------------------------------------------- commands
def _judge_file(path: Path, config: dict[str, Any]) -> str:
    path.write_text(f"judge = {_toml(config)}\n")
    return str(path)


def test_judge_check_prints_figures_and_fails_where_a_condition_does_not_hold(
    ratchet: Callable[..., Said], tmp_path: Path
) -> None:
    file = _judge_file(tmp_path / "judge.toml", {"type": "rules", "rules": {"p": {"type": "regex", "pattern": "p.*"}}})
    labels = _labels(tmp_path / "labels.jsonl")
    code, out, _ = ratchet("judge", "check", file, "--labels", labels, "--json", "--workspace", tmp_path)
    assert (code, json.loads(out)["figures"]["agreement"]) == (0, 1.0)
    code, _, err = ratchet("judge", "check", file, "--labels", labels, "--require", "tie_rate < 0", "--quiet")
    assert code == JudgeError.exit_code
    assert "tie_rate < 0 does not hold (0)" in err


def test_a_dry_run_names_calls_and_cost_and_asks_nothing(
    ratchet: Callable[..., Said], api: ApiServer, tmp_path: Path
) -> None:
    file, labels = _judge_file(tmp_path / "judge.toml", llm(api)), _labels(tmp_path / "labels.jsonl")
    arguments = ("judge", "check", file, "--labels", labels, "--workspace", tmp_path)
    code, out, _ = ratchet(*arguments, "--dry-run", "--json")
    (plan,) = json.loads(out)
    assert (code, api.calls) == (0, [])
    assert plan["answered"] == 0
    assert ratchet(*arguments, "--budget", plan["high"], "--quiet")[0] == 0
    assert len(api.calls) == plan["calls"]
    (after,) = json.loads(ratchet(*arguments, "--dry-run", "--json")[1])
    assert (after["answered"], after["high"]) == (plan["calls"], 0.0)
    (use,) = json.loads(ratchet("judge", "spent", "--workspace", tmp_path, "--json")[1])
    assert use["calls"] == plan["calls"]
    assert 0 < use["cost"] <= plan["high"]


def test_a_run_says_what_its_judges_would_cost_and_makes_nothing(
    ratchet: Callable[..., Said], api: ApiServer, tmp_path: Path
) -> None:
    settings = [part for each in (*ONE, judge(**llm(api)), "sampling.n=3") for part in ("--set", each)]
    code, out, _ = ratchet("run", RECIPE, *settings, "--dry-run", "--json", "--workspace", tmp_path / "workspace")
    labelling, evaluating = json.loads(out)
    assert (code, labelling["calls"] % 3, evaluating["calls"]) == (0, 0, 2 * 4 * 2)  # two policies, prompts, samples
    assert labelling["high"] > labelling["low"] > 0
    assert not api.calls
    assert not (tmp_path / "workspace").exists()


MISTAKES = {
    ("judge", "check", "fod"): "there is no recipe 'fod'; did you mean 'food'?",
    ("judge", "check", str(RECIPE), "--held-out"): "small.toml has no [evaluation.judge]",
    ("judge", "check", "food", "--require", "kapa > 1"): "'kapa > 1' is not '<metric> <operator> <number>'",
    ("judge", "check", "food", "--require", "kappa > 1"): "'kappa > 1' needs labels",
    ("judge", "spent"): "nothing was ever asked in",
    ("annotate", "nothing"): "SOURCE 'nothing' leads nowhere; allowed: a run (RUN or RUN:ROUND) or a file",
    ("votes", "import", "f.json", "v.jsonl", "--person", "7"): "--person '7'; allowed: ID=NAME",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda arguments: " ".join(arguments[-2:]))
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], ratchet: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ratchet(*arguments)
    assert (code, out, err.count("\n")) == (ConfigError.exit_code, "", 1)
    assert MISTAKES[arguments] in err


def test_votes_go_to_a_tool_and_come_back(ratchet: Callable[..., Said], tmp_path: Path) -> None:
    votes, copy, exported = (tmp_path / name for name in ("votes.jsonl", "copy.jsonl", "exported.json"))
    labels = _labels(tmp_path / "labels.jsonl", 3)
    from flows.annotation import tasks_of

    with VoteStore(votes) as store:
        store.add_tasks(tasks := tasks_of(labels, tmp_path, 1, 0))
        store.cast(*(Vote(task.id, "ann", "first", "first") for task in tasks))
    for form in ("argilla", "label-studio"):
        assert ratchet("votes", "export", votes, exported, "--to", form)[:2] == (0, f"3 tasks in {exported}\n")
        code, out, _ = ratchet("votes", "import", exported, copy, "--from", form, "--json")
        assert (code, json.loads(out)["votes"], json.loads(out)["faults"].keys() - {"voted_elsewhere"}) == (0, 3, set())
    found = json.loads(ratchet("votes", "summary", copy, "--json")[1])
    assert found["tasks"] == 3
    assert found["verdicts"] == {"first": 3} or sum(found["verdicts"].values()) >= 3


def test_a_reward_model_is_trained_from_votes_and_judges(ratchet: Callable[..., Said], tmp_path: Path) -> None:
    labels, pairs, out = _labels(tmp_path / "labels.jsonl", 40), tmp_path / "pairs.jsonl", tmp_path / "rm"
    assert ratchet("votes", "pairs", labels, pairs)[:2] == (0, f"40 pairs in {pairs}\n")
    base = chat_policy(tmp_path / "base")
    settings = [part for each in ("learning_rate=3e-3", "batch_size=8", "epochs=4") for part in ("--set", each)]
    arguments = ("judge", "train", pairs, "--base", base, "--out", out, *settings, "--workspace", tmp_path / "w")
    code, printed, err = ratchet(*arguments, "--json")
    assert code == 0, err
    assert json.loads(printed)["held_out"]["accuracy"] > 0.9
    file = _judge_file(tmp_path / "judge.toml", {"type": "reward_model", "path": str(out), "dtype": "float32"})
    code, printed, err = ratchet("judge", "check", file, "--labels", labels, "--json", "--workspace", tmp_path / "w")
    assert code == 0, err
    assert json.loads(printed)["figures"]["agreement"] > 0.9


def _judgments(status: dict[str, Any]) -> list[Any]:
    table = store_of(status).get("judgments", status["rounds"][0]["artifacts"]["judgments"]).table()
    return list(read_judgments(table))


# ---------------------------------------------------------------------------------------------- what is kept
def test_an_outage_is_not_kept_and_the_same_command_asks_again(run_small: RunSmall, tmp_path: Path) -> None:
    """Whereas the answers are kept: no call that was answered is sent again."""
    with ApiServer(answers(RATING, rate), faults={"bad_request": 0.5}) as failing:
        config = (*ONE, judge(**llm(failing)), "limits.retries=0")
        with pytest.raises(JudgeError, match=r"calls were given up \(\d+ bad_request\); limits.unanswered allows 0.2"):
            run_small("outage", *config, workspace=tmp_path)
        assert not list(tmp_path.glob("artifacts/judgments/*/manifest.json"))
        answered = [json.dumps(call.body, sort_keys=True) for call in failing.calls if call.answered and not call.fault]
        failing.faults.clear()
        before = len(failing.calls)
        assert run_small("outage", *config, workspace=tmp_path)["state"] == "complete"
        again = [json.dumps(call.body, sort_keys=True) for call in failing.calls[before:]]
        assert again
        assert not set(answered) & set(again)


def _panel_config(**member: Any) -> Any:
    from pipeline.config import JudgeFile

    members = {"food": {"judge": RULES} | member, "other": {"judge": RULES}}
    return JudgeFile.model_validate({"judge": {"type": "panel", "members": members}}).judge


@pytest.mark.parametrize("change", [{"weight": -1.0}, {"axis": "x"}, {"veto_below": 0.5}, {"required": False}], ids=str)
def test_a_panels_identity_has_all_of_its_members(change: dict[str, Any]) -> None:
    assert judge_identity(_panel_config()) != judge_identity(_panel_config(**change))


def test_a_reward_models_identity_has_its_template_and_where_others_serve_it(tmp_path: Path) -> None:
    from pipeline.config import RewardModelJudge

    folder = reward_model(tmp_path / "rm")
    config = RewardModelJudge(type="reward_model", path=str(folder))
    before = judge_identity(config)
    assert judge_identity(config.model_copy(update={"token_budget": 99, "engine": "vllm"})) == before
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert judge_identity(config) != before
    served = [RewardModelJudge(type="reward_model", path="org/rm", base_url=f"http://{host}:1") for host in "ab"]
    assert judge_identity(served[0]) != judge_identity(served[1])


@pytest.mark.parametrize("kind", [{"type": "human", "votes": "v"}, {"type": "panel", "members": {"x": {"judge": {
    "type": "human", "votes": "v"}}}}], ids=["human", "panel"])  # fmt: skip
def test_people_cannot_evaluate(kind: dict[str, Any]) -> None:
    said = "'human' votes on a round's candidates, not on answers to held-out prompts; allowed: rules, callable"
    with pytest.raises(ConfigError, match=rf"evaluation\.judge: none is given, so \[judge\] would evaluate; {said}"):
        load_recipe(str(RECIPE), RECIPE.parent, [judge(**kind)])
    with pytest.raises(ConfigError, match=rf"evaluation\.judge: {said}"):
        load_recipe(str(RECIPE), RECIPE.parent, [f"evaluation.{judge(**kind)}"])
    load_recipe(str(RECIPE), RECIPE.parent, [judge(**kind), f"evaluation.{judge(**RULES)}"])


def test_what_is_read_is_never_written_over(ratchet: Callable[..., Said], tmp_path: Path) -> None:
    labels = Path(_labels(tmp_path / "labels.jsonl"))
    before = labels.read_text()
    for arguments in (("votes", "pairs", labels, labels), ("votes", "pairs", labels, tmp_path / "no" / "x.jsonl")):
        code, _, err = ratchet(*arguments)
        assert (code, err.count("\n"), labels.read_text()) == (DataError.exit_code, 1, before)
    foreign = tmp_path / "one-line.json"
    foreign.write_text('[{"prompt": "p", "a": "1", "b": "2"}]')
    code, _, err = ratchet("annotate", labels, "--votes", foreign)
    assert (code, foreign.read_text()[:2]) == (StoreError.exit_code, "[{"), err


def test_calibration_items_are_no_pairs(tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    with VoteStore(votes) as store:
        known, asked = compare("p", "x", "y", "first"), compare("p", "z", "w")
        store.add_tasks([known, asked])
        store.cast(*(Vote(task.id, "ann", "first", "first") for task in (known, asked)))
    (row,) = preferences(votes)
    assert {row["chosen"], row["rejected"]} == {"z", "w"}
