"""``ratchet trace``: the whole story as JSON, and a tree that a person reads."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.trace import pair_ids, trace
from flows.trace_tree import trace_tree
from pipeline.commands import note_command
from pipeline.errors import ConfigError
from pipeline.runs import RESULT, TRAINED
from pipeline.store import Spec, write_json
from tests.stored import make
from tests.traced import BASE, FIRST, RULES, SECOND, Place, api, comparer, pairs_of, panel, rater


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def shown(found: dict[str, Any], width: int = 240) -> str:
    console = Console(width=width, record=True, file=StringIO(), highlight=False)
    console.print(trace_tree(found))
    return console.export_text()


def first_of(place: Place, judged: Any, candidates: Any) -> dict[str, Any]:
    return trace(pairs_of(place.pairs(candidates, judged))[0]["pair_id"], place.workspace)


def test_the_whole_story_survives_json_and_no_text_is_cut(place: Place) -> None:
    with api() as server:
        candidates = place.candidates(count=2)
        found = first_of(place, place.panel(candidates, panel(rater=rater(server), high=RULES)), candidates)
    assert json.loads(json.dumps(found)) == found
    assert found["pair"]["chosen_text"] == "5 of round 0 to p0"
    assert [(row["index"], row["role"]) for row in found["candidates"]] == [
        (3, "chosen"), (2, None), (1, None), (0, "rejected"),
    ]  # fmt: skip
    (member,) = [each for each in found["judgment"]["members"] if each["member"] == "rater"]
    assert all(call["raw"]["choices"] for call in member["calls"].values())


def test_the_tree_goes_from_the_pair_to_the_command(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["ratchet", "run", "food", "--set", "rounds=2"])
    rounds = [place.round(0, BASE, FIRST), place.round(1, FIRST, SECOND)]
    place.run("food", *rounds)
    pair = pairs_of(rounds[1]["pairs"])[1]
    tree = shown(trace(pair["pair_id"], place.workspace))
    lines = [
        f"pair {pair['pair_id']}", "question 1?", "chosen", "rejected", "judged by", "best_worst", "food round 0",
        "beta 0.25", "checkpoint", "to policy", "$ ratchet run food --set rounds=2",
    ]  # fmt: skip
    places = [tree.find(line) for line in lines if line != "checkpoint"]
    assert -1 not in places, tree
    assert places == sorted(places)


def test_the_tree_shows_the_replies_about_the_two_and_counts_the_others(place: Place) -> None:
    with api(pairwise=True) as server:
        candidates = place.candidates(count=1)
        tree = shown(first_of(place, place.judgments(candidates, comparer(server), "comparer"), candidates))
    assert "#0 against #3, straight" in tree
    assert "#0 against #3, swapped" in tree
    assert "Because." in tree
    assert "#1 against #2" not in tree
    assert "10 more calls about the group" in tree


def test_a_pair_that_its_round_held_out_is_told_as_such(place: Place) -> None:
    made = place.round(0, BASE)
    place.run("food", made | place.train(made["pairs"], BASE, FIRST, held_out=1.0))
    tree = shown(trace(pairs_of(made["pairs"])[0]["pair_id"], place.workspace))
    assert f"round 0, held out, to policy {FIRST[:12]}, promote" in tree


def test_markup_and_line_breaks_in_texts_are_shown_as_they_are(place: Place) -> None:
    found = first_of(place, place.judgments(made := place.candidates(count=1)), made)
    found["candidates"][0]["text"] = "[red]not red[/] [/b] \n two " + "long " * 200
    found["prompt"]["text"] = "[link=http://x]?"
    tree = shown(found)
    assert "[red]not red[/] [/b]  ⏎  two" in tree
    assert "[link=http://x]?" in tree
    assert max(map(len, tree.splitlines())) < 240


def test_a_training_that_read_the_pair_is_told_with_its_command(place: Place) -> None:
    made, other = place.round(0, BASE), place.round(1, BASE)
    place.run("food", made)
    own = made["pairs"].key
    data = {
        "by-run": ("food", [own]),
        "export": ("./food-data", ["gone", own]),
        "other": ("food:1", [other["pairs"].key]),
    }
    for name, (given, keys) in data.items():
        result(place, name, [{"given": "prefs.jsonl", "pairs_of": []}, {"given": given, "pairs_of": keys}])
    found = trace(pairs_of(made["pairs"])[0]["pair_id"], place.workspace)
    assert [(each["name"], each["read"]) for each in found["trainings"]] == [
        ("by-run", ["food"]), ("export", ["./food-data"]),
    ]  # fmt: skip
    assert "$ ratchet train prefs.jsonl ./food-data" in shown(found)
    assert found["gaps"] == []


def test_a_training_on_replayed_pairs_is_told_and_one_that_cannot_be_read_is_a_gap(place: Place) -> None:
    first, second = place.round(0, BASE, FIRST), place.round(1, FIRST, SECOND)
    pair = pairs_of(first["pairs"])[0]["pair_id"]
    second["replay"] = place.replay(second["pairs"], first["pairs"], pair)
    place.run("food", first, second)
    result(place, "again", [{"given": "replayed", "pairs_of": [second["replay"].key]}])
    (place.workspace / TRAINED / "torn").mkdir()
    (place.workspace / TRAINED / "torn" / RESULT).write_text("{")
    found = trace(pair, place.workspace)
    assert [each["name"] for each in found["trainings"]] == ["again"]
    (gap,) = found["gaps"]
    assert gap.startswith("training 'torn': ")


def test_a_policy_that_a_training_made_leads_to_it_though_it_was_exported_and_taken_in_again(place: Place) -> None:
    made = place.round(0, BASE, FIRST)
    place.run("food", made)
    result(place, "mine", [{"given": "./food-data", "pairs_of": [made["pairs"].key]}], made["train"].key)
    make(place.store, Spec("policy", 1, {"type": "pretrained"}, {"weights": FIRST}), info={"policy": FIRST})
    found = trace(pairs_of(place.round(1, FIRST)["pairs"])[0]["pair_id"], place.workspace)
    newest, first = found["policies"]["policy"]
    assert (newest["made"]["stage"], newest["start"], first["digest"]) == ("train", BASE, BASE)
    assert newest["trainings"] == [{"name": "mine", "read": ["./food-data"]}]
    assert "training mine of ./food-data" in shown(found)


def result(place: Place, name: str, data: list[dict[str, Any]], key: str = "") -> None:
    """What a training without rounds leaves in its folder."""
    folder = place.workspace / TRAINED / name
    note_command(folder, "c", ["ratchet", "train", *(part["given"] for part in data)])
    write_json(folder / RESULT, {"data": data, "policy": {"digest": FIRST}, "training": {"key": key}})


def test_what_is_gone_is_in_the_tree(place: Place) -> None:
    made = place.round(0, BASE)
    for artifact in (made["candidates"], made["judgments"]):
        (artifact.path / "manifest.json").unlink()
    found = trace(pairs_of(made["pairs"])[0]["pair_id"], place.workspace)
    tree = shown(found)
    assert "could not be read" in tree
    assert made["candidates"].key in tree
    assert "5 of round 0 to p0" in tree, "the pair's own texts are there"
    assert "by no run here" in tree


def test_a_runs_pairs_are_listed_newest_round_first(place: Place) -> None:
    rounds = [place.round(0, BASE, FIRST, count=3), place.round(1, FIRST, count=3)]
    place.run("food", *rounds)
    ids = [[row["pair_id"] for row in pairs_of(each["pairs"])] for each in rounds]
    listed = pair_ids("food", None, 4, place.workspace)
    assert [(each["id"], each["round"]) for each in listed] == [*((each, 1) for each in ids[1]), (ids[0][0], 0)]
    assert [each["id"] for each in pair_ids(None, 0, 2, place.workspace)] == ids[0][:2]
    with pytest.raises(ConfigError, match="rounds 0, 1"):
        pair_ids("food", 7, 2, place.workspace)
    with pytest.raises(ConfigError, match="not in"):
        pair_ids("drinks", None, 2, place.workspace)


def test_a_pair_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of 0 pairs"):
        trace("0123456789abcdef", tmp_path)
