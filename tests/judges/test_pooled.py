"""Reward models through vLLM: the scores of transformers, and one clear error for each way it can go wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaForCausalLM

from judges import make_judge
from judges import pooled as module
from judges.pooled import Engine, PooledRewardModel
from judges.reward_model import RewardModelJudge
from pipeline.config import RewardModelJudge as RewardModelConfig
from pipeline.errors import JudgeError
from pipeline.types import Candidate, Group, Judgment, Prompt
from tests.tiny_chat import EOS, TEMPLATE, encoder_reward_model, llama, reward_model, save_tokenizer
from tests.vllm_server import serve

HEADS = {"helpful": 1.0, "1": -0.5}
MORE = {"num_labels": 3, "id2label": {0: "helpful", 1: "wordy", 2: "funny"}, "head_dim": 32, "pad_token_id": EOS}
"""Several outputs; and padding that is the EOS every row ends with: transformers reads the logit before it."""
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


def make(path: Path, **more: Any) -> Any:
    settings = {"path": str(path), "dtype": "float32", "max_tokens": 128, "heads": HEADS} | more
    return make_judge(RewardModelConfig(type="reward_model", **settings), "rm")


def groups(texts: Sequence[Sequence[str]]) -> list[Group]:
    return [
        Group(
            Prompt(f"p{number}", f"question {number}?", (7,)),
            tuple(Candidate(i, (5,), text, "stop", i) for i, text in enumerate(group)),
        )
        for number, group in enumerate(texts)
    ]


RAGGED = groups([["a", "bb " * 9, "a longer answer"], ["", "z" * 60, "no" * 200], ["yes", "perhaps", "y" * 33]])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_model(tmp_path_factory.mktemp("rm"), **MORE)


@pytest.fixture(scope="module")
def expected(path: Path) -> list[Judgment]:
    judge = make(path)
    assert isinstance(judge, RewardModelJudge)
    judgments = judge.judge(RAGGED)
    assert judgments[1].scores[2] is None
    return judgments


def check_same(found: Sequence[Judgment], expected: Sequence[Judgment]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)
        for mine, theirs in zip(one.votes, other.votes, strict=True):
            assert mine.get("logits", {}) == pytest.approx(theirs.get("logits", {}), abs=1e-4)
            assert {name: mine[name] for name in mine if name != "logits"} == {
                name: theirs[name] for name in theirs if name != "logits"
            }


# ---------------------------------------------------------------------------------------------- our own engine
@needs_vllm
def test_an_engine_gives_the_raw_logits_of_transformers_and_one_that_died_is_one_error(
    path: Path, expected: list[Judgment]
) -> None:
    judge = make(path, engine="vllm")
    assert isinstance(judge, PooledRewardModel)
    check_same(judge.judge(RAGGED), expected)
    check_same(judge.judge(RAGGED[::-1]), expected[::-1])

    assert isinstance(judge._backend, Engine) and judge._backend._process is not None
    os.killpg(judge._backend._process.process_id, signal.SIGKILL)
    with pytest.raises(JudgeError, match=r"reward model .*: the pooling engine's process ended \(exit code -9\)"):
        judge.judge(RAGGED)
    assert judge._backend._process is None  # the next call starts another
    judge.close()
    judge.close()


@needs_vllm
def test_an_engine_serves_a_classifier_with_one_output(tmp_path: Path) -> None:
    """To vLLM another kind of model: a cross-encoder."""
    path = reward_model(tmp_path, head_dim=32)
    expected = make(path, heads={}).judge(RAGGED)
    check_same(make(path, heads={}, engine="vllm").judge(RAGGED), expected)


PARENT = """
import sys
from pipeline.sampling.process import Child
from pathlib import Path

child = Child("pipeline.sampling.pooling", [sys.argv[1]], Path(sys.argv[2]))
print("started", flush=True)
child.receive(600.0)
"""


@needs_vllm
def test_killing_the_parent_leaves_no_engine(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    model = {"path": str(path), "revision": None, "dtype": "float32", "max_model_len": 64}
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, script, json.dumps(model), tmp_path / "engine.log"],
        env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        assert parent.stdout.readline().strip() == "started"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert children
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_a_model_that_is_no_classifier_is_refused_before_an_engine_starts(tmp_path: Path) -> None:
    LlamaForCausalLM(llama(num_labels=1)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, TEMPLATE)
    with pytest.raises(JudgeError, match=r"is a LlamaForCausalLM; allowed: a sequence classifier"):
        make(tmp_path, engine="vllm", heads={"0": 1.0})


def test_without_vllm_the_error_says_how_to_get_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sampling.pooling.find_spec", lambda name: None)
    with pytest.raises(JudgeError, match="pip install vllm"):
        make(path, engine="vllm")


@pytest.mark.parametrize(("row", "trimmed"), [([5, 6, EOS, EOS], [5, 6]), ([5, EOS, 6], [5, EOS, 6]), ([EOS], [EOS])])
def test_a_decoder_is_read_before_the_padding_ids_that_end_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: list[int], trimmed: list[int]
) -> None:
    monkeypatch.setattr(module, "Server", StandIn)
    decoder = make(reward_model(tmp_path / "decoder", pad_token_id=EOS), base_url="http://nowhere", heads={})
    assert decoder._trimmed(row) == trimmed
    encoder = make(encoder_reward_model(tmp_path / "encoder", pad_token_id=EOS), base_url="http://nowhere", heads={})
    assert encoder._trimmed(row) == row


class StandIn:
    longest = None

    def __init__(self, *_: object) -> None: ...


# ---------------------------------------------------------------------------------------------- a server
class Serving(ThreadingHTTPServer):
    """What ``vllm serve --runner pooling`` answers, computed by transformers; with faults on demand."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        judge = make(path)
        self.model, self.path = judge.model, str(path)
        self.card: dict[str, Any] = {"id": "my-rm", "root": str(path), "max_model_len": 128}
        self.fault: Callable[[int, str, Any], tuple[int, Any] | None] = lambda number, address, answer: None
        self.lock = threading.Lock()
        self.posts: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def classify(self, body: dict[str, Any]) -> dict[str, Any]:
        data = []
        with self.lock, torch.no_grad():
            self.posts.append(body)
            self.model.config.pad_token_id = None  # vLLM reads the last token, whatever it is
            for index, row in enumerate(body["input"]):
                logits = self.model(input_ids=torch.tensor([row])).logits[0]
                probs = logits.sigmoid() if body.get("use_activation", True) else logits
                data.append({"index": index, "label": None, "probs": probs.tolist(), "num_classes": len(probs)})
        return {"id": "classify-1", "model": body["model"], "data": data, "usage": {}}


class Answering(BaseHTTPRequestHandler):
    server: Serving

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [self.server.card]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(self.server.classify(body))

    def _answer(self, answer: Any) -> None:
        number = len(self.server.posts)
        status, answer = self.server.fault(number, self.path, answer) or (200, answer)
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving(path: Path) -> Iterator[Serving]:
    with Serving(path) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def server(path: Path) -> Iterator[Serving]:
    with serving(path) as made:
        yield made


def test_a_server_gives_the_same_from_token_ids_in_requests_of_few_rows(
    path: Path, expected: list[Judgment], server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 2)
    judge = make(path, base_url=server.url)
    server.posts.clear()
    check_same(judge.judge(RAGGED), expected)
    assert len(server.posts) == 4  # 8 rows that are not too long
    assert {post["model"] for post in server.posts} == {"my-rm"}
    assert all(isinstance(token, int) for post in server.posts for row in post["input"] for token in row)
    assert judge.judge([]) == []


def test_a_server_that_takes_shorter_rows_makes_longer_ones_abstain(path: Path, server: Serving) -> None:
    server.card["max_model_len"] = 64
    judgments = make(path, base_url=server.url).judge(RAGGED)
    assert judgments[1].votes[1]["abstained"] == "longer than 64 tokens"


def test_what_passes_is_tried_again(path: Path, expected: list[Judgment], server: Serving) -> None:
    judge = make(path, base_url=server.url)
    failed: list[int] = []

    def fault(number: int, address: str, answer: Any) -> tuple[int, Any] | None:
        if len(failed) < 3:
            failed.append(number)
            return ((500, "busy"), (429, "slow down"), (503, ""))[len(failed) - 1]
        return None

    server.fault = fault
    check_same(judge.judge(RAGGED), expected)


FAULTS: dict[str, tuple[Callable[[int, str, Any], tuple[int, Any] | None], str]] = {
    "always busy": (lambda number, address, answer: (500, "busy"), r"no answer from .* in 2 tries: 500 'busy'"),
    "no pooling": (
        lambda number, address, answer: (404, '{"detail": "Not Found"}') if "classify" in address else None,
        r"/classify answers 404 .*Not Found.*; allowed: a server started with `vllm serve MODEL --runner pooling",
    ),
    "prose": (lambda number, address, answer: (200, "hello"), r"answers 200 'hello'"),
    "another model": (
        lambda number, address, answer: (200, {"data": [{"id": "other", "root": "org/other"}]}),
        r"serves 'other', and the reward model is",
    ),
    "fewer outputs": (
        lambda number, address, answer: (200, {"data": [{"index": 0, "probs": [0.5]}]}) if "class" in address else None,
        r"1 answers of \[1\] outputs to 1 rows of a model with 3: it serves another model",
    ),
    "probabilities": (
        lambda number, address, answer: (
            (200, {"data": [{"index": 0, "probs": [0.5, 0.1, 0.9]}]}) if "classify" in address else None
        ),
        r"gives probabilities, asked for logits",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_cannot_serve_is_one_clear_error(
    path: Path, server: Serving, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRIES", 2)
    server.fault, match = FAULTS[fault]
    with pytest.raises(JudgeError, match=match) as error:
        make(path, base_url=server.url)
    assert "\n" not in str(error.value)


def test_a_server_that_is_down_is_one_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIES", 2)
    with serving(path) as server:
        url = server.url
        judge = make(path, base_url=url)
    with pytest.raises(JudgeError, match=r"no answer from http://127.0.0.1:\d+/classify in 2 tries: "):
        judge.judge(RAGGED)
    with pytest.raises(JudgeError, match=r"no answer from .*/v1/models in 2 tries: "):
        make(path, base_url=url)


@needs_vllm
@pytest.mark.soak
def test_a_real_server_gives_the_raw_logits_of_transformers(
    path: Path, expected: list[Judgment], tmp_path: Path
) -> None:
    """Keeps the server above honest; a start takes half a minute."""
    arguments = ("--runner", "pooling", "--convert", "classify", "--max-model-len", "128")
    with serve(path, tmp_path / "server.log", *arguments) as url:
        check_same(make(path, base_url=url).judge(RAGGED), expected)
