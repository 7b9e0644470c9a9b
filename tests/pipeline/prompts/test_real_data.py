"""Published data sets in one mixture: every row of theirs is accounted for."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.config import PromptsConfig
from pipeline.prompts import PromptSet, load_prompts, round_slice
from tests.pipeline.prompts.given import CHAT, conserved


def member(folder: Path, path: str, weight: float = 1.0, **columns: str) -> dict[str, Any]:
    return {"weight": weight, "source": {"type": "file", "path": str(folder / path), "columns": columns}}


def mixture(folder: Path, *names: str, **settings: Any) -> PromptsConfig:
    members = {
        "mt-bench": member(folder, "prompts/mt_bench_question.jsonl", prompt="turns.0", id="question_id"),
        "vicuna": member(folder, "prompts/vicuna_bench_question.jsonl", prompt="turns.0", id="question_id"),
        "self-instruct": member(folder, "prompts/self_instruct_user_oriented.jsonl", prompt="instruction"),
        "gsm8k": member(folder, "verifiable/gsm8k_train.jsonl", 3.0, prompt="question", answer="answer"),
        "hh": member(folder, "preferences/hh_harmless_base_test.jsonl.gz", 2.0, prompt="chosen"),
    }
    source = {"type": "mixture", "members": {name: members[name] for name in names or members}}
    settings = {"template": "chat", "cut_answers": True, "per_round": 400} | settings
    return PromptsConfig.model_validate({"source": source, **settings})


@pytest.fixture(scope="module")
def found(shared_data: Path, checkpoint: Path) -> PromptSet:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = CHAT
    return load_prompts(mixture(shared_data, min_tokens=40, max_tokens=2000, held_out=100), tokenizer)


def test_every_row_of_a_mixture_is_accounted_for(found: PromptSet) -> None:
    assert (found.rows, found.dropped, found.bad) == (10197, {"too_short": 21, "duplicate": 4, "too_long": 33}, ())
    lost = {name: dict(list(counts.items())[3:]) for name, counts in found.by_source.items()}
    assert lost == {
        "mt-bench": {},
        "vicuna": {"duplicate": 2},  # questions of MT-bench
        "self-instruct": {"duplicate": 1, "too_short": 1},
        "gsm8k": {},
        "hh": {"duplicate": 1, "too_short": 20, "too_long": 33},
    }
    assert {name: counts["rows"] for name, counts in found.by_source.items()} == {
        "mt-bench": 80, "vicuna": 80, "self-instruct": 252, "gsm8k": 7473, "hh": 2312,
    }  # fmt: skip
    assert conserved(found)


def test_prompts_are_what_their_sources_say(found: PromptSet) -> None:
    prompts = {prompt.id: prompt for prompt in (*found.rounds, *found.held_out)}
    assert prompts["mt-bench/81"].text.startswith("Compose an engaging travel blog post")
    assert prompts["vicuna/1"].text == "How can I improve my time management skills?"
    solved = [prompt for prompt in prompts.values() if prompt.source == "gsm8k"]
    assert all(re.search(r"\n#### -?[\d,.]+$", prompt.answer or "") for prompt in solved)
    talks = [prompt for prompt in prompts.values() if prompt.source == "hh"]
    assert all("Assistant:" not in turn["content"] for talk in talks for turn in talk.messages)
    assert {talk.messages[-1]["role"] for talk in talks} == {"user"}
    assert sum(len(talk.messages) > 1 for talk in talks) == 1617


def test_windows_of_a_mixture_hold_its_weights_until_the_small_sets_have_run_dry(found: PromptSet) -> None:
    weights = {"mt-bench": 1.0, "vicuna": 1.0, "self-instruct": 1.0, "gsm8k": 3.0, "hh": 2.0}
    windows = [round_slice(found.rounds, round, 400, 0, weights) for round in range(4)]
    assert [Counter(prompt.source for prompt in window) for window in windows] == [
        {"gsm8k": 150, "hh": 100, "mt-bench": 50, "self-instruct": 50, "vicuna": 50},
        {"gsm8k": 172, "hh": 115, "mt-bench": 29, "self-instruct": 57, "vicuna": 27},
        {"gsm8k": 200, "hh": 133, "self-instruct": 67},
        {"gsm8k": 200, "hh": 133, "self-instruct": 67},
    ]
    assert len({prompt.id for window in windows for prompt in window}) == 1600


def test_published_sets_repeat_one_another_nearly(shared_data: Path) -> None:
    near = load_prompts(mixture(shared_data, "mt-bench", "vicuna", "self-instruct", "hh", deduplicate="near"), None)
    assert (near.rows, near.dropped) == (2724, {"duplicate": 5, "near_duplicate": 8})


def test_training_questions_that_an_evaluation_asks_are_found(shared_data: Path) -> None:
    against = [
        member(shared_data, "prompts/mt_bench_question.jsonl", prompt="turns.0")["source"],
        member(shared_data, "verifiable/gsm8k_example_model_solutions.jsonl", prompt="question")["source"],
    ]
    config = mixture(shared_data, "vicuna", "self-instruct", "gsm8k", decontaminate={"against": against})
    clean = load_prompts(config, None)
    assert {name: counts.get("contaminated", 0) for name, counts in clean.by_source.items()} == {
        "vicuna": 2, "self-instruct": 0, "gsm8k": 4,
    }  # fmt: skip
