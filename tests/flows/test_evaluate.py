"""What an evaluation says where the answer is known beforehand."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from flows.console import Console, round_rows
from pipeline.policy import read_policy
from pipeline.tables import CANDIDATES
from tests.tiny import naive_logprobs

from .conftest import RunSmall
from .small import store_of

ABSTAIN = (
    "def score(prompt: str, completions: list[str]) -> list[float | None]:\n    return [None] * len(completions)\n"
)


def test_the_initial_policy_against_itself_is_a_draw(finished: dict[str, Any]) -> None:
    figures = finished["initial"]["evaluation"]
    for name in ("win_rate", "win_rate_vs_initial"):
        assert [figures[key] for key in (name, f"{name}_low", f"{name}_high")] == [0.5, 0.5, 0.5]
    assert (figures["score_delta"], figures["kl"], figures["probes"]["ravin_kl"]) == (0.0, 0.0, 0.0)
    assert figures["length_ratio"] == 1.0
    assert (figures["prompts"], figures["samples"]) == (20, 40)
    assert figures["judge_labelled"] is True


def test_kl_and_length_are_those_of_the_answers_by_the_plainest_computation(finished: dict[str, Any]) -> None:
    """From the answers in the store alone: log p(y) under both policies, one sequence at a time."""
    entry = finished["rounds"][-1]
    store = store_of(finished)
    answers = store.get("candidates", entry["artifacts"]["answers"]).table()
    _, prompts = store.get("prompts", finished["initial"]["artifacts"]["prompts"]).tables()
    ids = {row["prompt_id"]: row["token_ids"] for row in prompts.to_pylist()}
    rows = answers.to_pylist()
    assert answers.schema.equals(CANDIDATES)
    assert {row["prompt_id"] for row in rows} == set(ids)

    links = Path(finished["directory"]) / "links"
    totals = []
    for policy in ("policy", "initial-policy"):
        sequences = [[*ids[row["prompt_id"]], *row["token_ids"]] for row in rows]
        every = naive_logprobs(read_policy(links / policy), sequences)
        totals.append([sum(logps[len(ids[row["prompt_id"]]) - 1 :]) for logps, row in zip(every, rows, strict=True)])
    kl = sum(new - old for new, old in zip(*totals, strict=True)) / len(rows)
    assert entry["evaluation"]["kl"] == pytest.approx(kl, abs=1e-3)
    assert entry["evaluation"]["length"] == sum(len(row["token_ids"]) for row in rows) / len(rows)
    tokenizer = AutoTokenizer.from_pretrained(links / "policy")
    assert all(tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["text"] for row in rows)


def test_every_policy_answers_with_the_same_draws(finished: dict[str, Any]) -> None:
    store = store_of(finished)
    entries = [finished["initial"], *finished["rounds"]]
    drawn = [store.get("candidates", entry["artifacts"]["answers"]).table() for entry in entries]
    assert all(table["seed"].equals(drawn[0]["seed"]) for table in drawn)
    assert not drawn[0]["text"].equals(drawn[-1]["text"])


@pytest.fixture(scope="module")
def abstained(run_small: RunSmall, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run whose held-out judge never says anything, and whose gate asks it."""
    judge = tmp_path_factory.mktemp("judge") / "abstain.py"
    judge.write_text(ABSTAIN)
    return run_small(
        "abstained", "evaluation.judge.type=callable", f"evaluation.judge.call.function={judge}:score",
        'gate.require=["win_rate >= 0", "kl <= 100"]', "gate.on_failure=rollback",
    )  # fmt: skip


def test_a_held_out_judge_that_always_abstains_leaves_figures_empty_and_the_gate_closed(
    abstained: dict[str, Any],
) -> None:
    assert abstained["state"] == "complete"
    assert abstained["initial"]["evaluation"]["win_rate"] is None
    for entry in abstained["rounds"]:
        figures = entry["evaluation"]
        assert {figures[name] for name in ("win_rate", "win_rate_low", "score_mean", "score_delta")} == {None}
        assert figures["kl"] >= 0
        assert figures["judge_labelled"] is False
        assert entry["gate"]["decision"] == "rollback"
        assert entry["gate"]["reason"] == "win_rate >= 0 does not hold (not known)"
        assert dict(round_rows(entry))["score"] == "not known: no sample was judged"
    Console(quiet=True).run_table(abstained)


def test_a_rolled_back_round_is_followed_by_fresh_samples_of_the_last_promoted_policy(
    abstained: dict[str, Any],
) -> None:
    initial = abstained["initial"]["policy_out"]
    first, second = abstained["rounds"]
    assert first["policy_in"] == second["policy_in"] == abstained["policy"]["digest"] == initial
    assert abstained["best_round"] == -1
    assert len({initial, first["policy_out"], second["policy_out"]}) == 3
    assert read_policy(Path(abstained["directory"]) / "links" / "policy").digest == initial
    store = store_of(abstained)
    drawn = [store.get("candidates", entry["artifacts"]["candidates"]).table() for entry in (first, second)]
    assert drawn[0]["prompt_id"].equals(drawn[1]["prompt_id"])
    assert set(drawn[0]["seed"].to_pylist()).isdisjoint(drawn[1]["seed"].to_pylist())


def test_a_labelling_judge_that_always_abstains_stops_the_run_with_that_reason(
    run_small: RunSmall, tmp_path: Path
) -> None:
    (tmp_path / "abstain.py").write_text(ABSTAIN)
    status = run_small("no-pairs", "judge.type=callable", f"judge.call.function={tmp_path}/abstain.py:score")
    (entry,) = status["rounds"]
    assert (entry["pairs"], entry["dropped"]) == (0, {"abstained": 40})
    assert entry["scores"] == {"mean": None, "std": None, "abstained": 1.0}
    assert status["state"] == "stopped"
    assert "pairing kept none of 40 groups (abstained: 40)" in status["reason"]
    assert status["policy"]["digest"] == entry["policy_out"] == status["initial"]["policy_out"]
    assert dict(round_rows(entry))["score"] == "not known: no sample was judged"
    assert "abstained" in (Path(status["directory"]) / "report.html").read_text()
