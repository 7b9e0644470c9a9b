"""A row becomes one prompt, or a named reason; a few bad rows are counted, many are fatal."""

import string
from typing import Any

import pytest

from pipeline.config import PromptsConfig
from pipeline.errors import DataError
from pipeline.prompts import load_prompts
from tests.pipeline.prompts.given import Mixture, Source, conserved, texts
from tests.tiny import ALPHABET

DIALOGUE = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: what is a fig?\n\nAssistant: a fruit"


def only(config: PromptsConfig, tokenizer: Any = None) -> Any:
    (prompt,) = load_prompts(config, tokenizer).rounds
    return prompt


def said(prompt: Any) -> list[str]:
    return [f"{turn['role']}: {turn['content']}" for turn in prompt.messages]


# ---------------------------------------------------------------------------------------------- columns
def test_columns_say_where_a_row_has_what(source: Source) -> None:
    row = {"question": "two and two?", "solution": 4, "answer": "not this", "key": 7, "id": "nor this"}
    prompt = only(source([row], {"columns": {"prompt": "question", "answer": "solution", "id": "key"}}))
    assert (prompt.text, prompt.answer, prompt.id) == ("two and two?", "4", "7")


def test_answer_is_not_read_unless_named(source: Source) -> None:
    assert only(source([{"prompt": "a", "answer": "b"}])).answer is None


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ({"turns": ["a", "b"]}, "turns.0"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "conversations.0.value"),
        ({"turns.0": "a", "turns": ["b"]}, "turns.0"),
        ({"0": {"1": "a"}}, "0.1"),
    ],
)
def test_dots_lead_into_lists_and_objects_and_a_column_of_that_name_comes_first(
    source: Source, row: Any, path: str
) -> None:
    assert only(source([row], {"columns": {"prompt": path}})).text == "a"


@pytest.mark.parametrize("path", ["turns.2", "turns.x", "turns.0.1", "turns.-1", "other.0"])
def test_dots_that_lead_nowhere_are_a_bad_row(source: Source, path: str) -> None:
    rows = [{"turns": ["a", "b"]}]
    with pytest.raises(DataError, match=rf"1 of 1 rows are unusable.*row 1: has no '{path}'; it has turns"):
        load_prompts(source(rows, {"columns": {"prompt": path}}), None)


# ---------------------------------------------------------------------------------------------- conversations
def test_sharegpt_messages_are_messages(source: Source) -> None:
    turns = [("system", "be brief"), ("human", "hi"), ("gpt", "hello"), ("human", "bye")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    prompt = only(source([row], {"columns": {"prompt": "conversations"}}, template="chat"))
    assert said(prompt) == ["system: be brief", "user: hi", "assistant: hello", "user: bye"]


@pytest.mark.parametrize("end", ["\n\nAssistant: a fruit", "\n\nAssistant:", ""])
def test_transcript_of_human_and_assistant_is_a_conversation(source: Source, end: str) -> None:
    row = {"prompt": DIALOGUE.removesuffix("\n\nAssistant: a fruit") + end}
    prompt = only(source([row], template="chat", cut_answers=True))
    assert said(prompt) == ["user: hi", "assistant: hello", "user: what is a fig?"]
    assert prompt.text == "what is a fig?"


def test_plain_transcript_is_cut_where_its_last_answer_begins(source: Source) -> None:
    assert only(source([{"prompt": DIALOGUE}], cut_answers=True)).text == DIALOGUE.removesuffix(" a fruit")
    assert only(source([{"prompt": DIALOGUE}])).text == DIALOGUE


def test_conversation_that_ends_with_an_answer_is_used_only_where_answers_are_cut(source: Source) -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        *({"role": "assistant", "content": text} for text in "ab"),
    ]
    with pytest.raises(DataError, match="ends with a message of 'assistant'"):
        load_prompts(source([{"prompt": turns}], template="chat"), None)
    turns[-1]["tool_calls"] = [{"id": "1"}]  # it is cut off too
    assert said(only(source([{"prompt": turns}], template="chat", cut_answers=True))) == ["user: hi"]


def test_a_message_alone_is_the_same_prompt_as_its_text_and_another_system_message_makes_another(
    source: Source,
) -> None:
    rows = [
        {"prompt": "hi"},
        {"prompt": [{"role": "user", "content": "hi"}]},
        {"prompt": "hi", "rules": "be kind"},
        {"prompt": [{"from": "system", "value": "be kind"}, {"from": "human", "value": "hi"}]},
    ]
    found = load_prompts(source(rows, {"columns": {"system": "rules"}}, template="chat"), None)
    assert [said(prompt) for prompt in found.rounds] == [["user: hi"], ["system: be kind", "user: hi"]]
    assert found.dropped == {"duplicate": 2}


# ---------------------------------------------------------------------------------------------- bad rows
@pytest.mark.parametrize(
    ("row", "template", "reason"),
    [
        ({"question": "a"}, "plain", "has no 'prompt'; it has question"),
        ({}, "plain", "has no 'prompt'; it has nothing"),
        ({"prompt": None}, "plain", "has no 'prompt'"),
        ('{"prompt": NaN}', "plain", "has no 'prompt'"),
        ({"prompt": 3}, "plain", "neither a string nor a list of messages"),
        ({"prompt": " \n"}, "plain", "has an empty 'prompt'"),
        ({"prompt": ["a"]}, "chat", "neither a string nor a list of messages"),
        ({"prompt": [{"role": "user"}]}, "chat", "neither a string nor a list of messages"),
        ({"prompt": [{"role": "user", "content": None}]}, "chat", "role or content is no string"),
        ({"prompt": [{"from": "human", "value": [1]}]}, "chat", "role or content is no string"),
        ({"prompt": [{"from": "human"}]}, "chat", "neither a string nor a list of messages"),
        ({"prompt": [{"from": "tool", "value": "a"}]}, "chat", "has a message from 'tool'; allowed: human, user"),
        ({"prompt": [{"from": ["human"], "value": "a"}]}, "chat", "neither a string nor a list of messages"),
        ({"prompt": []}, "chat", "ends with a message of 'nobody'"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "chat", "ends with a message of 'assistant'"),
        ({"prompt": [{"role": "user", "content": "a"}]}, "plain", 'needs prompts.template = "chat"'),
        (
            {"prompt": [{"role": "usr", "content": "a"}, {"role": "user", "content": "b"}]},
            "chat",
            "has a message of 'usr'; allowed: system, user, assistant",
        ),
        (
            {"prompt": [{"role": role, "content": "a"} for role in ("user", "system", "user")]},
            "chat",
            "refused by the chat template: system comes first",
        ),
        (
            {"prompt": [{"role": "assistant", "content": "", "tool_calls": [1]}, {"role": "user", "content": "a"}]},
            "chat",
            "has a message with 'tool_calls'; prompts hold role and content alone",
        ),
        (
            {"prompt": [{"role": "tool", "tool_call_id": "1", "content": "4"}, {"role": "user", "content": "a"}]},
            "chat",
            "has a message with 'tool_call_id'",
        ),
        ({"prompt": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}, "chat", "has 'tools'"),
        ({"prompt": "and tomorrow?", "tools": '[{"type": "function"}]'}, "chat", "has 'tools'"),
        ({"prompt": "a<bos>b"}, "plain", "has the BOS token '<bos>'"),
        ({"prompt": "<bos>b"}, "chat", "has the BOS token '<bos>'"),
        ({"prompt": "a", "id": ["x"]}, "plain", "'id' is a list"),
        ('{"prompt": "half of a pair: \\ud800"}', "plain", "'prompt' is no Unicode text"),
        ('{"prompt": "a", "id": "\\udc00"}', "plain", "'id' is no Unicode text"),
        ([1, 2], "plain", "is a list, not an object"),
        ('{"prompt": "a"', "plain", "is not JSON"),
        ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "plain", "is not JSON: maximum recursion depth exceeded"),
    ],
)
def test_bad_row_is_counted_and_named(source: Source, chat: Any, row: Any, template: str, reason: str) -> None:
    good = [{"prompt": letter, "id": f"row {number}"} for number, letter in enumerate(ALPHABET[1:25], start=1)]
    found = load_prompts(source([*good, row], template=template), chat)
    assert found.dropped == {"bad": 1}
    assert len(found.rounds) == len(good)
    assert found.bad[0].startswith("row 25: ")
    assert reason in found.bad[0]


@pytest.mark.parametrize(
    ("columns", "row", "reason"),
    [
        ({"answer": "solution"}, {"prompt": "a"}, "has no 'solution'; it has prompt"),
        ({"answer": "solution"}, {"prompt": "a", "solution": [4]}, "'solution' is a list, not a string or a number"),
        ({"answer": "solution"}, {"prompt": "a", "solution": ""}, "has an empty 'solution'"),
        ({"id": "key"}, {"prompt": "a", "id": "b"}, "has no 'key'"),
        ({"id": "key"}, {"prompt": "a", "key": ""}, "has an empty 'key'"),
        ({"system": "rules"}, {"prompt": "a", "rules": 3}, "'rules' is a int, not a string"),
    ],
)
def test_a_column_that_is_asked_for_has_to_be_there(source: Source, columns: Any, row: Any, reason: str) -> None:
    with pytest.raises(DataError, match=f"row 1: {reason}"):
        load_prompts(source([row], {"columns": columns}, template="chat"), None)


def test_more_than_one_bad_row_in_twenty_is_fatal_and_shows_the_first(source: Source, tokenizer: Any) -> None:
    rows: list[Any] = [{"prompt": letter} for letter in ALPHABET.strip()[:19]]
    assert load_prompts(source([*rows, {}]), tokenizer).dropped == {"bad": 1}
    with pytest.raises(DataError, match=r"2 of 21 rows are unusable; allowed: 5%; row 20: has no 'prompt'.*; row 21: "):
        load_prompts(source([*rows, {}, {"prompt": ""}]), tokenizer)
    assert load_prompts(source([*rows, {}, {"prompt": ""}], bad_rows=0.5), tokenizer).dropped == {"bad": 2}


def test_a_member_that_is_wrong_is_fatal_however_many_good_rows_others_have(mixture: Mixture) -> None:
    good = [{"prompt": letter} for letter in string.ascii_letters]
    with pytest.raises(DataError, match=r"prompts.source.members.wrong.source: 1 of 1 rows .*; wrong row 1: has no"):
        load_prompts(mixture({"right": good, "wrong": [{"question": "a"}]}), None)


def test_two_rows_with_one_id_are_one_too_many_only_in_one_source(mixture: Mixture) -> None:
    def config(**members: list[Any]) -> PromptsConfig:
        settings = mixture(members).model_dump()
        for member in settings["source"]["members"].values():
            member["source"]["columns"] = {"id": "id"}
        return PromptsConfig.model_validate(settings)

    members = {name: [{"prompt": f"{name} x", "id": 1}] for name in ("a", "b")}
    found = load_prompts(config(**members), None)
    assert [prompt.id for prompt in found.rounds] == ["a/1", "b/1"]
    with pytest.raises(DataError, match=r"members.b.source: 1 of 2 rows .*b row 2: has the id 'b/1' of row 1"):
        load_prompts(config(a=members["a"], b=[*members["b"], {"prompt": "other", "id": 1}]), None)


def test_an_id_that_nobody_asked_for_names_a_prompt_where_it_is_its_own(source: Source) -> None:
    ids = ["maths", "maths", "history", "", None]
    rows = [{"prompt": letter, "id": id} for letter, id in zip("abcde", ids, strict=True)]
    found = load_prompts(source(rows), None)
    alone = [load_prompts(source([{"prompt": letter}]), None).rounds[0].id for letter in "abcde"]
    assert [prompt.id for prompt in found.rounds] == [*alone[:2], "history", *alone[3:]]
    assert load_prompts(source(rows[::-1]), None).rounds == found.rounds[::-1]


# ---------------------------------------------------------------------------------------------- lengths and ids
def test_prompts_of_too_many_or_too_few_tokens_are_dropped_bos_included(source: Source, tokenizer: Any) -> None:
    rows = [{"prompt": "a"}, {"prompt": "abc"}, {"prompt": "abcd"}]
    found = load_prompts(source(rows, min_tokens=3, max_tokens=4), tokenizer)
    assert texts(found.rounds) == ["abc"]
    assert found.dropped == {"too_short": 1, "too_long": 1}
    assert conserved(found)


def test_repeats_that_are_kept_have_ids_of_their_own(source: Source, tokenizer: Any) -> None:
    rows = [{"prompt": "apple"}, {"prompt": "pear"}, {"prompt": "apple"}]
    found = load_prompts(source(rows, deduplicate="none"), tokenizer)
    first, pear, second = (prompt.id for prompt in found.rounds)
    assert second == f"{first}-2"
    assert len({first, pear, second}) == 3


def test_id_without_an_own_one_hangs_on_the_text_alone(source: Source, tokenizer: Any) -> None:
    words = [{"prompt": word} for word in ALPHABET.strip()]
    forwards = load_prompts(source(words), tokenizer).rounds
    backwards = load_prompts(source([{**row, "split": "train"} for row in reversed(words)]), tokenizer).rounds
    assert forwards == backwards[::-1]
