"""Every prompt is rendered exactly once, to the ids the policy reads, with one BOS at most."""

from typing import Any

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.prompts import load_prompts, render_texts
from tests.pipeline.prompts.given import CHAT, Source, texts
from tests.tiny import BOS, token_ids


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
    found = load_prompts(source([{"prompt": "<bos>ravin likes"}, {"prompt": "ravin likes"}]), tokenizer)
    (prompt,) = found.rounds
    assert prompt.token_ids == token_ids("ravin likes")
    assert prompt.text == "ravin likes"
    assert found.dropped == {"duplicate": 1}


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


def test_a_conversation_s_own_system_message_comes_first_then_the_row_s_then_the_recipe_s(
    source: Source, chat: Any
) -> None:
    own = [{"role": "system", "content": "be long"}, {"role": "user", "content": "hello"}]
    rows = [
        {"prompt": "hello", "rules": None},
        {"prompt": "hello", "rules": "be kind"},
        {"prompt": own, "rules": "be kind"},
    ]
    config = source(rows, {"columns": {"system": "rules"}}, template="chat", system="be brief")
    found = load_prompts(config, chat)
    assert [prompt.token_ids for prompt in found.rounds] == [
        token_ids(f"system, {system}.user, hello.assistant, ") for system in ("be brief", "be kind", "be long")
    ]


def test_chat_without_a_template_is_refused(source: Source, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r'prompts.template: "chat".*no chat template.*"plain"'):
        load_prompts(source([{"prompt": "hello"}], template="chat"), tokenizer)


def test_without_a_tokenizer_prompts_are_text_alone_and_of_any_length(source: Source) -> None:
    rows = [{"prompt": "hello " * 50}, {"prompt": [{"role": "user", "content": "<bos>hi"}]}]
    found = load_prompts(source(rows, template="chat", max_tokens=2, system="be brief"), None)
    assert texts(found.rounds) == ["hello " * 50, "<bos>hi"]
    assert all(prompt.token_ids == () for prompt in found.rounds)
    assert [turn["role"] for turn in found.rounds[1].messages] == ["system", "user"]


def test_prompts_encoded_in_several_batches_are_those_of_one(
    source: Source, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = source([{"prompt": "a" * length} for length in range(1, 40)], min_tokens=3, max_tokens=30)
    whole = load_prompts(config, tokenizer)
    monkeypatch.setattr("pipeline.prompts.BATCH", 50)
    assert load_prompts(config, tokenizer) == whole
    assert whole.dropped == {"too_short": 1, "too_long": 10}


def test_texts_from_elsewhere_are_rendered_as_the_run_s_prompts_are(source: Source, chat: Any) -> None:
    config = source([{"prompt": "hello"}], template="chat", system="be brief")
    given = render_texts(["hello", "hello"], config, chat)
    assert [prompt.token_ids for prompt in given] == [load_prompts(config, chat).rounds[0].token_ids] * 2
    assert len({prompt.id for prompt in given}) == 2
    with pytest.raises(DataError, match=r"one of \['hello', ' '\] has an empty 'prompt'"):
        render_texts(["hello", " "], config, chat)
