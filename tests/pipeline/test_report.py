"""The report: complete, self-contained, deaf to markup in completions, and written whatever is missing."""

import json
import re
import tomllib
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import Command
from pipeline.evidence import gather
from pipeline.report import write_report
from pipeline.store import Artifact, Draft, Spec, Store
from pipeline.tables import pairs_table, prompts_table
from pipeline.texts import LEAD
from pipeline.types import Candidate, PreferencePair, Prompt
from tests.reported import CONFIG, INJECTION, answer, harm, make_artifact, make_run


# ---------------------------------------------------------------------------------------------- reading it back
class Page(HTMLParser):
    """Tags with their attributes, and the text a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def page_of(status: dict[str, Any], store: Store, folder: Path) -> Page:
    return Page(write_report(status, store, folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def food(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Store, Path]:
    root = tmp_path_factory.mktemp("food")
    return *make_run(root), root


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Store, Path]:
    root = tmp_path_factory.mktemp("chat")
    return *make_run(root, "chat", steps=1500), root


# ---------------------------------------------------------------------------------------------- claims
def test_nothing_outside_the_file_is_referred_to(chat: tuple[dict[str, Any], Store, Path]) -> None:
    html = write_report(chat[0], chat[1], chat[2] / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert not re.search(r"https?://|@import|javascript:(?!alert\(2\))", html)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "default-src 'none'" in str(page.named("meta"))


def test_ids_are_unique_and_every_reference_finds_one(food: tuple[dict[str, Any], Store, Path]) -> None:
    page = page_of(*food)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    targets = {str(value)[1:] for _, attributes in page.tags for name, value in attributes.items() if "href" in name}
    assert len(ids) == len(set(ids))
    assert targets <= set(ids)


def test_markup_in_prompts_and_completions_stays_text(chat: tuple[dict[str, Any], Store, Path]) -> None:
    html = write_report(chat[0], chat[1], chat[2] / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not page.named("script") and not page.named("img")
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert " ".join(INJECTION.split()) in page.text


def test_markup_in_titles_reasons_names_and_settings_stays_text(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=1)
    bad = "<script>x</script> $\\frac{"
    entry = status["rounds"][0]
    status |= {"title": bad, "description": bad, "reason": bad, "name": bad, "config": {**CONFIG, bad: bad}}
    entry["dropped"] = {bad: 12}
    entry["evaluation"]["probes"] = {bad: 0.25, "ravin_kl": 1.0}
    entry["seconds"] = {bad: 2.0}
    entry["gate"] = {"decision": bad, "reason": bad, "checks": [{"condition": bad, "value": 1.0, "passed": False}]}
    page = page_of(status, store, tmp_path)
    assert not page.named("script")
    assert page.text.count(" ".join(bad.split())) >= 8


def test_every_figure_of_the_status_is_on_the_page(food: tuple[dict[str, Any], Store, Path]) -> None:
    status, store, root = food
    text = page_of(status, store, root).text
    assert "stopped" in text and status["reason"] in text and "3 of 4 rounds" in text and "★ best" in text
    for entry in status["rounds"]:
        evaluation = entry["evaluation"]
        for name, value in evaluation["probes"].items():
            assert name in text
            assert (f"{value:.2f}" if name == "ravin_kl" else f"{100 * value:.1f}%") in text
        for name in ("win_rate", "win_rate_vs_initial"):
            low, high = (f"{100 * evaluation[f'{name}_{end}']:.1f}%" for end in ("low", "high"))
            assert f"{100 * evaluation[name]:.1f}% [{low}, {high}]" in text
        assert f"{evaluation['score_delta']:+.3f} [{evaluation['score_delta_low']:+.3f}," in text
        assert f"{entry['pairs']} of {entry['groups']}" in text
        for reason, count in entry["dropped"].items():
            assert f"{reason} {count}" in text
        assert entry["gate"]["reason"] in text
        assert all(check["condition"] in text and f"{check['value']:.3f}" in text for check in entry["gate"]["checks"])
        assert all(f"{seconds:.1f}" in text for seconds in entry["seconds"].values())
        assert all(key in text for key in entry["artifacts"].values())
        assert entry["policy_in"] in text and entry["policy_out"] in text
    for value in status["initial"]["evaluation"]["probes"].values():
        assert f"{100 * value:.1f}%" in text or f"{value:.2f}" in text
    assert status["policy"]["digest"] in text


def test_what_never_came_to_the_judge_is_on_the_page_where_there_is_some(
    food: tuple[dict[str, Any], Store, Path],
) -> None:
    status, store, root = food
    assert "Missing of" not in (text := page_of(status, store, root).text) and "Prompts left out" not in text
    first, *rest = status["rounds"]
    lost = {"left_out": 2, "missing": {"big": {"timeout": 31}, "": {"too_few": 7}}}
    text = page_of({**status, "rounds": [{**first, **lost}, *rest]}, store, root).text
    assert "Prompts left out in no group, because too few candidates of theirs came 2 – –" in text
    assert "Missing of big: timeout the call was given up 31 – –" in text
    assert "Missing of the policy: too_few its prompt has too few candidates to compare 7 – –" in text


def test_every_figure_has_a_name_for_people(food: tuple[dict[str, Any], Store, Path]) -> None:
    status, store, root = food
    text = page_of(status, store, root).text
    keys = [key for entry in status["rounds"] for part in ("evaluation", "training") for key in entry[part]]
    raw = {key for key in keys if re.search("[_/]", key)} - {"judge_labelled"}
    assert {"lengths/chosen", "score_delta_low"} < raw
    shown = text.partition("Resolved settings")[0]
    for condition in (check["condition"] for entry in status["rounds"] for check in entry["gate"]["checks"]):
        shown = shown.replace(condition, "")
    assert not [key for key in raw if re.search(rf"(?<![\w/.]){key}(?![\w/])", shown)]
    assert all(f"{label} " in shown for label in ("Distinct texts", "Steps", "Epochs", "Length, chosen"))


def test_the_best_policys_answers_stand_beside_the_initial_ones(food: tuple[dict[str, Any], Store, Path]) -> None:
    status, store, root = food
    text = page_of(status, store, root).text
    assert status["best_round"] == 1 and "180 of 240 samples changed" in text
    assert "sample 2 of 4; 3 changed" in text
    for round, there in ((-1, True), (1, True), (0, False), (2, False)):
        assert (answer(round, "held-out-food-000", 1) in text) == there


def test_answers_of_an_unpromoted_policy_are_called_by_its_round(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=2)
    text = page_of(status | {"best_round": -1}, store, tmp_path).text
    assert "beside that of round 1" in text and answer(1, "held-out-food-000", 1) in text


def test_a_run_without_answers_has_no_section_of_them(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=2)
    assert "answers" in {attributes.get("id") for attributes in page_of(status, store, tmp_path).named("h2")}
    for entry in (status["initial"], *status["rounds"]):
        del entry["artifacts"]["answers"]
    page = page_of(status, store, tmp_path)
    assert "answers" not in {attributes.get("id") for attributes in page.named("h2")}
    assert "could not be read" not in page.text


def test_several_pairs_a_prompt_are_not_mistaken_for_several_prompts(
    food: tuple[dict[str, Any], Store, Path], tmp_path: Path
) -> None:
    status, store, root = food
    entry = status["rounds"][1]
    both = f"{entry['pairs']} of {entry['groups']}"
    assert both in page_of(status, store, root).text
    status = json.loads(json.dumps(status))
    status["rounds"][1]["pairs"] *= 3
    text = page_of(status, store, tmp_path).text
    assert f"{3 * entry['pairs']} from {both}" in text


def test_dropped_groups_show_their_prompts(food: tuple[dict[str, Any], Store, Path]) -> None:
    status, store, root = food
    html = write_report(status, store, root / "report.html").read_text(encoding="utf-8")
    examples = html.partition("Examples of dropped groups")[2].partition("</table>")[0]
    prompts = re.findall(r'<td class="text">([^<]*)<small><code>food-\d+', examples)
    assert prompts and all(re.fullmatch(r"\w+ likes", prompt) for prompt in prompts)


def test_rows_that_gave_no_prompt_are_counted_and_bad_ones_named(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=1)
    assert "Prompts were read from" not in page_of(status, store, tmp_path).text
    first = ["row 3: has no 'prompt'; it has <b>question</b>"]
    read = [{"key": "prompts.source", "rows": 8, "bad": 1, "first": first}]

    def build(draft: Draft) -> Artifact:
        draft.commit_shard(0, prompts_table(Prompt(str(number), "what?", (1,)) for number in range(5)))
        return draft.finish({"rounds": 3, "held_out": 2, "read": read}, 8, {"bad": 1, "duplicate": 2})

    status["initial"]["artifacts"]["prompts"] = store.make(Spec("prompts", 5), build).key
    text = page_of(status, store, tmp_path).text
    assert "Prompts were read from 8 rows: 3 for the rounds, 2 held out; dropped: 1 bad, 2 duplicate" in text
    assert "The first bad rows: row 3: has no 'prompt'; it has <b>question</b>." in text


def test_the_labelling_judge_evaluating_itself_is_said(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=1)
    assert "also labelled the training pairs (rules)" in page_of(status, store, tmp_path).text
    for entry in (status["initial"], *status["rounds"]):
        entry["evaluation"] |= {"judge": "gold", "judge_labelled": False}
    assert "held-out judge (gold) that labelled no training pair" in page_of(status, store, tmp_path).text


def test_the_commands_of_a_run_are_on_the_page(food: tuple[dict[str, Any], Store, Path]) -> None:
    status, store, root = food
    assert "Commands" not in page_of(status, store, root).text
    commands = [
        Command("ratchet run food --set 'api_key=***'", "2026-11-21T20:59:55Z", "c"),
        Command("ratchet pair food", "2026-11-22T08:00:00Z", "d", anew=("k1",)),
    ]
    text = Page(write_report(status, store, root / "report.html", commands).read_text(encoding="utf-8")).text
    assert "2026-11-21 20:59:55 ratchet run food --set 'api_key=***'" in text
    assert "2026-11-22 08:00:00 made pairs anew ratchet pair food" in text


def test_the_settings_on_the_page_are_the_resolved_recipe(food: tuple[dict[str, Any], Store, Path]) -> None:
    html = write_report(food[0], food[1], food[2] / "report.html").read_text(encoding="utf-8")
    shown = unescape(re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL)[-1])
    assert tomllib.loads(shown) == _without_none(CONFIG)


def test_no_secret_among_the_settings_is_on_the_page(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=1)
    judge = {
        "call": {"function": "mine:judge", "args": {"api_key": "hunter22"}}, "base_url": "http://joe:hunter22@host/v1",
        "extra": {"max_completion_tokens": 9, "headers": [{"authorization": "Bearer hunter22"}]},
    }  # fmt: skip
    page = write_report({**status, "config": {**CONFIG, "judge": judge}}, store, tmp_path / "report.html").read_text()
    assert "hunter22" not in page
    assert "http://***@host/v1" in page and "max_completion_tokens = 9" in page


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(part) for name, part in value.items() if part is not None}
    return value


def test_long_texts_fold_and_keep_every_character(chat: tuple[dict[str, Any], Store, Path]) -> None:
    status, store, root = chat
    page = page_of(status, store, root)
    pairs = gather(status["rounds"][2]["artifacts"], store).pairs
    long = [row["chosen_text"] for row in pairs if len(row["chosen_text"]) > 2 * LEAD]
    assert long
    assert page.named("details")
    assert all(text in page.words for text in long)


def test_identical_input_gives_identical_bytes(food: tuple[dict[str, Any], Store, Path]) -> None:
    status, store, root = food
    first = write_report(status, store, root / "a" / "one.html").read_bytes()
    assert write_report(json.loads(json.dumps(status)), store, root / "b" / "two.html").read_bytes() == first
    assert not list(root.glob("*/*.part"))


def test_charts_take_their_colours_from_the_page(food: tuple[dict[str, Any], Store, Path]) -> None:
    html = write_report(food[0], food[1], food[2] / "report.html").read_text(encoding="utf-8")
    charts = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(charts) >= 12
    assert all("var(--muted)" in chart and not re.search(r"#[0-9a-f]{6}\b", chart) for chart in charts)


@pytest.mark.parametrize("initial", [True, False])
def test_a_run_without_a_finished_round_has_a_report(tmp_path: Path, initial: bool) -> None:
    status, store = make_run(tmp_path, rounds=0)
    status |= {"state": "running", "reason": "still running", "best_round": -1, "policy": None}
    status |= {} if initial else {"initial": None}
    text = page_of(status, store, tmp_path).text
    assert "0 of 4 rounds finished: still running" in text and "No round has finished yet" in text
    assert ("11.8%" in text) == initial


def test_a_status_of_bare_necessities_has_a_report(tmp_path: Path) -> None:
    rounds = [{"round": 0}, {"round": 1, "evaluation": {"kl": float("nan"), "win_rate": None}, "gate": None}]
    page = page_of({"name": "bare", "state": "failed", "rounds": rounds}, Store(tmp_path), tmp_path)
    assert "bare" in page.text and "round 1" in page.text
    assert "bare" in page_of({"name": "bare"}, Store(tmp_path), tmp_path).text


def test_a_report_names_what_is_missing_and_tells_the_rest(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=2)
    artifacts = status["rounds"][1]["artifacts"]
    for stage, damage in (("candidates", "gone"), ("pairs", "garbled"), ("train", "emptied")):
        harm(store.get(stage, artifacts[stage]).path, damage)
    page = page_of(status, store, tmp_path)
    assert all(f"round 1: {stage} {artifacts[stage]}" in page.text for stage in ("candidates", "pairs", "train"))
    assert "round 0: " not in page.text
    assert "34.2%" in page.text and page.named("svg")


def test_prompts_that_are_gone_are_named_once_for_all_rounds(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=2)
    key = status["initial"]["artifacts"]["prompts"]
    harm(store.get("prompts", key).path, "gone")
    text = page_of(status, store, tmp_path).text
    assert text.count(f"prompts {key}: ") == 1 and f"round 0, round 1, held-out answers: prompts {key}: " in text
    assert answer(0, "held-out-food-000", 1) in text


def test_a_report_of_many_steps_and_long_texts_stays_small(chat: tuple[dict[str, Any], Store, Path]) -> None:
    status, store, root = chat
    assert write_report(status, store, root / "report.html").stat().st_size < 1_500_000


def test_control_characters_cannot_reorder_or_break_the_page(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=1)
    status["rounds"][0]["gate"]["reason"] = "plain"
    prompt = Prompt("odd", "a\x00b\u202egnp.exe", (1,))
    sides = [Candidate(index, (2,), text, "stop", index) for index, text in enumerate(("ok\x1b[31m", ""))]
    pair = PreferencePair("p", prompt, sides[0], sides[1], 1.0, 0.0, 0, "c", "j")
    status["rounds"][0]["artifacts"]["pairs"] = make_artifact(store, "pairs", "odd", tables=[pairs_table([pair])]).key
    html = write_report(status, store, tmp_path / "report.html").read_text(encoding="utf-8")
    assert not set("\x00\x1b\u202e") & set(html)
    assert "a␀b" in html and "ok␛[31m" in html and '<div class="empty">empty</div>' in html
