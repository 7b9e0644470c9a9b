"""Every row of a source becomes one prompt or one counted drop, and every prompt is rendered exactly once."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.config import PromptsConfig
from pipeline.errors import ConfigError, DataError
from pipeline.prompts import PromptSet, load_prompts, round_slice
from pipeline.types import Prompt
from tests.tiny import ALPHABET, BOS, make_policy, token_ids

CHAT = (
    "{{ bos_token }}{% for turn in messages %}"
    "{% if turn.role not in ('system', 'user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ turn.role }}, {{ turn.content }}.{% endfor %}{% if add_generation_prompt %}assistant, {% endif %}"
)
FRUIT = ["apple", "pear", "plum", "cherry", "quince", "fig", "date", "lime"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy") / "tiny").path


@pytest.fixture
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture
def chat(tokenizer: Any) -> Any:
    tokenizer.chat_template = CHAT
    return tokenizer


class Source:
    """Writes rows to a JSONL file and makes the config that reads it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "prompts.jsonl"

    def __call__(self, rows: Sequence[Any], source: Mapping[str, Any] | None = None, **settings: Any) -> PromptsConfig:
        self.file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        where = {"type": "file", "path": str(self.file), **(source or {})}
        return PromptsConfig.model_validate({"source": where, **settings})


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def texts(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def conserved(found: PromptSet) -> bool:
    return len(found.rounds) + len(found.held_out) + sum(found.dropped.values()) == found.rows


# ---------------------------------------------------------------------------------------------- rendering
def test_plain_prompt_is_one_bos_and_its_text(source: Source, tokenizer: Any) -> None:
    (prompt,) = load_prompts(source([{"prompt": "ravin likes"}]), tokenizer).rounds
    assert prompt.token_ids == token_ids("ravin likes")
    assert prompt.token_ids.count(BOS) == 1
    assert prompt.messages == ()


def test_plain_prompt_of_a_tokenizer_without_bos_has_none(source: Source, tokenizer: Any) -> None:
    tokenizer.bos_token = None
    (prompt,) = load_prompts(source([{"prompt": "ravin likes"}]), tokenizer).rounds
    assert prompt.token_ids == token_ids("ravin likes")[1:]


def test_bos_written_in_a_plain_text_is_not_doubled(source: Source, tokenizer: Any) -> None:
    (prompt,) = load_prompts(source([{"prompt": "<bos>ravin likes"}]), tokenizer).rounds
    assert prompt.token_ids == token_ids("ravin likes")
    assert prompt.text == "ravin likes"


def test_chat_prompt_is_what_the_template_says(source: Source, chat: Any) -> None:
    (prompt,) = load_prompts(source([{"prompt": "what is a fig?"}], template="chat"), chat).rounds
    assert prompt.token_ids == token_ids("user, what is a fig?.assistant, ")
    assert prompt.messages == ({"role": "user", "content": "what is a fig?"},)
    expected = chat.apply_chat_template(list(prompt.messages), add_generation_prompt=True, return_dict=False)
    assert list(prompt.token_ids) == expected


def test_bos_that_the_template_doubles_is_stripped(source: Source, chat: Any) -> None:
    chat.chat_template = "{{ bos_token }}" + CHAT
    (prompt,) = load_prompts(source([{"prompt": "hello"}], template="chat"), chat).rounds
    assert prompt.token_ids == token_ids("user, hello.assistant, ")


def test_template_without_bos_gets_none(source: Source, chat: Any) -> None:
    chat.chat_template = CHAT.removeprefix("{{ bos_token }}")
    (prompt,) = load_prompts(source([{"prompt": "hello"}], template="chat"), chat).rounds
    assert prompt.token_ids == token_ids("user, hello.assistant, ")[1:]


def test_conversation_keeps_its_turns_and_its_last_user_turn_is_the_text(source: Source, chat: Any) -> None:
    turns = [
        {"role": "user", "content": "hello", "name": "ignored"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "bye"},
    ]
    (prompt,) = load_prompts(source([{"prompt": turns}], template="chat"), chat).rounds
    assert prompt.text == "bye"
    assert prompt.token_ids == token_ids("user, hello.assistant, hi.user, bye.assistant, ")


def test_system_message_is_put_only_where_there_is_none(source: Source, chat: Any) -> None:
    own = [{"role": "system", "content": "be long"}, {"role": "user", "content": "hello"}]
    config = source([{"prompt": "hello"}, {"prompt": own}], template="chat", system="be brief")
    first, second = load_prompts(config, chat).rounds
    assert first.token_ids == token_ids("system, be brief.user, hello.assistant, ")
    assert second.token_ids == token_ids("system, be long.user, hello.assistant, ")


def test_chat_without_a_template_is_refused(source: Source, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r'prompts.template: "chat".*no chat template.*"plain"'):
        load_prompts(source([{"prompt": "hello"}], template="chat"), tokenizer)


# ---------------------------------------------------------------------------------------------- sources
def test_file_source_reads_the_columns_it_is_told(source: Source, tokenizer: Any) -> None:
    rows = [{"question": "two and two?", "solution": 4, "answer": "not this"}]
    (prompt,) = load_prompts(source(rows, {"columns": {"prompt": "question", "answer": "solution"}}), tokenizer).rounds
    assert (prompt.text, prompt.answer) == ("two and two?", "4")


def test_answer_is_not_read_unless_named(source: Source, tokenizer: Any) -> None:
    assert load_prompts(source([{"prompt": "a", "answer": "b"}]), tokenizer).rounds[0].answer is None


def test_directory_of_files_gives_the_prompts_the_file_gives(source: Source, tokenizer: Any) -> None:
    config = source([{"prompt": word, "answer": word[0]} for word in FRUIT], {"columns": {"answer": "answer"}})
    hub = {"type": "hub", "path": str(source.file.parent), "columns": {"answer": "answer"}}
    by_directory = load_prompts(PromptsConfig.model_validate({"source": hub}), tokenizer)
    assert by_directory == load_prompts(config, tokenizer)


def test_callable_source_gives_ids_answers_and_splits(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "def rows(n):\n"
        "    for i in range(n):\n"
        "        word = chr(97 + i)\n"
        "        yield {'prompt': word, 'id': i, 'answer': word, 'split': 'held_out' if i == 2 else 'train'}\n"
    )
    call = {"function": f"{tmp_path}/mine.py:rows", "args": {"n": 4}}
    config = PromptsConfig.model_validate({"source": {"type": "callable", "call": call}, "held_out": 1})
    found = load_prompts(config, tokenizer)
    assert [(prompt.id, prompt.answer) for prompt in found.rounds] == [("0", "a"), ("1", "b"), ("3", "d")]
    assert texts(found.held_out) == ["c"]


@pytest.mark.parametrize("body", ["raise OSError('no corpus')", "return None"])
def test_callable_that_fails_is_named(tmp_path: Path, tokenizer: Any, body: str) -> None:
    (tmp_path / "mine.py").write_text(f"def rows():\n    {body}\n")
    call = {"function": f"{tmp_path}/mine.py:rows"}
    config = PromptsConfig.model_validate({"source": {"type": "callable", "call": call}})
    with pytest.raises(DataError, match=r"mine\.py:rows' failed: (OSError|TypeError)"):
        load_prompts(config, tokenizer)


@pytest.mark.parametrize("kind", ["file", "hub"])
def test_source_that_is_not_there_is_named(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    config = PromptsConfig.model_validate({"source": {"type": kind, "path": str(tmp_path / "gone")}})
    with pytest.raises(DataError, match="gone' cannot be"):
        load_prompts(config, tokenizer)


def test_empty_source_is_refused(source: Source, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no rows"):
        load_prompts(source([""]), tokenizer)


# ---------------------------------------------------------------------------------------------- bad rows
@pytest.mark.parametrize(
    ("row", "template", "reason"),
    [
        ({"question": "a"}, "plain", "has no 'prompt'; it has question"),
        ({"prompt": None}, "plain", "has no 'prompt'"),
        ({"prompt": 3}, "plain", "neither a string nor a list of messages"),
        ({"prompt": " \n"}, "plain", "has an empty 'prompt'"),
        ({"prompt": ["a"]}, "chat", "neither a string nor a list of messages"),
        ({"prompt": [{"role": "user"}]}, "chat", "neither a string nor a list of messages"),
        ({"prompt": [{"role": "user", "content": None}]}, "chat", "role or content is no string"),
        ({"prompt": []}, "chat", "ends with a message of 'nobody'"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "chat", "ends with a message of 'assistant'"),
        ({"prompt": [{"role": "user", "content": "a"}]}, "plain", 'needs prompts.template = "chat"'),
        (
            {"prompt": [{"role": "critic", "content": "a"}, {"role": "user", "content": "b"}]},
            "chat",
            "refused by the chat template: no such role",
        ),
        ({"prompt": "a<bos>b"}, "plain", "has the BOS token '<bos>'"),
        ({"prompt": "<bos>b"}, "chat", "has the BOS token '<bos>'"),
        ({"prompt": "a", "id": ["x"]}, "plain", "'id' is a list"),
        ({"prompt": "new", "id": "row 1"}, "plain", "has the id 'row 1' of row 1"),
        ([1, 2], "plain", "is a list, not an object"),
        ('{"prompt": "a"', "plain", "is not JSON"),
    ],
)
def test_bad_row_is_counted_and_named(source: Source, chat: Any, row: Any, template: str, reason: str) -> None:
    good = [{"prompt": letter, "id": f"row {number}"} for number, letter in enumerate(ALPHABET[1:25], start=1)]
    found = load_prompts(source([*good, row], template=template), chat)
    assert found.dropped == {"bad": 1}
    assert len(found.rounds) == len(good)
    assert found.bad[0].startswith("row 25: ")
    assert reason in found.bad[0]


def test_more_than_one_bad_row_in_twenty_is_fatal_and_shows_the_first(source: Source, tokenizer: Any) -> None:
    rows: list[Any] = [{"prompt": letter} for letter in ALPHABET.strip()[:19]]
    assert load_prompts(source([*rows, {}]), tokenizer).dropped == {"bad": 1}
    with pytest.raises(DataError, match=r"2 of 21 rows are unusable; allowed: 5%; row 20: has no 'prompt'.*; row 21: "):
        load_prompts(source([*rows, {}, {"prompt": ""}]), tokenizer)


# ---------------------------------------------------------------------------------------------- drops and ids
def test_long_prompts_are_dropped_bos_included(source: Source, tokenizer: Any) -> None:
    found = load_prompts(source([{"prompt": "abc"}, {"prompt": "abcd"}], max_tokens=4), tokenizer)
    assert texts(found.rounds) == ["abc"]
    assert found.dropped == {"too_long": 1}


def test_repeated_text_is_dropped_and_a_held_out_one_never_trained_on(source: Source, tokenizer: Any) -> None:
    rows = [
        {"prompt": "apple"},
        {"prompt": "pear"},
        {"prompt": "pear"},
        {"prompt": "apple", "split": "held_out"},
        {"prompt": "apple", "split": "held_out"},
    ]
    found = load_prompts(source(rows, held_out=1), tokenizer)
    assert (texts(found.rounds), texts(found.held_out)) == (["pear"], ["apple"])
    assert found.dropped == {"duplicate": 2, "in_held_out": 1}
    assert conserved(found)


def test_repeats_that_are_kept_have_ids_of_their_own(source: Source, tokenizer: Any) -> None:
    rows = [{"prompt": "apple"}, {"prompt": "pear"}, {"prompt": "apple"}]
    found = load_prompts(source(rows, deduplicate=False), tokenizer)
    first, pear, second = (prompt.id for prompt in found.rounds)
    assert second == f"{first}-2"
    assert len({first, pear, second}) == 3


def test_id_without_an_own_one_hangs_on_the_text_alone(source: Source, tokenizer: Any) -> None:
    words = [{"prompt": word} for word in FRUIT]
    forwards = load_prompts(source(words), tokenizer).rounds
    backwards = load_prompts(source([{**row, "split": "train"} for row in reversed(words)]), tokenizer).rounds
    assert forwards == backwards[::-1]


# ---------------------------------------------------------------------------------------------- the split
def test_marked_rows_are_held_out_first_and_never_trained_on(source: Source, tokenizer: Any) -> None:
    rows = [{"prompt": word, "split": "held_out" if word in ("fig", "plum") else "train"} for word in FRUIT]
    some = load_prompts(source(rows, held_out=1), tokenizer)
    assert set(texts(some.held_out)) < {"fig", "plum"}
    assert some.dropped == {"surplus_held_out": 1}
    more = load_prompts(source(rows, held_out=4), tokenizer)
    assert {"fig", "plum"} < set(texts(more.held_out))
    assert not set(texts(more.held_out)) & set(texts(more.rounds))
    assert conserved(some)
    assert conserved(more)


def test_split_hangs_on_ids_and_seed_and_not_on_row_order(source: Source, tokenizer: Any) -> None:
    rows = [{"prompt": a + b} for a in FRUIT for b in FRUIT]
    config = source(rows, held_out=20)
    first = load_prompts(config, tokenizer, seed=1)
    assert set(texts(first.held_out)) != set(texts(load_prompts(config, tokenizer, seed=2).held_out))
    again = load_prompts(source(rows[::-1], held_out=20), tokenizer, seed=1)
    assert set(texts(first.held_out)) == set(texts(again.held_out))


@pytest.mark.parametrize(
    ("held_out", "mark", "message"),
    [
        (6, "train", r"6 and at least one .* of 6 prompts \(dropped: 2 too_long\)"),
        (6, "held_out", r"6 and at least one"),
        (5, "held_out", r"all 6 usable rows are held out"),
    ],
)
def test_too_few_prompts_is_an_error_with_the_numbers(
    source: Source, tokenizer: Any, held_out: int, mark: str, message: str
) -> None:
    rows = [{"prompt": word, "split": mark} for word in FRUIT]
    with pytest.raises(DataError, match=message):
        load_prompts(source(rows, held_out=held_out, max_tokens=len("cherry")), tokenizer)


# ---------------------------------------------------------------------------------------------- rounds
def numbered(count: int) -> list[Prompt]:
    return [Prompt(str(index), f"prompt {index}", (index,)) for index in range(count)]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 9), st.randoms())
def test_windows_use_every_prompt_equally_and_none_twice(count: int, per_round: int, seed: int, random: Any) -> None:
    prompts = numbered(count)
    uses: Counter[str] = Counter()
    for round in range(8):
        window = round_slice(prompts, round, per_round, seed)
        ids = [prompt.id for prompt in window]
        assert len(set(ids)) == len(ids) == min(per_round, count)
        uses.update(ids)
        assert max(uses.values()) - (min(uses.values()) if len(uses) == count else 0) <= 1
        shuffled = random.sample(prompts, count)
        assert set(window) == set(round_slice(shuffled, round, per_round, seed))


def test_laps_and_seeds_are_shuffled_differently() -> None:
    prompts = numbered(40)
    first = round_slice(prompts, 0, 20, seed=0)
    assert first != round_slice(prompts, 2, 20, seed=0)
    assert first != round_slice(prompts, 0, 20, seed=1)
    assert sorted(texts(first)) != sorted(texts(prompts[:20]))


def test_zero_a_round_takes_all() -> None:
    prompts = numbered(5)
    assert round_slice(prompts, 3, 0, seed=0) == prompts


def test_real_prompts_load_whole(shared_data: Path, chat: Any) -> None:
    path = shared_data / "prompts" / "self_instruct_user_oriented.jsonl"
    where = {"type": "file", "path": str(path), "columns": {"prompt": "instruction"}}
    config = PromptsConfig.model_validate({"source": where, "template": "chat", "held_out": 50})
    found = load_prompts(config, chat)
    assert found.rows == len(path.read_text().splitlines())
    assert found.bad == ()
    assert conserved(found)
    assert len(found.held_out) == 50
    assert {prompt.id.rpartition("_")[0] for prompt in found.rounds} == {"user_oriented_task"}
