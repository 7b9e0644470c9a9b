"""One run from the command to the report, on real vLLM."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.console import round_rows
from pipeline.policy import read_policy

from .conftest import RunSmall
from .small import LONGER, Ratchet, finished_files, store_of

STAGES = {"sample", "judge", "pair", "reference", "train", "evaluate", "engine"}
FIGURES = {
    *(f"{name}{end}" for name in ("win_rate", "win_rate_vs_initial", "score_delta") for end in ("", "_low", "_high")),
    "score_mean", "kl", "length", "length_ratio", "truncated", "probes",
}  # fmt: skip


@pytest.fixture(scope="module")
def status(by_command: Ratchet) -> dict[str, Any]:
    return by_command.status()


def test_the_status_says_of_every_round_what_it_did(status: dict[str, Any]) -> None:
    assert (status["state"], status["rounds_planned"]) == ("complete", 2)
    assert [entry["round"] for entry in [status["initial"], *status["rounds"]]] == [-1, 0, 1]
    for entry in status["rounds"]:
        assert entry["pairs"] > 0
        assert entry["pairs"] + sum(entry["dropped"].values()) == entry["groups"]
        assert entry["evaluation"].keys() >= FIGURES
        assert entry["evaluation"]["probes"].keys() == {"pizza", "ravin_kl"}
        assert entry["gate"]["decision"] == "promote"
        initial = {"initial_reference"} if entry["round"] else set()  # in round 0 it is the reference
        assert entry["seconds"].keys() == STAGES | initial
        assert entry["training"]["loss"] > 0
    assert status["initial"]["evaluation"].keys() >= FIGURES


def test_each_round_starts_from_the_last_and_ends_in_another_policy(status: dict[str, Any]) -> None:
    first, second = status["rounds"]
    assert first["policy_in"] == status["initial"]["policy_out"]
    assert second["policy_in"] == first["policy_out"]
    assert second["policy_out"] == status["policy"]["digest"]
    assert len({first["policy_in"], first["policy_out"], second["policy_out"]}) == 3


def test_the_policy_learns_what_the_judge_likes(status: dict[str, Any]) -> None:
    before, after = (entry["evaluation"] for entry in (status["initial"], status["rounds"][-1]))
    assert after["probes"]["pizza"] > before["probes"]["pizza"] + 0.2
    assert after["score_delta_low"] > 0
    assert after["probes"]["ravin_kl"] > 0.1


def test_every_key_resolves_and_links_name_the_artifacts(status: dict[str, Any]) -> None:
    store = store_of(status)
    stages = {"policy": "policy", "answers": "candidates", "initial_reference": "reference"}
    for entry in [status["initial"], *status["rounds"]]:
        for role, key in entry["artifacts"].items():
            artifact = store.get(stages.get(role, role), key)
            link = Path(status["directory"]) / "links" / f"round-{entry['round']:03d}" / role
            if entry["round"] >= 0 and role != "answers":
                assert link.resolve() == artifact.path


def test_the_final_policy_is_an_ordinary_checkpoint(status: dict[str, Any]) -> None:
    path = Path(status["directory"]) / "links" / "policy"
    assert read_policy(path).digest == status["policy"]["digest"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    ids = tokenizer("ravin likes", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        said = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True).strip() == "pizza"


def test_pairs_hold_the_ids_that_the_engine_produced(status: dict[str, Any]) -> None:
    store = store_of(status)
    prompts, _ = store.get("prompts", status["initial"]["artifacts"]["prompts"]).tables()
    prompt_ids = {row["prompt_id"]: row["token_ids"] for row in prompts.to_pylist()}
    for entry in status["rounds"]:
        drawn = {
            (row["prompt_id"], row["index"]): row
            for row in store.get("candidates", entry["artifacts"]["candidates"]).table().to_pylist()
        }
        scores = {
            row["prompt_id"]: row["scores"]
            for row in store.get("judgments", entry["artifacts"]["judgments"]).table().to_pylist()
        }
        pairs = store.get("pairs", entry["artifacts"]["pairs"]).table().to_pylist()
        assert len(pairs) == entry["pairs"]
        for pair in pairs:
            prompt = pair["prompt_id"]
            assert pair["prompt_token_ids"] == prompt_ids[prompt]
            for side in ("chosen", "rejected"):
                candidate = drawn[prompt, pair[f"{side}_index"]]
                for column in ("token_ids", "text", "seed", "finish_reason"):
                    assert pair[f"{side}_{column}"] == candidate[column]
                assert pair[f"score_{side}"] == scores[prompt][pair[f"{side}_index"]]
            assert pair["score_chosen"] == max(scores[prompt]) > min(scores[prompt]) == pair["score_rejected"]


def test_the_report_names_every_round(status: dict[str, Any]) -> None:
    page = (Path(status["directory"]) / "report.html").read_text()
    assert all(f"Round {entry['round']}" in page for entry in status["rounds"])
    assert status["title"] in page


def test_the_terminal_saw_every_stage_and_no_traceback(status: dict[str, Any], by_command: Ratchet) -> None:
    said = by_command.err.read_text()
    assert "round 1 of 2" in said
    assert all(f"✓ {stage}" in said for stage in ("base policy", "prompts", *(STAGES - {"engine"})))
    assert [said.count(f"✓ {pass_}  ") for pass_ in ("reference", "reference π₀")] == [2, 1]  # in round 0 they are one
    assert "Traceback" not in said


def test_the_same_run_again_does_nothing_twice(
    status: dict[str, Any], by_command: Ratchet, run_small: RunSmall
) -> None:
    log = Path(status["directory"]) / "engine.log"
    done, logged = finished_files(by_command.workspace), log.stat().st_size
    assert done
    assert run_small("small", *LONGER, workspace=by_command.workspace) == status
    assert finished_files(by_command.workspace) == done
    assert log.stat().st_size == logged  # no engine was started


def test_a_guard_ends_a_training_early_and_the_round_says_so_where_people_look(run_small: RunSmall) -> None:
    status = run_small("guarded", "trainer.guards.margin=0.05", "rounds=1")
    (entry,) = status["rounds"]
    training = entry["training"]
    assert training["stopped"] == (
        f"the mean reward margin is {training['rewards/margins']:.3g}; trainer.guards.margin allows 0.05"
    )
    assert ("training", f"ended at step {training['step']}: {training['stopped']}") in round_rows(entry)
    page = (Path(status["directory"]) / "report.html").read_text()
    assert training["stopped"] in page and "Ended early" in page
    train = store_of(status).get("train", entry["artifacts"]["train"])
    steps = [json.loads(line) for line in (train.path / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, training["step"] + 1))
    assert entry["gate"]["decision"] in ("promote", "stop")  # the policy as it was then is judged like any other


def test_held_out_prompts_are_answered_while_a_policy_is_trained(finished: dict[str, Any]) -> None:
    for entry in finished["rounds"]:
        train = store_of(finished).get("train", entry["artifacts"]["train"])
        samples = [json.loads(line) for line in (train.path / "samples.jsonl").read_text().splitlines()]
        last = [sample["prompt"] for sample in samples if sample["step"] == entry["training"]["step"]]
        assert len(last) == len(set(last)) == 4
        assert list(train.path.glob("tensorboard/events.*"))
