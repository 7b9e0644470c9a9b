"""Cards: what the Hub reads of them, what a reader finds in them, and what must not be in them."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from pipeline.commands import note_command
from pipeline.errors import ConfigError
from pipeline.export.cards import Counts, Terms, data_card, model_card
from pipeline.export.columns import CONFIGS
from pipeline.export.dataset import export_data
from pipeline.recipe import load_recipe
from pipeline.runs import Run
from tests.exported import CONFIG, HOSTILE, POLICIES, Making, make_run

PROMPTS: dict[str, Any] = CONFIG["prompts"]
COUNTS = Counts({config: {0: 3, 1: 4} for config in CONFIGS}, {})
EXAMPLE = {
    "round": 1, "turns": [("", "what is")], "chosen_text": "good", "rejected_text": "bad", "score_chosen": 2.0,
    "score_rejected": 1.0,
}  # fmt: skip
TABLE = re.compile(r"(?:^\|.*\|\n)+", re.M)


def card_of(run: Run, terms: Terms | None = None, chat: bool = False, **example: Any) -> str:
    return data_card(run, run.status()["rounds"], COUNTS, chat, EXAMPLE | example, terms or Terms(), "c0ffee")


def model_card_of(run: Run, terms: Terms | None = None) -> str:
    return model_card(run, run.status()["rounds"], 1, POLICIES[2], False, terms or Terms())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("workspace"))


# ---------------------------------------------------------------------------------------------- the Hub
def test_the_hub_reads_the_front_matter_of_a_data_card(run: Run) -> None:
    card = DatasetCard(card_of(run, Terms("cc-by-4.0", ("en",), "acme/pairs")))
    told = card.data.to_dict()
    assert (told["license"], told["language"], told["size_categories"]) == ("cc-by-4.0", ["en"], ["n<1K"])
    assert [config["config_name"] for config in told["configs"]] == list(CONFIGS)
    assert [config["config_name"] for config in told["configs"] if config.get("default")] == ["default"]
    assert card.text.lstrip().startswith("# Questions")


def test_the_hub_reads_the_front_matter_of_a_model_card(run: Run) -> None:
    told = ModelCard(model_card_of(run, Terms("mit", (), "acme/policy", "acme/pairs"))).data.to_dict()
    assert (told["base_model"], told["base_model_relation"], told["license"]) == ("acme/tiny", "finetune", "mit")
    assert told["datasets"] == ["acme/pairs", "acme/questions"]
    assert (told["library_name"], told["pipeline_tag"]) == ("transformers", "text-generation")


def test_without_a_licence_the_card_says_that_it_is_unknown(run: Run) -> None:
    for card, read in ((card_of(run), DatasetCard), (model_card_of(run), ModelCard)):
        assert read(card).data.license == "unknown"
        assert "**The licence is unknown.**" in card
    assert "The licence is unknown" not in card_of(run, Terms("mit"))


def test_what_never_came_to_the_judge_is_counted(run: Run) -> None:
    entries = run.status()["rounds"]
    lost = [{**entries[0], "left_out": 2, "missing": {"big": {"timeout": 31}}}, *entries[1:]]
    told = data_card(run, lost, COUNTS, False, EXAMPLE, Terms(), "c0ffee")
    assert "| Prompts left out | 2 | – |" in told and "| Missing of big: timeout | 31 | – |" in told
    assert "left out |" not in card_of(run) and "Missing of" not in card_of(run)


@pytest.mark.parametrize("licence", ["", "Apache 2.0", "mit\nevil: true", "../mit"])
def test_a_licence_that_is_no_identifier_is_refused(licence: str) -> None:
    with pytest.raises(ConfigError, match=r"--license .*allowed.*apache-2.0"):
        Terms(licence)


def test_a_language_that_is_no_code_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--language 'English'"):
        Terms(languages=("en", "English"))


def test_a_policy_from_a_folder_or_from_scratch_has_no_base_model_on_the_hub(tmp_path: Path) -> None:
    for name, policy in {
        "local": {"type": "pretrained", "path": "/home/me/models/mine"},
        "scratch": {"type": "scratch", "corpus": {"function": "corpora:texts"}},
    }.items():
        card = model_card_of(make_run(tmp_path / name, Making(config={"policy": policy})))
        assert "base_model" not in ModelCard(card).data.to_dict()
        assert "/home/me" not in card


# ---------------------------------------------------------------------------------------------- a reader
def test_a_data_card_tells_lineage_judges_sampling_pairing_and_drops(run: Run) -> None:
    card = card_of(run)
    for digest in POLICIES[:3]:
        assert digest[:12] in card
    for told in (
        "reward model `acme/judge`", "Cohen's kappa", "0.300 to 0.520", "`temperature`", "`pairs_per_prompt` | `3`",
        "`margin` | `0.5`", "Dropped: tie", "dropped: duplicate | 3", "the data set `acme/questions`",
        "which did not label the pairs", "kl \\<= 10", "0 | 6 | 7 | `aaaaaaaaaaaa` |", "held out | 2", "1 (best)",
    ):  # fmt: skip
        assert told in card, told


def test_a_card_says_who_evaluated_where_the_judge_that_labelled_did_not(tmp_path: Path) -> None:
    by = {"judge": {"type": "rules", "rules": {"brief": {"type": "length", "maximum": 9}}}}
    run = make_run(tmp_path, Making(config={"evaluation": by}))
    for card in (card_of(run), model_card_of(run)):
        assert "did not label the pairs.\n\n- rules: brief (length)\n\n| figure |" in card
    assert "(length)" not in card_of(make_run(tmp_path / "same"))


def test_a_figure_is_told_without_the_one_above_it_which_may_not_be_there(run: Run) -> None:
    for card in (card_of(run), model_card_of(run)):
        assert "Win rate against initial" not in card  # as where no round was compared with the first policy
        assert "| the same" not in card and "scores above that of the policy the round started from" in card


def test_the_example_of_a_chat_is_the_whole_conversation(tmp_path: Path) -> None:
    shown = []
    for system in ("Speak as ```a pirate.", ""):
        run = make_run(tmp_path / f"workspace {bool(system)}", Making(rounds=1, chat=True, system=system))
        export_data(run, tmp_path / f"out {bool(system)}")
        card = (tmp_path / f"out {bool(system)}" / "README.md").read_text()
        shown.append(card.partition("The prompt:\n")[2].partition("Chosen, with")[0].strip())
    last = "```\nwhat is number 1 of round 0\n```"
    assert shown == [f"system:\n\n````\nSpeak as ```a pirate.\n````\n\nuser:\n\n{last}", last]


def test_a_card_tells_what_prompts_were_held_against(tmp_path: Path, run: Run) -> None:
    against = [{"type": "hub", "path": "acme/exam", "split": "test"}, {"type": "file", "path": "/home/me/more.jsonl"}]
    config = {"prompts": PROMPTS | {"decontaminate": {"against": against, "ngram": 8}}}
    made = make_run(tmp_path, Making(config=config))
    said = (
        "Those were dropped that share 8 words in a row, or a whole shorter text, with:\n\n- the data set `acme/exam` "
    )
    for card in (card_of(made), model_card_of(made)):
        assert said in card and "- the file `more.jsonl`\n" in card
    assert "words in a row" not in card_of(run) + model_card_of(run)


@pytest.mark.parametrize(
    ("pairing", "shown"),
    [
        ({}, {"rule", "pairs_per_prompt", "keep"}),
        ({"rule": "threshold"}, {"rule", "threshold"}),
        ({"margin": 1.0, "margin_unit": "sigma"}, {"margin", "margin_unit"}),
        ({"replay": {"share": 0.25, "offline": "other"}}, {"replay.share", "replay.offline"}),
    ],
    ids=["default", "threshold", "margin", "replay"],
)
def test_a_card_lists_no_setting_without_an_effect(pairing: dict[str, Any], shown: set[str], tmp_path: Path) -> None:
    made = make_run(tmp_path, Making(config={"pairing": pairing}))
    for card in (card_of(made), model_card_of(made)):
        listed = set(re.findall(r"^\| `([a-z_.]+)` \|", card, re.M))
        assert shown <= listed
        assert not ({"threshold", "margin_unit", "replay.share", "replay.offline"} - shown) & listed


@pytest.mark.parametrize(
    ("deduplicate", "said"),
    [
        ("none", "configs, but prompts were not deduplicated: one with the same text may be, under another id."),
        ("exact", "configs, nor is one with the same text."),
        ("near", "configs, nor is one with the same text, or, as far as such were found, with nearly the same."),
    ],
)
def test_a_card_claims_of_held_out_prompts_what_their_preparation_saw_to(
    deduplicate: str, said: str, tmp_path: Path
) -> None:
    made = make_run(tmp_path / "some", Making(config={"prompts": PROMPTS | {"deduplicate": deduplicate}}))
    assert f"Prompts that were held out for evaluation are in none of the {said}\n" in card_of(made)
    alike = "a held-out one may have the text of one that was trained on"
    assert (alike in model_card_of(made)) == (deduplicate == "none")


def test_a_card_tells_of_pairs_that_were_not_trained_on(run: Run) -> None:
    entries = run.status()["rounds"]
    apart = [entries[0], {**entries[1], "training": {"held_out": 1234}}]
    said = "Pairs of a share of the prompts were never trained on, but measured in training: 1,234 in round 1."
    cards = [
        data_card(run, apart, COUNTS, False, EXAMPLE, Terms(), "c0ffee"),
        model_card(run, apart, 1, POLICIES[2], False, Terms()),
    ]  # fmt: skip
    assert all(said in card for card in cards)
    assert "never trained on, but" not in card_of(run) + model_card_of(run)


def test_every_table_of_a_card_has_rows_of_one_width(tmp_path: Path) -> None:
    run = make_run(tmp_path, Making(panel=True, config={"title": HOSTILE, "description": HOSTILE}))
    for card in (card_of(run), model_card_of(run)):
        tables = TABLE.findall(outside_code(card))
        assert len(tables) >= 5
        for table in tables:
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_a_card_without_health_evaluation_or_prompts_says_so_and_is_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.directory / "initial.json").unlink()
    assert "was not measured in this run" in card_of(run)
    assert "None" not in re.sub(r"`None`", "", card_of(run))
    assert "# Questions" in model_card_of(run)


def test_the_commands_that_made_the_run_are_told_once_each(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for _ in range(2):
        note_command(run.directory, "0", ["ratchet", "run", "/home/me/recipes/mine.toml", "--workspace", "/data/space"])
    note_command(run.directory, "1", ["ratchet", "pair", "demo"], ["k1"])
    for card in (card_of(run), model_card_of(run)):
        assert "ratchet pair" not in card
        assert card.count("ratchet run mine.toml --workspace space") == 1
        assert "ratchet run recipe.toml --name demo" in card
        assert "/home/me" not in card


def test_data_of_others_models_is_told_as_that_and_has_no_policy(tmp_path: Path) -> None:
    run = make_run(tmp_path / "workspace", Making(rounds=1, models=("big", "small"), chat=True))
    told = export_data(run, tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "It holds the answers of big (`big-one`), small (`big-one`)" in card
    assert "| setting | big | small |" in card
    assert "`temperature` | 0.7 | 0.7 |" in card
    assert "ratchet data recipe.toml --name demo" in card
    for absent in (
        "online DPO", "tokens that were sampled", "sampled by", "promote", "What training on them did", "aaaaaaaaaaaa",
    ):  # fmt: skip
        assert absent not in card, absent
    assert told["rows"]["default"] == 7
    rows = datasets.load_dataset(str(tmp_path / "folder"), split="train", cache_dir=str(tmp_path / "cache")).to_list()
    assert {row["chosen_model"] for row in rows} == {"big", "small"}
    assert all((row["policy"], row["prompt_token_ids"], row["chosen_token_ids"]) == ("", [], []) for row in rows)


# ---------------------------------------------------------------------------------------------- hostile text
def outside_code(card: str) -> str:
    """The card without its blocks of code, found as CommonMark finds them."""
    kept, fence = [], ""
    for line in card.splitlines(keepends=True):
        opened = re.match(r"(`{3,})", line)
        if fence:
            if re.fullmatch(rf"`{{{len(fence)},}}\s*", line):
                fence = ""
        elif opened:
            fence = opened[1]
        else:
            kept.append(line)
    assert not fence, "a block of code never ends"
    return "".join(kept)


def test_hostile_text_ends_no_block_no_table_and_no_front_matter(tmp_path: Path) -> None:
    run = make_run(tmp_path, Making(config={"title": HOSTILE, "description": HOSTILE}, text=HOSTILE))
    card = card_of(run, turns=[(HOSTILE, HOSTILE), ("user", HOSTILE)], chosen_text=HOSTILE, rejected_text="````\n---\n")
    front, body = DatasetCard(card).data.to_dict(), DatasetCard(card).text
    assert set(front) == {"license", "pretty_name", "size_categories", "task_categories", "tags", "configs"}
    rest = outside_code(body)
    assert "<script>" not in rest
    assert not re.search(r"^---", rest, re.M)
    assert body.count("{{ jinja }}") >= 2  # in the example, as it was
    assert card.count("\n## ") == card_of(make_run(tmp_path / "tame")).count("\n## ")


def test_an_exported_recipe_with_hostile_text_is_a_recipe_that_loads(tmp_path: Path) -> None:
    run = make_run(tmp_path / "workspace", Making(config={"title": HOSTILE}))
    export_data(run, tmp_path / "folder")
    loaded = load_recipe(str(tmp_path / "folder" / "recipe.toml"), tmp_path)
    assert loaded.title == HOSTILE
    assert loaded.model_dump(mode="json") == json.loads((run.directory / "config.json").read_text())


# ---------------------------------------------------------------------------------------------- secrets
def test_no_secret_environment_value_or_local_path_is_in_any_text_of_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "quite-a-secret-value")
    judge = {
        "type": "reward_model", "path": f"{tmp_path}/judge-7b", "engine": "vllm",
        "base_url": "https://user:hunter22@judge.example/v1?key=abcdefgh",
    }  # fmt: skip
    endpoint = {"model": "m", "api_key_env": "JUDGE_KEY", "extra": {"note": "plain-text-key"}}
    run = make_run(
        tmp_path / "workspace",
        Making(
            config={
                "description": f"See {tmp_path}/notes.md and hf_{'x' * 30}, quite-a-secret-value.",
                "policy": {"type": "pretrained", "path": str(tmp_path / "models" / "base")},
                "judge": judge, "evaluation": {"judge": {"type": "pointwise", "endpoints": [endpoint]}},
                "prompts": {"source": {"type": "file", "path": f"{tmp_path}/prompts.jsonl"}, "held_out": 2},
            }
        ),
    )  # fmt: skip
    note_command(run.directory, "0", ["ratchet", "run", f"{tmp_path}/recipe.toml", "--set", "x=quite-a-secret-value"])
    export_data(run, tmp_path / "folder")
    texts = {file.name: file.read_text() for file in (tmp_path / "folder").iterdir() if file.is_file()}
    assert set(texts) == {"README.md", "recipe.toml", "lineage.json"}
    texts["model card"] = model_card_of(run)
    for name, text in texts.items():
        for secret in ("hunter22", "abcdefgh", "plain-text-key", "hf_xxx", "quite-a-secret-value", str(tmp_path)):
            assert secret not in text, (name, secret)
    assert "prompts.jsonl" in texts["README.md"]
    assert "judge-7b" in texts["README.md"]
    assert 'api_key_env = "JUDGE_KEY"' in texts["recipe.toml"] or '"api_key_env" = "JUDGE_KEY"' in texts["recipe.toml"]
    assert yaml.safe_load(texts["README.md"].split("---")[1])["license"] == "unknown"
