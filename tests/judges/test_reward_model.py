from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTModel,
)

from judges import make_judge
from judges.reward_model import RewardModelJudge
from pipeline.config import RewardModelJudge as RewardModelConfig
from pipeline.errors import JudgeError
from pipeline.types import Candidate, Group, Judgment, Prompt
from tests.tiny_chat import BOS, EOS, TEMPLATE, encoder_reward_model, llama, reward_model, save_tokenizer


def make(path: Path, **more: Any) -> RewardModelJudge:
    settings = {"path": str(path), "dtype": "float32"} | more
    judge = make_judge(RewardModelConfig(type="reward_model", **settings), "rm")
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


MODELS: dict[str, Callable[[Path], Path]] = {
    "decoder": reward_model,
    "decoder without a padding id": lambda path: reward_model(path, pad_token_id=None),
    "decoder that pads with its EOS": lambda path: reward_model(path, pad_token_id=EOS),
    "BERT": encoder_reward_model,
    "BERT without a padding id": lambda path: encoder_reward_model(path, pad_token_id=None),
    "RoBERTa": lambda path: encoder_reward_model(path, "roberta", pad_token_id=0),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_score_is_the_same_whatever_the_batch_and_the_padding_side(tmp_path: Path, kind: str, side: str) -> None:
    path = MODELS[kind](tmp_path)
    save_tokenizer(path, TEMPLATE, padding_side=side)
    together = scores_of(make(path).judge(RAGGED))
    alone = scores_of(make(path, token_budget=16).judge(RAGGED))
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(plain_scores(path), abs=1e-5)
    assert len({round(score, 3) for score in together}) == 9  # they do tell the texts apart


def plain_scores(path: Path) -> list[float]:
    """One forward pass a conversation, nothing padded: the plainest computation there is."""
    classifier = make(path).classifier
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([classifier.render(group.prompt, candidate)])).logits[0, 0].item()
            for group in RAGGED
            for candidate in group.candidates
        ]


def scores_of(judgments: Sequence[Judgment]) -> list[float]:
    return [score for judgment in judgments for score in judgment.scores if score is not None]


def test_two_threads_get_the_scores_of_one(tmp_path: Path) -> None:
    judge = make(reward_model(tmp_path, pad_token_id=None), token_budget=64)
    expected = scores_of(judge.judge(RAGGED))
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: scores_of(judge.judge(RAGGED)), range(8)))
    assert all(each == expected for each in found)


def test_a_bfloat16_model_has_a_head_of_float32(tmp_path: Path) -> None:
    """Logits of bfloat16 have 8 bits: of these scores many would be one."""
    path = reward_model(tmp_path)
    exact = scores_of(make(path).judge(RAGGED))
    rounded = make(path, dtype="bfloat16")
    found = scores_of(rounded.judge(RAGGED))
    assert next(rounded.model.base_model.parameters()).dtype == torch.bfloat16
    assert found == pytest.approx(exact, abs=0.1)
    assert sum(score != torch.tensor(score).bfloat16().item() for score in found) >= 7


def test_the_score_is_the_raw_logit_of_the_templated_conversation(tmp_path: Path) -> None:
    path = reward_model(tmp_path)
    (judgment,) = make(path).judge(groups([["fine"]]))
    text = "<bos>user: question 0?\nassistant: fine\n<eos>"
    ids = AutoTokenizer.from_pretrained(path)(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = LlamaForSequenceClassification.from_pretrained(path)(input_ids=ids).logits[0, 0].item()
    assert judgment.scores[0] == pytest.approx(expected, abs=1e-5)
    assert judgment.votes[0] == {"tokens": ids.shape[1], "logits": {"LABEL_0": judgment.scores[0]}}


def test_a_templated_conversation_has_one_bos_and_keeps_its_turns(tmp_path: Path) -> None:
    judge = make(reward_model(tmp_path))
    turns = ({"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"})
    ids = judge.classifier.render(Prompt("p", "hi", (7,), messages=turns), RAGGED[0].candidates[0])
    assert ids.count(BOS) == 1
    assert judge.classifier.tokenizer.decode(ids) == "<bos>system: be kind\nuser: hi\nassistant: a\n<eos>"


def test_without_a_template_plain_text_is_judged_and_a_chat_refused(tmp_path: Path) -> None:
    judge = make(reward_model(tmp_path, template=None))
    ids = judge.classifier.render(Prompt("p", "ravin likes", (7,)), Candidate(0, (5,), " pizza", "stop", 0))
    assert judge.classifier.tokenizer.decode(ids) == "<bos>ravin likes pizza"
    chat = Prompt("p9", "hi", (7,), messages=({"role": "user", "content": "hi"},))
    with pytest.raises(JudgeError, match=r"cannot read prompt 'p9': its tokenizer has no chat template"):
        judge.judge([Group(chat, RAGGED[0].candidates)])


def test_a_template_that_refuses_a_conversation_is_one_clear_error(tmp_path: Path) -> None:
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    chat = Prompt("p9", "hi", (7,), messages=({"role": "system", "content": "be kind"},))
    with pytest.raises(JudgeError, match="cannot read prompt 'p9': its chat template refuses: no system role"):
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


LABELS = {0: "helpful", 1: "harmless", 2: "humour"}


def test_heads_are_weighed_by_label_or_number_and_all_logits_kept(tmp_path: Path) -> None:
    path = reward_model(tmp_path, num_labels=3, id2label=LABELS)
    (judgment,) = make(path, heads={"helpful": 2.0, "2": -0.5}).judge(groups([["fine"]]))
    logits = judgment.votes[0]["logits"]
    assert list(logits) == ["helpful", "harmless", "humour"]
    assert judgment.scores[0] == pytest.approx(2.0 * logits["helpful"] - 0.5 * logits["humour"])
    assert len(set(logits.values())) == 3


@pytest.mark.parametrize(
    ("heads", "match"),
    [
        ({}, r"has 3 outputs and no weights.*'helpful' \(0\), 'harmless' \(1\), 'humour' \(2\)"),
        ({"helpfull": 1.0}, r"no output 'helpfull'; allowed in heads: 'helpful' \(0\), 'harmless'"),
        ({"3": 1.0}, "no output '3'"),
        ({"helpful": 1.0, "0": 1.0}, "'0' is output 0 .* has a weight already"),
    ],
)
def test_heads_that_name_no_output_or_one_twice_are_refused(
    tmp_path: Path, heads: dict[str, float], match: str
) -> None:
    path = reward_model(tmp_path, num_labels=3, id2label=LABELS)
    with pytest.raises(JudgeError, match=match):
        make(path, heads=heads)


def test_only_a_head_that_counts_makes_a_verdict_an_abstention(tmp_path: Path) -> None:
    judge = make(reward_model(tmp_path, num_labels=3, id2label=LABELS), heads={"helpful": 1.0})
    with torch.no_grad():
        judge.model.score.weight[1] = float("inf")
    (judgment,) = judge.judge(groups([["a"]]))
    assert judgment.scores[0] is not None
    assert judgment.votes[0]["logits"]["harmless"] is None
    with torch.no_grad():
        judge.model.score.weight[0] = float("nan")
    (judgment,) = judge.judge(groups([["a"]]))
    assert judgment.scores == (None,)
    assert judgment.votes[0]["abstained"] == "the logit of 'helpful' is nan"


def test_a_head_that_nobody_trained_is_refused(tmp_path: Path) -> None:
    LlamaForCausalLM(llama(num_labels=1, tie_word_embeddings=True)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, TEMPLATE)
    with pytest.raises(JudgeError, match=r"but a LlamaForCausalLM: its checkpoint lacks score\.weight.*judge train"):
        make(tmp_path, heads={"0": 1.0})


def test_a_model_that_no_classifier_can_be_made_of_is_one_clear_error(tmp_path: Path) -> None:
    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    save_tokenizer(tmp_path, TEMPLATE)
    with pytest.raises(JudgeError, match="cannot be loaded: Unrecognized configuration class") as error:
        make(tmp_path, heads={"0": 1.0})
    assert "\n" not in str(error.value)


def test_a_model_without_a_tokenizer_is_one_clear_error(tmp_path: Path) -> None:
    LlamaForSequenceClassification(llama(num_labels=1)).save_pretrained(tmp_path)
    with pytest.raises(JudgeError, match="has no tokenizer that loads"):
        make(tmp_path)


def test_two_bos_are_refused(tmp_path: Path) -> None:
    judge = make(reward_model(tmp_path, template="{{ bos_token }}" + TEMPLATE))
    with pytest.raises(JudgeError, match=r"cannot read prompt 'p0': it begins with two BOS \('<bos>'\)"):
        judge.judge(RAGGED)


def test_a_plain_prompt_that_holds_its_bos_gets_no_second_one(tmp_path: Path) -> None:
    judge = make(reward_model(tmp_path, template=None))
    ids = judge.classifier.render(Prompt("p", "<bos>ravin likes", (7,)), Candidate(0, (5,), " pizza", "stop", 0))
    assert ids.count(BOS) == 1


def test_roberta_has_fewer_positions_than_its_table_has_rows(tmp_path: Path) -> None:
    judge = make(encoder_reward_model(tmp_path, "roberta", pad_token_id=0))
    assert judge.classifier.longest == 255
    (judgment,) = judge.judge(groups([["x" * 300, "y" * 200]]))
    assert judgment.votes[0]["abstained"] == "longer than 255 tokens"
    assert judgment.scores[1] is not None


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="cannot be loaded"):
        make(tmp_path / "nothing")
