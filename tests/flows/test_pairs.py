"""Several pairs a prompt, from the recipe to the trained policy and the report."""

from collections import Counter
from pathlib import Path
from typing import Any

from flows.console import round_rows

from .conftest import RunSmall
from .small import store_of


def test_three_pairs_a_prompt_are_trained_on_and_told_apart_from_prompts(
    run_small: RunSmall, finished: dict[str, Any]
) -> None:
    status = run_small("three-pairs", "pairing.pairs_per_prompt=3", "rounds=1")
    (entry,), one_a_prompt = status["rounds"], finished["rounds"][0]
    for shared in ("candidates", "judgments"):
        assert entry["artifacts"][shared] == one_a_prompt["artifacts"][shared]  # pairing anew samples nothing
    assert entry["dropped"] == one_a_prompt["dropped"]
    assert entry["paired"] == one_a_prompt["paired"] == one_a_prompt["pairs"]
    assert entry["paired"] + sum(entry["dropped"].values()) == entry["groups"]

    rows = store_of(status).get("pairs", entry["artifacts"]["pairs"]).table().to_pylist()
    per_prompt = Counter(row["prompt_id"] for row in rows)
    assert len(rows) == entry["pairs"] > entry["paired"] == len(per_prompt)
    assert max(per_prompt.values()) == 3
    assert len({row["pair_id"] for row in rows}) == len(rows)

    assert entry["training"]["step"] > one_a_prompt["training"]["step"]
    assert entry["policy_out"] not in (entry["policy_in"], one_a_prompt["policy_out"])
    told = f"{entry['pairs']} from {entry['paired']} of {entry['groups']}"
    assert dict(round_rows(entry))["pairs"].startswith(f"{told} groups")
    assert told.partition(" ")[2] in (Path(status["directory"]) / "report.html").read_text()


def test_earlier_pairs_are_trained_on_again_beside_a_rounds_own(run_small: RunSmall, finished: dict[str, Any]) -> None:
    status = run_small("replayed", "pairing.replay.share=0.3")
    first, second = status["rounds"]
    assert first["artifacts"] == finished["rounds"][0]["artifacts"]  # there is nothing to replay yet
    store = store_of(status)
    mixed = store.get("replay", second["artifacts"]["replay"])
    replayed = round(second["pairs"] * 3 / 7)
    assert mixed.info == {
        "fresh": second["pairs"],
        "replayed": replayed,
        "rounds": {"0": replayed, "1": second["pairs"]},
    }
    trained = store.get("train", second["artifacts"]["train"])
    assert trained.manifest["inputs"]["pairs"] == mixed.key
    assert second["training"]["step"] > finished["rounds"][1]["training"]["step"]
