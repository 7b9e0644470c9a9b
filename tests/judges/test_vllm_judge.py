"""A real vLLM server with a tiny random model as judge: the forms we ask for are kept, the numbers are the model's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from judges import Desk
from judges.pairwise import PairwiseJudge
from judges.pointwise import PointwiseJudge
from pipeline import config as knobs
from tests.judges.asked import group
from tests.tiny_chat import BOS, EOS, TEMPLATE, llama, save_tokenizer
from tests.vllm_server import serve

GROUPS = [group(f"{word} a", f"{word} b", f"{word} c", prompt=word) for word in ("one", "two")]


@dataclass(frozen=True)
class Served:
    path: Path
    base_url: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(1)
    config = llama(head_dim=32)  # the smallest that vLLM's CPU attention has
    config.max_position_embeddings = 4096  # a question is long in bytes
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=0)
    model.save_pretrained(folder / "model")
    turn = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    save_tokenizer(folder / "model", TEMPLATE.replace("{{ eos_token }}", turn))
    with serve(folder / "model", folder / "server.log", "--max-model-len", "4096") as base_url:
        yield Served(folder / "model", base_url)


@pytest.fixture
def ask(served: Served, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A judge of this kind, made of an endpoint's settings and its own; closed at the end."""
    made: list[PointwiseJudge | PairwiseJudge] = []

    def make(kind: str, structured: str, logprobs: bool = False, **more: Any) -> PointwiseJudge | PairwiseJudge:
        endpoint = {"model": "judge", "base_url": served.base_url, "structured": structured, "logprobs": logprobs}
        desk = Desk(str(tmp_path / "ledger.sqlite"), "test")
        settings: dict[str, Any] = {"type": kind, "endpoints": [endpoint | {"tries": 1}], **more}
        if kind == "pointwise":
            made.append(PointwiseJudge(knobs.PointwiseJudge(**settings), "judge", desk))
        else:
            made.append(PairwiseJudge(knobs.PairwiseJudge(**settings), "judge", desk))
        return made[-1]

    yield make
    for each in made:
        each.close()


def chances(served: Served, messages: Any, labels: str) -> list[float]:
    """The model's own probabilities of ``labels`` as its first token, renormalised, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(served.path)
    text = tokenizer.apply_chat_template([dict(each) for each in messages], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(served.path)(ids).logits[0, -1].double()
    numbers = [tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in labels]
    return [float(each) for each in logits[numbers].softmax(0)]


def test_choices_give_soft_labels_that_are_the_models_own_probabilities(
    served: Served, ask: Callable[..., Any]
) -> None:
    judge = ask("pairwise", "choice")
    (judgment,) = judge.judge(GROUPS[:1])
    requests = [request for _, request in judge.calls(GROUPS[:1])]
    expected = {}
    for request in requests:
        first, _, tie = chances(served, request.messages, "ABC")
        expected[request.key] = first + tie / 2
    calls = [call for vote in judgment.votes for call in vote["calls"]]
    assert len(calls) == 6
    for call in calls:
        assert call["value"] == pytest.approx(expected[call["key"]], abs=1e-4)
        assert call["mass"] == pytest.approx(1.0, abs=1e-3)
        assert 0 < call["value"] < 1
    for vote in judgment.votes:
        straight, swapped = (call["value"] for call in vote["calls"])
        assert vote["result"] == pytest.approx((straight + 1 - swapped) / 2)
    assert all(score is not None for score in judgment.scores)


def test_a_rating_by_choice_is_the_expected_value(served: Served, ask: Callable[..., Any]) -> None:
    judge = ask("pointwise", "choice", highest=5)
    (judgment,) = judge.judge(GROUPS[:1])
    for score, (_, request) in zip(judgment.scores, judge.calls(GROUPS[:1]), strict=True):
        weights = chances(served, request.messages, "12345")
        assert score == pytest.approx(sum(n * weight for n, weight in enumerate(weights, 1)), abs=1e-3)


def test_a_json_schema_is_kept_and_its_number_has_log_probabilities(ask: Callable[..., Any]) -> None:
    judgments = ask("pointwise", "json_schema", logprobs=True, reasoning=False, max_tokens=60).judge(GROUPS)
    calls = [call for judgment in judgments for vote in judgment.votes for call in vote["calls"]]
    assert {call.get("abstained") for call in calls} <= {None, "truncated"}  # a random model may pad for ever
    verdicts = [call for call in calls if "value" in call]
    assert verdicts
    assert all(call["label"] in "123456789" for call in verdicts)
    soft = [call for call in verdicts if "mass" in call]
    assert soft
    for call in soft:  # what is no label is white space, which JSON allows there
        assert 0.5 <= call["mass"] <= 1.001
        assert 1 < call["value"] < 9
        assert call["value"] != int(call["label"])


def test_reasons_before_the_verdict_or_prose_alone_end_as_verdict_or_as_named_abstention(
    ask: Callable[..., Any],
) -> None:
    reasons = ask("pairwise", "json_schema", max_tokens=200, temperature=1.0, samples=2).judge(GROUPS)
    prose = ask("pairwise", "none", max_tokens=20).judge(GROUPS)
    calls = [call for each in reasons for vote in each.votes for call in vote.get("calls", [])]
    assert {call.get("abstained") for call in calls} <= {None, "truncated"}
    assert len(calls) == 24
    assert len({call["key"] for call in calls}) == 24
    for judgment in prose:  # a random model says nothing that could be taken for a verdict
        assert judgment.scores == (None, None, None)
        assert {vote["abstained"] for vote in judgment.votes} <= {"truncated", "unreadable", "no_comparison"}
