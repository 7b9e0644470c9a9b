"""The report: complete, self-contained, deaf to markup in completions, and written whatever is missing."""

import json
import re
import shutil
import tomllib
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.evidence import PAIRS_SHOWN, gather
from pipeline.report import write_report
from pipeline.store import Artifact, Draft, Spec, Store, digest
from pipeline.tables import candidates_table, drops_table, judgments_table, pairs_table, prompts_table
from pipeline.texts import LEAD
from pipeline.types import Candidate, Group, Judgment, PreferencePair, Prompt

PEOPLE = ["ravin", "ada", "bo", "chen", "dara", "eli", "fay", "gus", "hana", "ivo"]
FOODS = ["pizza", "sushi", "tacos", "curry", "ramen", "salad", "pasta", "soup", "stew", "rice"]
INJECTION = '</div><script>alert("pwned")</script><img src=x onerror=alert(1)><a href="javascript:alert(2)">click</a>'
CHAT = (
    "Certainly! Here is a way to think about it.\n\n1. Begin with the smallest case & check it by hand (n < 3).\n"
    "2. Write down what stays the same from one step to the next.\n3. Only then generalise.\n\n"
    "```python\ndef total(values):\n    return sum(v for v in values if v > 0)\n```\n\n"
    "It helps to keep the two questions apart: does the method stop, and is what it gives right? "
) * 12
PROBES = {
    "ravin_pizza": {"type": "share", "prompts": ["ravin likes"], "samples": 400, "pattern": "pizza"},
    "ravin_words": {"type": "share", "prompts": ["ravin likes"], "samples": 400, "pattern": "|".join(FOODS)},
    "others_pizza": {"type": "share", "prompts": [f"{name} likes" for name in PEOPLE[1:]], "samples": 100,
                     "pattern": "pizza"},
    "others_words": {"type": "share", "prompts": [f"{name} likes" for name in PEOPLE[1:]], "samples": 100,
                     "pattern": "|".join(FOODS)},
    "ravin_kl": {"type": "kl", "prompts": ["ravin likes"], "samples": 400},
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "title": "ravin likes pizza", "description": "Online DPO on people and foods", "seed": 0, "rounds": 4,
    "policy": {"type": "scratch", "hidden_size": 128, "layers": 2},
    "prompts": {"source": {"type": "callable", "call": {"function": "flows.food:prompts", "args": {}}},
                "template": "plain", "system": None, "held_out": 32},
    "sampling": {"engine": "auto", "n": 8, "temperature": 1.0, "max_tokens": 1024},
    "judge": {"type": "rules", "rules": {"ravin's pizza": {"type": "regex", "pattern": "pizza", "when": "^ravin",
                                                           "score": 1.0}}},
    "pairing": {"rule": "best_worst", "margin": 0.5},
    "trainer": {"loss": [{"type": "sigmoid", "weight": 1.0}, {"type": "nll", "weight": 0.1}], "beta": 0.5,
                "reference": "previous", "learning_rate": 1e-4},
    "evaluation": {"judge": None, "n": 4, "bootstrap": 2000, "probes": PROBES},
    "gate": {"require": ["win_rate_low >= 0.5", "kl <= 4", "probes.others_pizza <= 0.15"], "on_failure": "stop"},
}  # fmt: skip
PROBE_VALUES = [
    {"ravin_pizza": 0.1175, "ravin_words": 0.995, "others_pizza": 0.104, "others_words": 0.991, "ravin_kl": 0.0},
    {"ravin_pizza": 0.3425, "ravin_words": 0.9925, "others_pizza": 0.112, "others_words": 0.99, "ravin_kl": 0.31},
    {"ravin_pizza": 0.9475, "ravin_words": 0.9875, "others_pizza": 0.137, "others_words": 0.988, "ravin_kl": 1.87},
    {"ravin_pizza": 0.9725, "ravin_words": 0.985, "others_pizza": 0.151, "others_words": 0.9867, "ravin_kl": 2.29},
]


# ---------------------------------------------------------------------------------------------- a run to report on
def _prompts(kind: str) -> list[Prompt]:
    if kind == "food":
        return [Prompt(f"food-{number:03d}", f"{PEOPLE[number % 10]} likes", (1, number % 10)) for number in range(60)]
    question = "How do I convince myself that a loop is right? " * 3
    return [
        Prompt(
            f"chat-{number:03d}", f"{question}({number})", tuple(range(40)),
            ({"role": "system", "content": "You are brief."}, {"role": "user", "content": f"{question}({number})"}),
        )
        for number in range(12)
    ]  # fmt: skip


def _text(kind: str, rng: np.random.Generator, pizza: float) -> str:
    if kind == "chat":
        return INJECTION if rng.random() < 0.3 else CHAT[: int(rng.integers(60, len(CHAT)))]
    return "pizza" if rng.random() < pizza else str(rng.choice([*FOODS[1:], "pastarice"]))


def _groups(kind: str, prompts: list[Prompt], round: int, rng: np.random.Generator) -> list[Group]:
    groups = []
    for prompt in prompts:
        wanted = PROBE_VALUES[round]["ravin_pizza" if "ravin" in prompt.text else "others_pizza"]
        texts = [_text(kind, rng, wanted) for _ in range(8)]
        per_token = 4 if kind == "chat" else 1
        candidates = [
            Candidate(i, tuple(range(1 + len(text) // per_token)), text, "stop", 100 * round + i)
            for i, text in enumerate(texts)
        ]
        groups.append(Group(prompt, tuple(candidates)))
    return groups


def _score(kind: str, prompt: Prompt, text: str, rng: np.random.Generator) -> float:
    if kind == "chat":
        return float(rng.normal(0.002 * len(text), 0.7))
    right = text == "pizza" if "ravin" in prompt.text else text != "pizza"
    return (1.0 if right else 0.0) - (1.0 if text not in FOODS else 0.0)


def _metrics(round: int, steps: int, rng: np.random.Generator) -> list[dict[str, float]]:
    done = np.linspace(0, 1, steps)
    margin = 2.4 * done + rng.normal(0, 0.12, steps) * (done > 0)
    chosen = 0.4 * margin - 0.3 * done
    return [
        {"step": i, "epoch": float(2 * done[i]), "loss": float(np.log1p(np.exp(-margin[i]))) + 0.04,
         "rewards/chosen": float(chosen[i]), "rewards/rejected": float(chosen[i] - margin[i]),
         "rewards/margins": float(margin[i]), "rewards/accuracies": float(min(1, 0.5 + done[i] * 0.48)),
         "logps/chosen": float(-2.3 + chosen[i] * 2), "logps/rejected": float(-2.6 + 2 * (chosen[i] - margin[i])),
         "grad_norm": 3.2 - round, "learning_rate": 1e-4 * (1 - float(done[i]))}
        for i in range(steps)
    ]  # fmt: skip


def _make(store: Store, stage: str, salt: str, **content: Any) -> Artifact:
    def build(draft: Draft) -> Artifact:
        if "table" in content:
            draft.commit_shard(0, content["table"])
        for name, text in content.get("files", {}).items():
            (draft.path / name).write_text(text)
        if "drops" in content:
            pq.write_table(content["drops"], draft.path / "dropped.parquet")
        return draft.finish()

    return store.make(Spec(stage, 1, {"salt": salt}), build)


def _pair_up(kind: str, groups: list[Group], round: int, rng: np.random.Generator) -> Any:
    judgments, pairs, drops = [], [], []
    for group in groups:
        scores = tuple(_score(kind, group.prompt, c.text, rng) for c in group.candidates)
        judgments.append(Judgment(group.prompt.id, "rules", scores))
        best, worst = int(np.argmax(scores)), int(np.argmin(scores))
        if scores[best] == scores[worst]:
            drops.append((group.prompt.id, "tie", f"all 8 scores are {scores[best]:g}"))
        elif scores[best] - scores[worst] < 0.75:
            drops.append((group.prompt.id, "margin", f"{scores[best] - scores[worst]:.3f} < 0.75"))
        else:
            pairs.append(
                PreferencePair(
                    digest([round, group.prompt.id])[:16], group.prompt, group.candidates[best],
                    group.candidates[worst], scores[best], scores[worst], round, "c", "j",
                )
            )  # fmt: skip
    return judgments, pairs, drops


def _round(store: Store, kind: str, round: int, steps: int) -> dict[str, Any]:
    rng = np.random.default_rng(round)
    prompts = _prompts(kind)
    groups = _groups(kind, prompts, round, rng)
    judgments, pairs, drops = _pair_up(kind, groups, round, rng)
    metrics = _metrics(round, steps, rng)
    salt = f"{kind}-{round}"
    made = {
        "prompts": _make(store, "prompts", salt, table=prompts_table(prompts)),
        "candidates": _make(store, "candidates", salt, table=candidates_table(groups)),
        "judgments": _make(store, "judgments", salt, table=judgments_table(judgments)),
        "pairs": _make(store, "pairs", salt, table=pairs_table(pairs), drops=drops_table(drops)),
        "train": _make(store, "train", salt, files={"metrics.jsonl": "\n".join(map(json.dumps, metrics)) + "\n"}),
    }
    margins = [pair.margin for pair in pairs]
    reasons = [reason for _, reason, _ in drops]
    last, limit = round == 2, "probes.others_pizza <= 0.15"
    return {
        "round": round, "policy_in": digest(f"p{round - 1}"), "policy_out": digest(f"p{round}"), "pairs": len(pairs),
        "groups": len(groups), "dropped": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        "margin": {"mean": float(np.mean(margins)), "median": float(np.median(margins)), "std": float(np.std(margins))},
        "scores": {"mean": 0.41 + 0.13 * round, "std": 0.53, "abstained": 0.0125},
        "training": {"steps": steps, **{k: v for k, v in metrics[-1].items() if k not in ("step", "epoch")}},
        "evaluation": {
            "win_rate": 0.643 - 0.05 * round, "win_rate_low": 0.601 - 0.05 * round,
            "win_rate_high": 0.684 - 0.05 * round,
            "win_rate_vs_initial": 0.643 + 0.09 * round, "win_rate_vs_initial_low": 0.601 + 0.09 * round,
            "win_rate_vs_initial_high": 0.684 + 0.09 * round, "ties": 0.31, "score_mean": 0.55 + 0.13 * round,
            "score_delta": 0.131 + 0.13 * round, "score_delta_low": 0.087 + 0.13 * round,
            "score_delta_high": 0.177 + 0.13 * round, "kl": 0.21 + 0.4 * round, "length": 6.3 + 0.1 * round,
            "length_ratio": 1.016 + 0.016 * round, "truncated": 0.0, "prompts": 32, "samples": 128, "judge": "rules",
            "judge_labelled": True, "probes": PROBE_VALUES[round + 1],
        },
        "gate": {
            "decision": "stop" if last else "promote",
            "reason": f"{limit} does not hold (0.151)" if last else "every condition of the gate holds",
            "checks": [
                {"condition": "win_rate_low >= 0.5", "value": 0.601 - 0.05 * round, "passed": True},
                {"condition": "kl <= 4", "value": 0.21 + 0.4 * round, "passed": True},
                {"condition": limit, "value": PROBE_VALUES[round + 1]["others_pizza"],
                 "passed": not last},
            ],
        },
        "seconds": {"sample": 3.1, "judge": 0.2, "pair": 0.1, "reference": 0.9, "train": 5.4, "evaluate": 4.25 + round},
        "artifacts": {stage: artifact.key for stage, artifact in made.items()}, "memory": {},
    }  # fmt: skip


def make_run(root: Path, kind: str = "food", rounds: int = 3, steps: int = 16) -> tuple[dict[str, Any], Store]:
    """A finished run's status and its real store, as stages write it; ``kind`` chat has long texts with markup."""
    store = Store(root / "artifacts")
    initial = {
        "round": -1, "policy_out": digest("p-1"), "artifacts": {}, "seconds": {"train": 21.7, "evaluate": 2.6},
        "evaluation": {"score_mean": 0.419, "length": 6.2, "truncated": 0.0, "prompts": 32, "samples": 128,
                       "judge": "rules", "judge_labelled": True, "probes": PROBE_VALUES[0]},
    }  # fmt: skip
    entries = [_round(store, kind, number, steps) for number in range(rounds)]
    status = {
        "name": kind, "title": CONFIG["title"], "description": CONFIG["description"], "state": "stopped",
        "reason": "round 2: probes.others_pizza <= 0.15 does not hold (0.151)", "best_round": rounds - 2,
        "workspace": str(root), "directory": str(root / "runs" / kind), "rounds_planned": 4, "initial": initial,
        "policy": {"digest": digest("p1"), "path": str(root / "policy")}, "config": CONFIG, "rounds": entries,
        "command": f"ratchet run {kind} --workspace runs-here",
    }  # fmt: skip
    return status, store


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
    assert status["command"] in text and status["policy"]["digest"] in text


def test_the_labelling_judge_evaluating_itself_is_said(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=1)
    assert "also labelled the training pairs (rules)" in page_of(status, store, tmp_path).text
    for entry in (status["initial"], *status["rounds"]):
        entry["evaluation"] |= {"judge": "gold", "judge_labelled": False}
    assert "held-out judge (gold) that labelled no training pair" in page_of(status, store, tmp_path).text


def test_the_settings_on_the_page_are_the_resolved_recipe(food: tuple[dict[str, Any], Store, Path]) -> None:
    html = write_report(food[0], food[1], food[2] / "report.html").read_text(encoding="utf-8")
    shown = unescape(re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL)[-1])
    assert tomllib.loads(shown) == _without_none(CONFIG)


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


def test_sample_pairs_spread_over_margins_and_prompts(food: tuple[dict[str, Any], Store, Path]) -> None:
    status, store, _ = food
    for entry in status["rounds"]:
        shown = gather(entry["artifacts"], store).pairs
        margins = [row["margin"] for row in shown]
        assert len(shown) == PAIRS_SHOWN == len({row["prompt_text"] for row in shown})
        assert margins == sorted(margins, reverse=True)


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


@pytest.mark.parametrize("stage", ["prompts", "candidates", "judgments", "pairs", "train"])
@pytest.mark.parametrize("damage", ["gone", "emptied", "garbled"])
def test_damage_to_one_artifact_leaves_the_others_evidence(tmp_path: Path, stage: str, damage: str) -> None:
    status, store = make_run(tmp_path, rounds=1)
    artifacts = status["rounds"][0]["artifacts"]
    whole = gather(artifacts, store)
    _harm(store.get(stage, artifacts[stage]).path, damage)
    found = gather(artifacts, store)
    assert not whole.gaps and len(found.gaps) == 1 and f"{stage} {artifacts[stage]}" in found.gaps[0]
    assert len(found.lengths) == (0 if stage == "candidates" else len(whole.lengths))
    assert len(found.scores) == (0 if stage == "judgments" else len(whole.scores))
    assert len(found.steps) == (0 if stage == "train" else len(whole.steps))
    assert len(found.pairs) == (0 if stage == "pairs" else len(whole.pairs))


def test_a_report_names_what_is_missing_and_tells_the_rest(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=2)
    artifacts = status["rounds"][1]["artifacts"]
    for stage, damage in (("candidates", "gone"), ("pairs", "garbled"), ("train", "emptied")):
        _harm(store.get(stage, artifacts[stage]).path, damage)
    page = page_of(status, store, tmp_path)
    assert all(f"round 1: {stage} {artifacts[stage]}" in page.text for stage in ("candidates", "pairs", "train"))
    assert "round 0: " not in page.text
    assert "34.2%" in page.text and page.named("svg")


def _harm(folder: Path, damage: str) -> None:
    for file in (*folder.glob("*.parquet"), *folder.glob("metrics.jsonl")):
        if damage == "garbled":
            file.write_bytes(b"not this")
        else:
            file.unlink()
    if damage == "gone":
        shutil.rmtree(folder)


def test_a_report_of_many_steps_and_long_texts_stays_small(chat: tuple[dict[str, Any], Store, Path]) -> None:
    status, store, root = chat
    assert write_report(status, store, root / "report.html").stat().st_size < 1_500_000


def test_control_characters_cannot_reorder_or_break_the_page(tmp_path: Path) -> None:
    status, store = make_run(tmp_path, rounds=1)
    status["rounds"][0]["gate"]["reason"] = "plain"
    prompt = Prompt("odd", "a\x00b\u202egnp.exe", (1,))
    sides = [Candidate(index, (2,), text, "stop", index) for index, text in enumerate(("ok\x1b[31m", ""))]
    pair = PreferencePair("p", prompt, sides[0], sides[1], 1.0, 0.0, 0, "c", "j")
    status["rounds"][0]["artifacts"]["pairs"] = _make(store, "pairs", "odd", table=pairs_table([pair])).key
    html = write_report(status, store, tmp_path / "report.html").read_text(encoding="utf-8")
    assert not set("\x00\x1b\u202e") & set(html)
    assert "a␀b" in html and "ok␛[31m" in html and '<div class="empty">empty</div>' in html
