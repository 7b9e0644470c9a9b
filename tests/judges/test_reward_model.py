from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification

from judges import make_judge
from judges.reward_model import RewardModelJudge, batches
from pipeline.config import RewardModelJudge as RewardModelConfig
from pipeline.errors import JudgeError
from pipeline.types import Candidate, Group, Prompt
from tests.tiny_chat import BOS, EOS, TEMPLATE, llama, reward_model, save_tokenizer


def make(path: Path, **more: Any) -> RewardModelJudge:
    judge = make_judge(RewardModelConfig(type="reward_model", path=str(path), dtype="float32", **more), "rm")
    assert isinstance(judge, RewardModelJudge)
    return judge


def groups(texts: Sequence[Sequence[str]]) -> list[Group]:
    return [
        Group(
            Prompt(f"p{number}", f"question {number}?", (7,)),
            tuple(Candidate(i, (5,), text, "stop", seed=i) for i, text in enumerate(group)),
        )
        for number, group in enumerate(texts)
    ]


RAGGED = groups([["a", "bb " * 9, "a longer answer"], ["", "z" * 60, "no"], ["yes", "perhaps", "y" * 33]])


@pytest.mark.parametrize("pad_token_id", [0, None, EOS])
def test_a_score_is_the_same_whatever_the_batch(tmp_path: Path, pad_token_id: int | None) -> None:
    path = reward_model(tmp_path, pad_token_id=pad_token_id)
    together = make(path).judge(RAGGED)
    alone = make(path, token_budget=16).judge(RAGGED)
    for one, many in zip(alone, together, strict=True):
        assert one.scores == pytest.approx(many.scores, abs=1e-5)
    scores = [score for judgment in together for score in judgment.scores]
    assert len({round(score, 3) for score in scores if score is not None}) == 9  # they do tell the texts apart


def test_the_score_is_the_raw_logit_of_the_templated_conversation(tmp_path: Path) -> None:
    path = reward_model(tmp_path)
    (judgment,) = make(path).judge(groups([["fine"]]))
    text = "<bos>user: question 0?\nassistant: fine\n<eos>"
    ids = AutoTokenizer.from_pretrained(path)(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = LlamaForSequenceClassification.from_pretrained(path)(input_ids=ids).logits[0, 0].item()
    assert judgment.scores[0] == pytest.approx(expected, abs=1e-5)
    assert judgment.votes[0] == {"tokens": ids.shape[1]}


def test_a_templated_conversation_has_one_bos_and_keeps_its_turns(tmp_path: Path) -> None:
    judge = make(reward_model(tmp_path))
    turns = ({"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"})
    ids = judge.render(Prompt("p", "hi", (7,), messages=turns), RAGGED[0].candidates[0])
    assert ids.count(BOS) == 1
    assert judge.tokenizer.decode(ids) == "<bos>system: be kind\nuser: hi\nassistant: a\n<eos>"


def test_without_a_template_plain_text_is_judged_and_a_chat_refused(tmp_path: Path) -> None:
    judge = make(reward_model(tmp_path, template=None))
    ids = judge.render(Prompt("p", "ravin likes", (7,)), Candidate(0, (5,), " pizza", "stop", 0))
    assert judge.tokenizer.decode(ids) == "<bos>ravin likes pizza"
    chat = Prompt("p9", "hi", (7,), messages=({"role": "user", "content": "hi"},))
    with pytest.raises(JudgeError, match=r"no chat template.*'p9'"):
        judge.judge([Group(chat, RAGGED[0].candidates)])


def test_a_template_that_refuses_a_conversation_is_one_clear_error(tmp_path: Path) -> None:
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    chat = Prompt("p9", "hi", (7,), messages=({"role": "system", "content": "be kind"},))
    with pytest.raises(JudgeError, match="refuses prompt 'p9': no system role"):
        make(reward_model(tmp_path, template=no_system)).judge([Group(chat, RAGGED[0].candidates)])


@pytest.mark.parametrize(("max_tokens", "limit"), [(48, 48), (4096, 256)])  # 256: all the positions the model has
def test_a_conversation_that_is_too_long_abstains_and_the_others_are_judged(
    tmp_path: Path, max_tokens: int, limit: int
) -> None:
    judge = make(reward_model(tmp_path), max_tokens=max_tokens)
    (judgment,) = judge.judge(groups([["short", "long " * 100]]))
    assert judgment.scores[0] is not None
    assert judgment.scores[1] is None
    assert judgment.votes[1]["abstained"] == f"longer than {limit} tokens"


def test_a_logit_that_is_not_a_number_abstains(tmp_path: Path) -> None:
    judge = make(reward_model(tmp_path))
    with torch.no_grad():
        judge.model.score.weight.fill_(float("nan"))
    (judgment,) = judge.judge(groups([["a", "b"]]))
    assert judgment.scores == (None, None)
    assert judgment.votes[0]["abstained"] == "the logit is nan"


def test_two_labels_are_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"num_labels = 2; allowed: 1"):
        make(reward_model(tmp_path, num_labels=2))


def test_a_head_that_nobody_trained_is_refused(tmp_path: Path) -> None:
    LlamaForCausalLM(llama(num_labels=1, tie_word_embeddings=True)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, TEMPLATE)
    with pytest.raises(JudgeError, match=r"score\.weight"):
        make(tmp_path)


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="cannot be loaded"):
        make(tmp_path / "nothing")


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [3, 9, 1, 4, 4, 30, 2]
    made = list(batches(lengths, token_budget=12))
    assert sorted(position for batch in made for position in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[p] for p in batch) <= 12 for batch in made)
    assert [5] in made  # longer than the budget: by itself
    assert len(made) < len(lengths)
