from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.config import Call, ScratchPolicy
from trainers.tokenizer import build_tokenizer

TEXTS = ["ravin likes ice cream .", "anna , who cooks , likes 'pizza' !", "été  très  bon\tici"] * 20
KINDS: list[Literal["characters", "bpe"]] = ["characters", "bpe"]


def tokenizer_of(kind: Literal["characters", "bpe"], vocab_size: int = 300) -> Any:
    config = ScratchPolicy(type="scratch", corpus=Call(function="m:f"), tokenizer=kind, vocab_size=vocab_size)
    return build_tokenizer(config, TEXTS)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_back_exactly_what_was_encoded_after_saving_and_loading(
    kind: Literal["characters", "bpe"], tmp_path: Path
) -> None:
    tokenizer_of(kind).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:3]:
        ids = loaded(text)["input_ids"]
        assert loaded.decode(ids, skip_special_tokens=True) == text
        assert ids == tokenizer_of(kind)(text)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_gets_one_bos_and_no_eos_and_only_when_special_tokens_are_asked_for(
    kind: Literal["characters", "bpe"],
) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer("ravin likes")["input_ids"]
    assert ids == [tokenizer.bos_token_id, *tokenizer("ravin likes", add_special_tokens=False)["input_ids"]]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.chat_template is None
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4


def test_characters_are_one_token_each_and_others_unknown() -> None:
    tokenizer = tokenizer_of("characters")
    assert len(tokenizer("ice cream", add_special_tokens=False)["input_ids"]) == len("ice cream")
    assert tokenizer("Ω", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    assert len(tokenizer) == 4 + len(set("".join(TEXTS)))


BPE = tokenizer_of("bpe")


@given(st.text())
def test_bpe_knows_every_text(text: str) -> None:
    ids = BPE(text, add_special_tokens=False)["input_ids"]
    if not any(token in text for token in BPE.all_special_tokens):
        assert BPE.decode(ids) == text
        assert BPE.unk_token_id not in ids


def test_bpe_has_the_size_asked_for_and_is_the_same_each_time() -> None:
    assert len(BPE) == 300
    assert BPE.get_vocab() == tokenizer_of("bpe").get_vocab()
