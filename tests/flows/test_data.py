"""Preference data without training: from fake endpoints to pairs, through kills, outages and a local model."""

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows import recipes
from flows.console import Console, round_rows
from flows.proposals import propose, propose_round
from flows.session import DataSession, Session
from flows.spending import estimates_table, of_data, of_proposers
from judges import Desk
from pipeline.calls.client import AHEAD
from pipeline.calls.limits import Waits
from pipeline.candidates import all_groups, asked, write_asked
from pipeline.config import DataConfig, ServedModel
from pipeline.errors import ConfigError, OverdueError, SamplingError
from pipeline.prompts import load_prompts
from pipeline.protocols import Sampler
from pipeline.recipe import load_data_recipe, load_recipe
from pipeline.runs import Run
from pipeline.store import Artifact, Draft, Spec
from pipeline.tables import candidates_table, read_pairs
from pipeline.types import Candidate, Group, Policy, Prompt
from tests.api_server import ApiServer
from tests.judges.asked import answers as rated
from tests.judges.replies import RATING
from tests.tiny_chat import chat_policy

from .conftest import RunSmall, served
from .small import RECIPE, ROOT, finished_files, store_of, until

QUESTIONS = 12
Body = Mapping[str, Any]
Make = Callable[..., dict[str, Any]]


def wordy(body: Body) -> str:
    return f"A long and patient answer to {body['messages'][-1]['content']}, number {body['seed']}."


def terse(body: Body) -> str:
    return f"No {body['seed']}."


def settings(folder: Path, models: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    questions = folder / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps({"prompt": f"question {n}", "id": f"q{n}"}) + "\n" for n in range(QUESTIONS))
    )
    return {
        "title": "Small data", "models": dict(models),
        "prompts": {"source": {"type": "file", "path": str(questions)}, "template": "chat"},
        "judge": {"type": "rules", "rules": {"long": {"type": "length", "minimum": 5}}},
        "limits": {"retries": 0, "threads": 1},
    } | more  # fmt: skip


def served_by(*servers: ApiServer, n: int = 2, **more: Any) -> dict[str, Any]:
    endpoints = [{"model": "m", "base_url": server.base_url, "tries": 2, "timeout": 5.0} for server in servers]
    return {"type": "server", "endpoints": endpoints, "n": n, **more}


@pytest.fixture
def make(server: str, lend: Callable[..., Sampler], monkeypatch: pytest.MonkeyPatch) -> Make:
    from flows.data import preference_data

    monkeypatch.setattr("flows.session.start_sampler", lend)

    def run(config: Mapping[str, Any], workspace: Path, name: str = "data") -> dict[str, Any]:
        with served(server):
            return preference_data(DataConfig(**config), name, str(workspace), quiet=True)

    return run


@pytest.fixture(scope="module")
def endpoints() -> Iterator[tuple[ApiServer, ApiServer]]:
    with ApiServer(wordy) as one, ApiServer(terse) as other:
        yield one, other


def artifact(status: Mapping[str, Any], stage: str, number: int = 0, folder: str = "") -> Artifact:
    return store_of(status).get(folder or stage, status["rounds"][number]["artifacts"][stage])


# --------------------------------------------------------------------------------------------------- end to end
@pytest.fixture(scope="module")
def done(
    server: str, endpoints: tuple[ApiServer, ApiServer], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two rounds of two models, and what they were made from."""
    from flows.data import preference_data

    folder = tmp_path_factory.mktemp("data")
    models = {"wordy": served_by(endpoints[0]), "terse": served_by(endpoints[1], n=3)}
    config = settings(folder, models, rounds=2)
    config["prompts"]["per_round"] = 6
    with served(server):
        return preference_data(DataConfig(**config), "data", str(folder), quiet=True), config


def test_pairs_come_out_with_the_models_named(done: tuple[dict[str, Any], dict[str, Any]]) -> None:
    status, _ = done
    assert (status["state"], status["best_round"], status["policy"]) == ("complete", -1, None)
    windows = []
    for number, entry in enumerate(status["rounds"]):
        assert (entry["pairs"], entry["groups"], entry["dropped"]) == (6, 6, {})
        assert (entry["policy_in"], entry["evaluation"], entry["gate"]["decision"]) == ("", {}, "none")
        pairs = read_pairs(artifact(status, "pairs", number).table())
        for pair in pairs:
            assert (pair.chosen.model, pair.rejected.model) == ("wordy", "terse")
            assert pair.prompt.token_ids == pair.chosen.token_ids == pair.rejected.token_ids == ()
            assert pair.chosen.text == f"A long and patient answer to {pair.prompt.text}, number {pair.chosen.seed}."
            assert pair.rejected.text == f"No {pair.rejected.seed}."
            assert pair.score_chosen > pair.score_rejected
        assert len({pair.id for pair in pairs}) == 6
        windows.append({pair.prompt.id for pair in pairs})
    assert windows[0] | windows[1] == {f"q{number}" for number in range(QUESTIONS)}


def test_a_group_holds_all_models_candidates_in_order_each_with_its_own_seed(
    done: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    status, _ = done
    for group in all_groups(artifact(status, "candidates")):
        assert [each.index for each in group.candidates] == [0, 1, 2, 3, 4]
        assert [each.model for each in group.candidates] == ["wordy"] * 2 + ["terse"] * 3
        assert len({each.seed for each in group.candidates}) == 5


def test_a_run_that_is_done_asks_nothing_and_writes_nothing_again(
    done: tuple[dict[str, Any], dict[str, Any]], endpoints: tuple[ApiServer, ApiServer], make: Make
) -> None:
    status, config = done
    workspace = Path(status["workspace"])
    asked, files = [len(each.calls) for each in endpoints], finished_files(workspace)
    assert make(config, workspace) == status
    assert [len(each.calls) for each in endpoints] == asked
    assert finished_files(workspace) == files


def test_another_model_costs_its_own_calls_only(
    done: tuple[dict[str, Any], dict[str, Any]], endpoints: tuple[ApiServer, ApiServer], make: Make
) -> None:
    status, config = done
    with ApiServer(lambda body: "Three words exactly") as third:
        asked = [len(each.calls) for each in endpoints]
        more = config | {"models": config["models"] | {"third": served_by(third, n=1)}}
        with pytest.raises(ConfigError, match="models.third"):
            make(more, Path(status["workspace"]))
        wider = make(more, Path(status["workspace"]), "wider")
        assert [len(each.calls) for each in endpoints] == asked
        assert len(third.calls) == QUESTIONS
    assert [entry["pairs"] for entry in wider["rounds"]] == [6, 6]


def test_people_see_the_run_like_any_other(
    done: tuple[dict[str, Any], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = done
    Console(to_stdout=True).run_table(Run.existing(Path(status["workspace"]), "data").status())
    said = capsys.readouterr().out
    assert "complete" in said and "6/6" in said
    assert "missing" not in said and "left out" not in said
    rows = dict(round_rows(status["rounds"][0]))
    assert rows["pairs"] == "6 kept of 6 groups; dropped: none"
    assert "gate" not in rows and "propose" in rows["seconds"]
    page = (Path(status["directory"]) / "report.html").read_text()
    assert "Small data" in page and "A long and patient answer" in page
    links = Path(status["directory"]) / "links" / "round-000"
    assert {link.name for link in links.iterdir()} == {
        "candidates", "judgments", "pairs", "proposals-terse", "proposals-wordy"
    }  # fmt: skip


def test_every_command_that_reads_runs_takes_it(
    done: tuple[dict[str, Any], dict[str, Any]], ratchet: Callable[..., Any], tmp_path: Path
) -> None:
    from flows.annotation import tasks_of

    status, _ = done
    at = ("--workspace", status["workspace"])
    code, out, _ = ratchet("status", "data", "--json", *at)
    assert (code, json.loads(out)["rounds"]) == (0, status["rounds"])
    code, out, _ = ratchet("pair", "data", "--set", "pairing.rule=all_pairs", "--json", *at)
    assert code == 0 and [entry["pairs"] for entry in json.loads(out)["rounds"]] == [6, 6]
    pair = read_pairs(artifact(status, "pairs").table())[0]
    code, out, _ = ratchet("trace", pair.id, *at)
    assert code == 0 and "wordy" in out and pair.prompt.text in out
    code, _, said = ratchet("export", "data", "--to", tmp_path / "exported", "--quiet", *at)
    assert code == 0, said
    assert list((tmp_path / "exported").rglob("*.parquet"))
    assert ratchet("report", "data", *at)[0] == 0
    assert tasks_of("data:1", Path(status["workspace"]), per_prompt=1, seed=0)


def test_its_pairs_are_trained_on_as_text(
    done: tuple[dict[str, Any], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from flows.offline import train
    from flows.request import ask
    from pipeline.recipe import load_trainer

    status, _ = done
    policy = chat_policy(tmp_path_factory.mktemp("chat") / "policy")
    trainer = load_trainer(None, ["batch_size=4", "learning_rate=1e-3", "epochs=1"])
    workspace = Path(status["workspace"])
    result = train(ask(["data"], str(policy), trainer, workspace), Console(quiet=True))
    assert result["state"] == "complete"
    assert result["data"][0]["examples"] == QUESTIONS
    assert result["data"][0]["dropped"] == {}
    with pytest.raises(ConfigError, match="makes data, and no policy"):
        ask(["data"], "data", trainer, workspace)


def test_what_it_says_it_will_cost_is_what_it_asks(
    done: tuple[dict[str, Any], dict[str, Any]], endpoints: tuple[ApiServer, ApiServer], tmp_path: Path
) -> None:
    status, config = done
    fresh = of_data(DataConfig(**config), Desk(str(tmp_path / "ledger.sqlite"), "estimate"))
    assert [(each.model, each.calls, each.answered) for each in fresh] == [
        ("m", 2 * QUESTIONS, 0), ("m", 3 * QUESTIONS, 0),
    ]  # fmt: skip
    assert not (tmp_path / "ledger.sqlite").exists()
    again = of_data(DataConfig(**config), Desk(f"{status['workspace']}/ledger.sqlite", "estimate"))
    assert [each.answered for each in again] == [each.calls for each in again]


def test_it_says_what_goes_by_batch_and_what_is_answered_at_once(tmp_path: Path) -> None:
    with ApiServer(wordy) as one:
        models = {"quick": served_by(one, n=1), "batched": served_by(one, n=1)}
        models["batched"]["endpoints"][0] |= {"model": "b", "batch": True}
        rating = {"model": "judge", "base_url": one.base_url, "batch": True}
        judge = {"type": "pointwise", "max_tokens": 50, "endpoints": [rating]}
        config = DataConfig(**settings(tmp_path, models, judge=judge))
        found = of_data(config, Desk(str(tmp_path / "ledger.sqlite"), "estimate"))
        assert [(each.model, each.batch) for each in found] == [("m", False), ("b", True), ("judge", True)]
        assert not one.calls
    lines = [line.split() for line in shown(found).splitlines()]
    assert [line[:3] for line in lines[1:4]] == [["m", "at", "once"], ["b", "by", "batch"], ["judge", "by", "batch"]]
    assert "answers come within a day" in " ".join(word for line in lines[4:] for word in line)
    assert "day" not in shown(found[:1])


def shown(found: Any) -> str:
    terminal = Console(to_stdout=True).terminal
    terminal.width = 200
    with terminal.capture() as captured:
        terminal.print(estimates_table(found))
    return captured.get()


# --------------------------------------------------------------------------------------------------- outages
def test_a_server_that_is_down_leaves_its_share_to_the_other(make: Make, tmp_path: Path) -> None:
    with ApiServer(terse) as gone:
        pass
    with ApiServer(wordy) as there, ApiServer(terse) as other:
        models = {"wordy": served_by(gone, there), "terse": served_by(other)}
        status = make(settings(tmp_path, models), tmp_path)
        assert len(there.calls) == 2 * QUESTIONS
    assert status["rounds"][0]["pairs"] == QUESTIONS


def test_calls_given_up_make_groups_smaller_and_are_counted_by_model_and_reason(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sometimes(body: Body) -> Any:
        return {"choices": []} if body["messages"][-1]["content"] in ("question 3", "question 5") else wordy(body)

    with ApiServer(sometimes) as one, ApiServer(terse) as other:
        models = {"wordy": served_by(one, n=2), "terse": served_by(other, n=1)}
        status = make(settings(tmp_path, models), tmp_path)
    candidates, proposals = artifact(status, "candidates"), artifact(status, "proposals-wordy", folder="proposals")
    assert proposals.manifest["failed"] == {"no_choice": 4}
    assert candidates.info["missing"] == {"wordy": {"no_choice": 4}, "terse": {"too_few": 2}}
    assert candidates.info["prompts_left_out"] == 2
    assert {prompt.id for prompt in asked(candidates)} == {f"q{n}" for n in range(QUESTIONS)} - {"q3", "q5"}
    assert candidates.manifest["rows"] + candidates.manifest["dropped"]["too_few"] == 3 * QUESTIONS - 4
    entry = status["rounds"][0]
    assert (entry["groups"], entry["pairs"], entry["left_out"]) == (QUESTIONS - 2, QUESTIONS - 2, 2)
    assert entry["missing"] == candidates.info["missing"]
    Console(to_stdout=True).run_table(status)
    said = capsys.readouterr().out
    assert "round 0, left out: 2 prompts, of which too few candidates came" in said
    assert "round 0, missing: candidates of wordy: 4 no_choice; terse: 2 too_few" in said
    assert "Missing of wordy: no_choice" in (Path(status["directory"]) / "report.html").read_text()


def test_too_many_calls_given_up_stop_the_run_and_it_goes_on_where_it_was(make: Make, tmp_path: Path) -> None:
    with ApiServer(wordy) as one, ApiServer(terse, faults={"server_error": 0.8}) as other:
        config = settings(tmp_path, {"wordy": served_by(one), "terse": served_by(other)})
        with pytest.raises(SamplingError, match="model 'terse'.*limits.unanswered"):
            make(config, tmp_path)
        failed = Run(tmp_path, "data").status()
        assert failed["state"] == "failed" and "limits.unanswered" in failed["reason"]
        asked_before, answered = len(one.calls), len(other.answered)
        other.faults = {}
        status = make(config, tmp_path)
        assert len(one.calls) == asked_before
        assert len(other.answered) == 2 * QUESTIONS >= answered
    assert status["rounds"][0]["pairs"] == QUESTIONS


def test_models_are_asked_side_by_side_and_come_out_in_the_recipes_order(make: Make, tmp_path: Path) -> None:
    with ApiServer(wordy) as one, ApiServer(terse) as other:
        one.gate = other.gate = lambda: bool(one.calls and other.calls)  # in turn, neither would ever be answered
        status = make(settings(tmp_path, {"wordy": served_by(one), "terse": served_by(other)}), tmp_path)
    for group in all_groups(artifact(status, "candidates")):
        assert [each.model for each in group.candidates] == ["wordy"] * 2 + ["terse"] * 2


def test_a_model_that_refuses_costs_the_others_nothing(make: Make, tmp_path: Path) -> None:
    with ApiServer(terse) as refusing, ApiServer(wordy) as slow:
        refusing.script.extend(["unauthorised"] * 4 * QUESTIONS)
        slow.gate = lambda: bool(refusing.calls)
        config = settings(tmp_path, {"wordy": served_by(slow), "terse": served_by(refusing)})
        with pytest.raises(SamplingError, match="model 'terse': m at .*Incorrect API key"):
            make(config, tmp_path)
        assert len(slow.answered) == 2 * QUESTIONS
        refusing.script.clear()
        status = make(config, tmp_path)
        assert len(slow.calls) == 2 * QUESTIONS
    assert status["rounds"][0]["pairs"] == QUESTIONS


def test_of_several_that_fail_the_first_in_the_recipe_is_raised(make: Make, tmp_path: Path) -> None:
    with ApiServer(wordy) as one, ApiServer(terse) as other:
        for each in (one, other):
            each.script.extend(["unauthorised"] * 4 * QUESTIONS)
        one.gate = lambda: bool(other.answered or other.calls)
        with pytest.raises(SamplingError, match="model 'wordy'") as raised:
            make(settings(tmp_path, {"wordy": served_by(one), "terse": served_by(other)}), tmp_path)
    assert ["model 'terse'" in note for note in raised.value.__notes__] == [True]


KILLED = """
import json, sys
from flows.data import preference_data
from pipeline.config import DataConfig, ServedModel
preference_data(DataConfig(**json.loads(sys.argv[1])), "data", sys.argv[2], quiet=True)
"""


TERMINATED = f"""
from flows import environment
environment.leave_on_signals()
{KILLED}
"""


def test_resume_after_kill_repeats_no_paid_call(server: str, make: Make, tmp_path: Path) -> None:
    judge = {"type": "pointwise", "max_tokens": 50}
    with ApiServer(wordy, latency=0.05) as one, ApiServer(terse, latency=0.05) as other, ApiServer(
        rated(RATING, lambda text: "9" if text.startswith("A long") else "2"), latency=0.05
    ) as rater:  # fmt: skip
        servers = (one, other, rater)
        models = {name: served_by(each) for name, each in (("wordy", one), ("terse", other))}
        for model in models.values():
            model["endpoints"][0]["concurrency"] = 2
        rating = {"model": "judge", "base_url": rater.base_url, "concurrency": 2, "structured": "json_schema"}
        config = settings(tmp_path, models, judge=judge | {"endpoints": [rating]})
        command = [sys.executable, "-c", KILLED, json.dumps(config), str(tmp_path)]
        environment = os.environ | {"PREFECT_API_URL": server, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment, cwd=ROOT) as process:
            until(lambda: len(rater.answered) >= QUESTIONS, process)
            os.kill(process.pid, signal.SIGKILL)
        status = make(config, tmp_path)
        wanted = {id(one): 2 * QUESTIONS, id(other): 2 * QUESTIONS, id(rater): 4 * QUESTIONS}
        for each in servers:
            # Twice can only be what was on its way, not yet in the ledger, when the process was killed.
            assert wanted[id(each)] <= len(each.answered) <= wanted[id(each)] + math.ceil(2 * AHEAD)
        asked = [len(each.calls) for each in servers]
        assert make(config, tmp_path) == status
        assert [len(each.calls) for each in servers] == asked
    assert status["rounds"][0]["pairs"] == QUESTIONS


def test_sigterm_ends_it_at_once_while_models_are_asked(server: str, tmp_path: Path) -> None:
    """Not after all models have answered, which by batch may be tomorrow."""
    with ApiServer(wordy, latency=600) as one, ApiServer(terse, latency=600) as other:
        models = {name: served_by(each) for name, each in (("wordy", one), ("terse", other))}
        for model in models.values():
            model["endpoints"][0]["timeout"] = 900.0
        command = [sys.executable, "-c", TERMINATED, json.dumps(settings(tmp_path, models)), str(tmp_path)]
        environment = os.environ | {"PREFECT_API_URL": server, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment, cwd=ROOT) as process:
            until(lambda: one.calls and other.calls, process)
            process.terminate()
            try:
                assert process.wait(60) == 128 + signal.SIGTERM
            finally:
                process.kill()


def test_a_stages_time_ends_the_waiting_of_models_asked_side_by_side_and_what_was_answered_is_kept(
    make: Make, tmp_path: Path
) -> None:
    import openai  # noqa: F401 (it takes longer than three answers)

    with ApiServer(wordy) as one, ApiServer(terse) as silent, ApiServer(terse) as other:
        silent.gate = other.gate = lambda: False
        models = {name: served_by(each, n=1) for name, each in (("s", silent), ("wordy", one), ("o", other))}
        for model in models.values():
            model["endpoints"][0]["timeout"] = 900.0
        config = settings(tmp_path, models)
        with pytest.raises(OverdueError) as raised:
            make(config | {"limits": config["limits"] | {"stage_timeout": 4.0}}, tmp_path)
        said = "takes longer than limits.stage_timeout = 4 seconds. What is finished is kept: set more, and run"
        assert str(raised.value).startswith(f"stage 'ask s' {said}")
        assert [note.startswith(f"and stage 'ask o' {said}") for note in raised.value.__notes__] == [True]
        assert Run(tmp_path, "data").status()["state"] == "failed"
        assert not any(call.answered for call in silent.calls)
        silent.gate = other.gate = None
        status = make(config, tmp_path)
        assert len(one.calls) == QUESTIONS  # nothing twice
    assert status["rounds"][0]["pairs"] == QUESTIONS


def test_all_shards_of_a_batched_model_are_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Waits(gather=0.3, poll=0.05)
    monkeypatch.setattr("pipeline.calls.limits.Waits", lambda: quick)
    monkeypatch.setattr("pipeline.candidates.SHARD", 1)
    with ApiServer(wordy) as one:
        model = served_by(one)
        model["endpoints"][0]["batch"] = True
        config = DataConfig(**settings(tmp_path, {"wordy": model}))
        session = DataSession(config, Run(tmp_path, "batched"), Console(quiet=True))
        asked = load_prompts(config.prompts, None).rounds
        made = propose(session, "wordy", ServedModel(**model), asked, 0)
        assert (len(made.manifest["shards"]), made.manifest["rows"]) == (QUESTIONS, 2 * QUESTIONS)
        assert len(one.batches) == 1


# --------------------------------------------------------------------------------------------------- local models
def test_a_local_model_answers_beside_a_served_one_and_its_words_alone_are_kept(make: Make, tmp_path: Path) -> None:
    policy = chat_policy(tmp_path / "policy")
    with ApiServer(wordy) as one:
        models = {"wordy": served_by(one, n=1), "own": {"type": "local", "path": str(policy), "n": 2, "max_tokens": 8}}
        # The very settings of ``small.toml``, so that its engine is lent. The questions just fit.
        sampling = {"engine": "transformers", "dtype": "float32", "max_model_len": 32, "kv_cache_mib": 64}
        config = settings(tmp_path, models, sampling=sampling)
        questions = Path(config["prompts"]["source"]["path"])
        questions.write_text(questions.read_text() + json.dumps({"prompt": "long " * 40, "id": "long"}) + "\n")
        status = make(config, tmp_path)
    candidates = artifact(status, "candidates")
    for group in all_groups(candidates):
        assert [each.model for each in group.candidates] == ["wordy", "own", "own"]
        assert all(each.token_ids == () and each.cumulative_logprob is None for each in group.candidates)
        assert len({each.seed for each in group.candidates}) == 3
    assert candidates.info["missing"] == {"wordy": {"too_few": 1}, "own": {"prompt_too_long": 2}}
    assert status["rounds"][0]["groups"] == QUESTIONS
    drawn = artifact(status, "proposals-own", folder="candidates")
    assert all(each.token_ids for group in all_groups(drawn) for each in group.candidates)


def test_a_local_model_without_a_chat_template_is_named_before_others_are_paid(make: Make, tmp_path: Path) -> None:
    policy = chat_policy(tmp_path / "policy")
    (policy / "chat_template.jinja").unlink()
    with ApiServer(wordy) as one:
        models = {"wordy": served_by(one), "own": {"type": "local", "path": str(policy), "n": 2}}
        with pytest.raises(ConfigError, match="models.own .*has no chat template"):
            make(settings(tmp_path, models), tmp_path)
        assert not one.calls


# --------------------------------------------------------------------------------------------------- recipes
def test_the_recipe_is_made_of_fakes_alone(make: Make, tmp_path: Path) -> None:
    folder = Path(recipes.__file__).parent / "data"
    questions = Path(settings(tmp_path, {})["prompts"]["source"]["path"])
    with ApiServer(wordy) as one, ApiServer(terse) as other, ApiServer(
        rated(RATING, lambda text: "9" if text.startswith("A long") else "2")
    ) as rater:  # fmt: skip
        prices = "price_in=1.0, price_out=1.0"
        config = load_data_recipe(
            "compare-models",
            folder,
            [
                f"vars.prompts={questions}", "vars.first=a", "vars.second=b", f"vars.address={one.base_url}",
                f"vars.second_address={other.base_url}", f"vars.judge_address={rater.base_url}",
                f'judge.endpoints=[{{model="j", base_url="{rater.base_url}", structured="json_schema", {prices}}}]',
            ],
        )  # fmt: skip
        status = make(config.model_dump(), tmp_path)
        assert len(one.calls) == len(other.calls) == 4 * QUESTIONS
        assert len(rater.calls) == 8 * QUESTIONS
    assert status["rounds"][0]["pairs"] == QUESTIONS


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"models": {"a": {"type": "local", "path": "x", "n": 1}}}, "n of all models together at least 2"),
        ({"sampling": {"temperature": 0.5}}, "sampling.temperature has no effect on data"),
        ({"sampling": {"engine": "server", "endpoints": [{"model": "m"}]}}, "sampling.endpoints has no effect"),
        ({"pairing": {"replay": {"share": 0.5}}}, "pairing.replay has no effect"),
        ({"models": {"a/b": {"type": "local", "path": "x"}}}, "models"),
        ({"prompts": {"max_tokens": 512}}, "prompts.max_tokens has no effect on data"),
        (
            {"models": {"a": {"type": "local", "path": "x", "system": "Be brief."}}, "prompts": {"template": "plain"}},
            """models.a.system: 'Be brief.' needs prompts.template = "chat\"""",
        ),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    config = settings(tmp_path, {"a": {"type": "local", "path": "x"}})
    config |= more | {"prompts": config["prompts"] | more.get("prompts", {})}
    with pytest.raises(ValueError, match=said):
        DataConfig(**config)
    assert DataConfig(**DataConfig(**settings(tmp_path, {"a": {"type": "local", "path": "x"}})).model_dump(mode="json"))


# --------------------------------------------------------------------------------------------------- in rounds
def test_proposers_of_a_round_are_asked_side_by_side(tmp_path: Path) -> None:
    policy = Policy("0" * 64, chat_policy(tmp_path / "policy"))
    with ApiServer(lambda body: "Yes.") as one, ApiServer(lambda body: "No.") as other:
        one.gate = other.gate = lambda: bool(one.calls and other.calls)
        models = {"wordy": ServedModel(**served_by(one)), "terse": ServedModel(**served_by(other, n=1))}
        config = load_recipe(str(RECIPE), RECIPE.parent, [])
        config = config.model_copy(
            update={"sampling": config.sampling.model_copy(update={"proposers": models, "max_model_len": None})}
        )
        session = Session(config, Run(tmp_path, "proposed"), Console(quiet=True))
        prompts = [Prompt(f"q{number}", f"question {number}", (1, 2)) for number in range(4)]
        own = session.store.make(Spec("candidates", 1), lambda draft: _sampled(draft, prompts))
        made = propose_round(session, policy, own, prompts, 0)
    assert list(made) == ["sampled", "proposals-wordy", "proposals-terse", "candidates"]
    for group in all_groups(made["candidates"]):
        assert [each.model for each in group.candidates] == ["", "wordy", "wordy", "terse"]


def _sampled(draft: Draft, prompts: Sequence[Prompt]) -> Artifact:
    groups = [Group(prompt, (Candidate(0, (5, 2), "own", "stop", 1),)) for prompt in prompts]
    write_asked(draft, prompts)
    draft.commit_shard(0, candidates_table(groups))
    return draft.finish({"policy": "0" * 64})


def test_proposers_candidates_come_after_the_policys_in_the_policys_ids(run_small: RunSmall, finished: Any) -> None:
    replies = [" pizza", " pizza" * 40, " PIZZA €"]

    def proposed(body: Body) -> str:
        return replies[body["seed"] % 3]

    with ApiServer(proposed) as one:
        proposers = f'{{big={{type="server", n=2, endpoints=[{{model="m", base_url="{one.base_url}"}}]}}}}'
        overrides = (f"sampling.proposers={proposers}", "rounds=1", "trainer.epochs=1")
        config = load_recipe(str(RECIPE), RECIPE.parent, overrides)
        (cost,) = of_proposers(config, Desk("nowhere", "estimate"))
        status = run_small("proposed", *overrides)
        assert len(one.calls) == 80
        assert cost.calls >= 80
    (entry,) = status["rounds"]
    # The policy's own are the very artifact of the run without proposers.
    assert entry["artifacts"]["sampled"] == finished["rounds"][0]["artifacts"]["candidates"]
    own = artifact(status, "sampled", folder="candidates")
    candidates = artifact(status, "candidates")
    lengths = Counter[str]()
    sampled = {group.prompt.id: group.candidates for group in all_groups(own)}
    for group in all_groups(candidates):
        assert group.candidates[:4] == sampled[group.prompt.id]
        for place, each in enumerate(group.candidates):
            assert each.index == place
            assert each.model == ("big" if place >= 4 else "")
            assert each.token_ids
            lengths[each.text if each.model else ""] += 1
    lost = candidates.info["missing"]["big"]
    assert lost.keys() == {"special_token", "too_long"}
    assert lengths[replies[0]] + lost["special_token"] + lost["too_long"] == 80
    assert candidates.manifest["rows"] == 4 * 40 + lengths[replies[0]]
    assert {"sample", "propose"} <= entry["seconds"].keys()
    assert entry["training"]["loss"] > 0
    chosen = [pair.chosen.model for pair in read_pairs(artifact(status, "pairs").table())]
    assert "big" in chosen
