"""Of prompts that say the same, the first is kept; one that is held out is never trained on, not even nearly."""

import random
from typing import Any

from pipeline.prompts import load_prompts
from pipeline.prompts.words import words
from tests.pipeline.prompts.given import Mixture, Source, conserved, texts

STORY = " ".join(f"word{number}" for number in range(60))


def test_repeated_text_is_dropped_and_a_held_out_one_never_trained_on(source: Source, tokenizer: Any) -> None:
    rows = [
        {"prompt": "apple"},
        {"prompt": "pear"},
        {"prompt": "apple"},
        {"prompt": "pear"},
        {"prompt": "apple", "split": "held_out"},
        {"prompt": "apple", "split": "held_out"},
        {"prompt": "apple"},
    ]
    found = load_prompts(source(rows, held_out=1), tokenizer)
    assert (texts(found.rounds), texts(found.held_out)) == (["pear"], ["apple"])
    assert found.dropped == {"duplicate": 2, "in_held_out": 3}
    assert conserved(found)


def test_first_member_keeps_a_text_and_the_other_one_s_is_counted(mixture: Mixture) -> None:
    members = {"a": [{"prompt": "apple"}, {"prompt": "pear"}], "b": [{"prompt": "pear"}, {"prompt": "plum"}]}
    found = load_prompts(mixture(members), None)
    assert [(prompt.source, prompt.text) for prompt in found.rounds] == [("a", "apple"), ("a", "pear"), ("b", "plum")]
    assert found.by_source["b"] == {"rows": 2, "rounds": 1, "held_out": 0, "duplicate": 1}


# ---------------------------------------------------------------------------------------------- near
def changed(text: str, count: int) -> str:
    """``text`` with its last ``count`` words replaced."""
    kept = text.split()[:-count]
    return " ".join([*kept, *(f"other{number}" for number in range(count))])


def test_near_repeats_are_dropped_and_those_under_the_threshold_kept(source: Source) -> None:
    near, far = changed(STORY, 3), changed(STORY, 20)  # 55 of 61 and 38 of 78 3-grams are shared
    rows = [{"prompt": text} for text in (STORY, near, STORY.upper(), far, "what is 2+2?", "what is 2-2?")]
    found = load_prompts(source(rows, deduplicate="near"), None)
    assert texts(found.rounds) == [STORY, far, "what is 2+2?", "what is 2-2?"]
    assert found.dropped == {"near_duplicate": 2}
    stricter = load_prompts(source(rows, deduplicate="near", near_threshold=0.95), None)
    assert stricter.dropped == {"near_duplicate": 1}


def test_what_is_near_a_held_out_prompt_is_not_trained_on_wherever_it_stands(source: Source) -> None:
    rows = [{"prompt": changed(STORY, 2)}, {"prompt": STORY, "split": "held_out"}, {"prompt": changed(STORY, 1)}]
    found = load_prompts(source([*rows, {"prompt": "other"}], deduplicate="near", held_out=1), None)
    assert (texts(found.rounds), texts(found.held_out)) == (["other"], [STORY])
    assert found.dropped == {"in_held_out": 2}


def test_system_messages_neither_make_prompts_alike_nor_hide_in_them(source: Source) -> None:
    rows = [
        {"prompt": "what is a fig?", "rules": STORY},
        {"prompt": "who wrote the iliad?", "rules": STORY},
        {"prompt": "what is a fig?", "rules": "be brief"},
        {"prompt": "What is a fig ?", "rules": "be brief"},
    ]
    config = source(rows, {"columns": {"system": "rules"}}, template="chat", deduplicate="near")
    found = load_prompts(config, None)
    assert texts(found.rounds) == ["what is a fig?", "who wrote the iliad?", "what is a fig?"]
    assert found.dropped == {"near_duplicate": 1}


def test_words_of_scripts_without_spaces_are_their_signs() -> None:
    assert words("Ｗhat 是什么 x2?") == ["what", "是", "什", "么", "x2"]
    assert words("2+2, 'so'", signs=True) == ["2", "+", "2", ",", "'", "so", "'"]


def grams(text: str) -> set[tuple[str, ...]]:
    said = text.split()
    return {tuple(said[i : i + 3]) for i in range(max(len(said) - 2, 1))}


def like(one: str, other: str) -> float:
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def test_nothing_is_dropped_that_is_not_near_something_kept_and_nearly_all_that_is(source: Source) -> None:
    chance = random.Random(0)
    stories = [" ".join(chance.choices("abcdefghijklmnop", k=30)) for _ in range(50)]
    rows = [" ".join(word if chance.random() > 0.03 else "z" for word in story.split()) for story in stories * 4]
    found = load_prompts(source([{"prompt": row} for row in rows], deduplicate="near"), None)
    kept = texts(found.rounds)
    assert found.dropped["near_duplicate"] > 30
    assert all(any(like(row, other) >= 0.8 for other in kept) for row in set(rows) - set(kept))
    missed = [like(one, other) for at, one in enumerate(kept) for other in kept[:at] if like(one, other) >= 0.8]
    assert len(missed) <= 0.15 * found.dropped["near_duplicate"]
    assert max(missed, default=0.8) < 0.9
