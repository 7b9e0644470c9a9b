"""What a reward model is taught is what it is asked: the trainer's ids and the judge's are the same."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from judges.classifier import Classifier
from pipeline.config import RewardModelJudge
from pipeline.errors import ConfigError, DataError
from pipeline.types import Candidate, PreferencePair, Prompt
from tests.tiny_chat import BOS, TEMPLATE, encoder_reward_model, reward_model
from tests.trainers.tokenizers import TEMPLATES, TOKENIZERS
from trainers.conversations import ConversationEncoder
from trainers.examples import Pair, Row

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "what is it?"}]


def encoder(path: Path, longest: int | None = None) -> ConversationEncoder:
    return ConversationEncoder(AutoTokenizer.from_pretrained(path), longest)


def pair_of(path: Path, row: dict[str, Any]) -> Pair:
    (example,) = encoder(path).encode([row], "rows").examples
    assert isinstance(example, Pair)
    return example


def whole(row: Row) -> list[int]:
    return [*row.prompt, *row.completion]


def candidate(text: str) -> Candidate:
    return Candidate(0, (5,), text, "stop", 0)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", [None, *TEMPLATES])
@pytest.mark.parametrize("plain", [True, False])
def test_rows_are_what_the_judge_reads(tmp_path: Path, tokenizer: str, template: str | None, plain: bool) -> None:
    if template is None and not plain:
        pytest.skip("a chat needs a template")
    reward_model(tmp_path)
    made = TOKENIZERS[tokenizer]()
    made.chat_template = None if template is None else TEMPLATES[template]
    if template is None:
        (tmp_path / "chat_template.jinja").unlink()
    made.save_pretrained(tmp_path)
    prompt = "ravin likes" if plain else CHAT
    pair = pair_of(tmp_path, {"prompt": prompt, "chosen": " ice cream.", "rejected": "its own sky!"})
    judge = Classifier(RewardModelJudge(type="reward_model", path=str(tmp_path)))
    asked = Prompt("p", "ravin likes", (7,), messages=() if plain else tuple(CHAT))  # type: ignore[arg-type]
    assert whole(pair.chosen) == judge.render(asked, candidate(" ice cream."))
    assert whole(pair.rejected) == judge.render(asked, candidate("its own sky!"))
    assert pair.chosen.prompt == pair.rejected.prompt


def test_an_encoder_reads_its_own_special_tokens_around_plain_text(tmp_path: Path) -> None:
    encoder_reward_model(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    pair = pair_of(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"})
    assert whole(pair.chosen)[0] == BOS
    assert len(pair.chosen) == 3


def test_margins_soft_labels_and_swaps_are_kept(tmp_path: Path) -> None:
    path = reward_model(tmp_path)
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2.0, "prompt_id": "p1"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "preference": 0.2},
        {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1.0, "score_rejected": 3.0},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": "q", "chosen": "a" * 300, "rejected": "b"},
    ]
    found = encoder(path, longest=64).encode(rows, "rows")
    margin, soft, contradicted = found.examples
    assert isinstance(margin, Pair) and isinstance(soft, Pair) and isinstance(contradicted, Pair)
    assert (margin.margin, margin.prompt_id) == (2.0, "p1")
    assert soft.preference == 0.8
    assert soft.chosen == margin.rejected
    assert contradicted.margin == -2.0
    assert found.dropped == {"identical": 1, "too_long": 1}
    assert found.altered == {"swapped": 1, "contradicted": 1}


def test_a_runs_own_pairs_are_read_as_text(tmp_path: Path) -> None:
    """The policy that sampled them may have another tokenizer: its ids say nothing here."""
    path = reward_model(tmp_path)
    prompt = Prompt("p7", "what is it?", (9_999,), messages=tuple(CHAT))  # type: ignore[arg-type]
    pair = PreferencePair("id", prompt, candidate("good"), candidate("bad"), 2.0, 0.5, 0, "", "")
    (made,) = encoder(path).own_pairs([pair], "pairs", "run").examples
    text = pair_of(path, {"prompt": CHAT, "chosen": "good", "rejected": "bad"})
    assert isinstance(made, Pair)
    assert (made.chosen, made.rejected) == (text.chosen, text.rejected)
    assert (made.margin, made.source, made.prompt_id) == (1.5, "run", "p7")


def test_a_template_that_refuses_drops_the_row(tmp_path: Path) -> None:
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    path = reward_model(tmp_path, template=no_system)
    rows = [{"prompt": CHAT, "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a", "rejected": "b"}]
    assert encoder(path).encode(rows, "rows").dropped == {"refused_by_template": 1}


def test_labelled_completions_and_chats_without_a_template_are_refused(tmp_path: Path) -> None:
    path = reward_model(tmp_path, template=None)
    with pytest.raises(DataError, match="row 1 is one completion with a label; allowed: pairs"):
        encoder(path).encode([{"prompt": "q", "completion": "a", "label": True}], "rows")
    with pytest.raises(ConfigError, match="row 1 is a conversation"):
        encoder(path).encode([{"prompt": CHAT, "chosen": "a", "rejected": "b"}], "rows")
