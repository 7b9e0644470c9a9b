"""What the report reads from the store: examples spread over what there is, and no insisting on what is gone."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.evidence import ANSWERS_SHOWN, PAIRS_SHOWN, compare, gather
from pipeline.store import Artifact, Store
from pipeline.tables import candidates_table, prompts_table
from pipeline.types import Candidate, Group, Prompt
from tests.reported import ANSWERS, PEOPLE, answer, harm, make_artifact, make_run


@pytest.fixture(scope="module")
def food(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Store]:
    return make_run(tmp_path_factory.mktemp("food"))


# ---------------------------------------------------------------------------------------------- one round
def test_sample_pairs_spread_over_margins_and_prompts(food: tuple[dict[str, Any], Store]) -> None:
    status, store = food
    for entry in status["rounds"]:
        shown = gather(entry["artifacts"], store).pairs
        margins = [row["margin"] for row in shown]
        assert len(shown) == PAIRS_SHOWN == len({row["prompt_text"] for row in shown})
        assert margins == sorted(margins, reverse=True)


@pytest.mark.parametrize("stage", ["prompts", "candidates", "judgments", "pairs", "train"])
@pytest.mark.parametrize("damage", ["gone", "emptied", "garbled"])
def test_damage_to_one_artifact_leaves_the_others_evidence(tmp_path: Path, stage: str, damage: str) -> None:
    status, store = make_run(tmp_path, rounds=1)
    artifacts = {**status["initial"]["artifacts"], **status["rounds"][0]["artifacts"]}
    whole = gather(artifacts, store)
    harm(store.get(stage, artifacts[stage]).path, damage)
    found = gather(artifacts, store)
    assert not whole.gaps and len(found.gaps) == 1 and f"{stage} {artifacts[stage]}" in found.gaps[0]
    assert len(found.lengths) == (0 if stage == "candidates" else len(whole.lengths))
    assert len(found.scores) == (0 if stage == "judgments" else len(whole.scores))
    assert len(found.steps) == (0 if stage == "train" else len(whole.steps))
    assert len(found.pairs) == (0 if stage == "pairs" else len(whole.pairs))
    told = {row["prompt"] for rows in found.drops.values() for row in rows}
    assert stage == "pairs" or (None in told) == (stage == "prompts")


# ---------------------------------------------------------------------------------------------- two policies
def test_answers_beside_each_other_are_of_one_prompt_and_one_seed(food: tuple[dict[str, Any], Store]) -> None:
    status, store = food
    found = compare(status["initial"]["artifacts"], status["rounds"][1]["artifacts"], store)
    assert not found.gaps
    for shown in found.shown:
        index = shown.before["index"]
        assert shown.after["index"] == index
        assert shown.before["text"] == answer(-1, shown.prompt_id, index)
        assert shown.after["text"] == answer(1, shown.prompt_id, index)


def test_the_first_sample_that_changed_is_shown_and_every_change_is_counted(
    food: tuple[dict[str, Any], Store],
) -> None:
    status, store = food
    found = compare(status["initial"]["artifacts"], status["rounds"][1]["artifacts"], store)
    assert {(shown.before["index"], shown.changed, shown.samples) for shown in found.shown} == {
        (1, ANSWERS - 1, ANSWERS)
    }
    assert (found.changed, found.samples) == (60 * (ANSWERS - 1), 60 * ANSWERS)
    same = compare(status["initial"]["artifacts"], status["initial"]["artifacts"], store)
    assert {(shown.before["index"], shown.changed) for shown in same.shown} == {(0, 0)} and same.changed == 0


def test_answers_spread_over_the_different_prompt_texts(food: tuple[dict[str, Any], Store]) -> None:
    status, store = food
    found = compare(status["initial"]["artifacts"], status["rounds"][1]["artifacts"], store)
    texts = [shown.prompt for shown in found.shown]
    assert len(set(texts)) == len(texts) == ANSWERS_SHOWN
    assert texts[0] == f"{PEOPLE[0]} likes" and texts[-1] == f"{PEOPLE[-1]} likes"


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        ("aaaaaaaa", [0, 1, 2, 3, 4, 5]),
        ("aaaaaab", [0, 6, 1, 2, 3, 4]),
        ("ab", [0, 1]),
        ("abcdefghijk", [0, 2, 4, 6, 8, 10]),
    ],
)
def test_no_prompt_text_comes_again_before_all_have_been(tmp_path: Path, texts: str, shown: list[int]) -> None:
    store = Store(tmp_path)
    prompts = [Prompt(f"p{number}", text, (1,)) for number, text in enumerate(texts)]
    answers = {name: _answers(store, name, prompts, name).key for name in ("old", "new")}
    asked = make_artifact(store, "prompts", "asked", tables=[prompts_table(prompts)])
    found = compare({"prompts": asked.key, "answers": answers["old"]}, {"answers": answers["new"]}, store)
    assert [answer.prompt_id for answer in found.shown] == [f"p{number}" for number in shown]


def test_only_samples_that_both_policies_have_are_compared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    prompts = [Prompt(name, name, (1,)) for name in "abc"]
    old, new = _answers(store, "old", prompts[:2], "x"), _answers(store, "new", prompts[1:], "y")
    found = compare({"answers": old.key}, {"answers": new.key}, store)
    assert [(shown.prompt_id, shown.prompt) for shown in found.shown] == [("b", None)]
    assert (found.samples, found.changed) == (1, 1)


def test_a_run_from_before_answers_were_recorded_has_none_and_no_gap(food: tuple[dict[str, Any], Store]) -> None:
    status, store = food
    first, last = status["initial"]["artifacts"], status["rounds"][1]["artifacts"]
    without = [{name: key for name, key in keys.items() if name != "answers"} for keys in (first, last)]
    for before, after in ((without[0], last), (first, without[1]), ({}, {})):
        found = compare(before, after, store)
        assert not found.shown and not found.gaps


@pytest.mark.parametrize("whose", ["initial", "round"])
@pytest.mark.parametrize("damage", ["gone", "emptied", "garbled"])
def test_damaged_answers_are_a_gap_with_their_key(tmp_path: Path, whose: str, damage: str) -> None:
    status, store = make_run(tmp_path, rounds=1)
    before, after = status["initial"]["artifacts"], status["rounds"][0]["artifacts"]
    key = (before if whose == "initial" else after)["answers"]
    harm(store.get("candidates", key).path, damage)
    found = compare(before, after, store)
    assert not found.shown and len(found.gaps) == 1 and f"answers {key}" in found.gaps[0]


def _answers(store: Store, name: str, prompts: list[Prompt], text: str) -> Artifact:
    groups = [Group(prompt, (Candidate(0, (1,), text, "stop", 0),)) for prompt in prompts]
    return make_artifact(store, "candidates", name, tables=[candidates_table(groups)])
