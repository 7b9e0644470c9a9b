import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config import Call, ScratchPolicy
from pipeline.errors import DataError
from pipeline.policy import prove, read_policy, read_probe
from trainers import pretrain
from trainers.logprobs import plain_logprobs
from trainers.pretrain import batches_of_epoch, train_from_scratch

CORPUS = """
def corpus(copies=1):
    return [f"{who} likes {what}" for who in ("anna", "ben", "ravin") for what in ("pizza", "ice cream")] * copies
def broken():
    raise OSError("the disk is gone")
def empty():
    return []
def numbers():
    return ["one", 2]
"""


def config(directory: Path, function: str = "corpus", **more: Any) -> ScratchPolicy:
    file = directory / "my_corpus.py"
    file.write_text(CORPUS)
    args = more.pop("args", {})
    settings: dict[str, Any] = {
        "hidden_size": 32, "layers": 1, "heads": 2, "max_length": 32, "batch_size": 4, "learning_rate": 1e-2,
    } | more  # fmt: skip
    return ScratchPolicy(type="scratch", corpus=Call(function=f"{file}:{function}", args=args), **settings)


def read_losses(directory: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_tiny_corpus_is_learnt_and_saved_as_an_ordinary_checkpoint(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    policy = train_from_scratch(
        config(tmp_path, epochs=80), 0, tmp_path / "out", lambda done, total, note: seen.append((done, total))
    )
    assert seen[0][0] == 1
    assert seen[-1] == (160, 160)
    losses = read_losses(tmp_path / "out")
    assert len(losses) == 160
    assert losses[0] > 2.5  # log of 17 characters
    assert sum(losses[-10:]) / 10 < 0.3  # the best possible: log 6 nats a text of about 17 tokens, 0.11 a token
    model = AutoModelForCausalLM.from_pretrained(policy.path)
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert read_policy(policy.path).digest == policy.digest
    probe = read_probe(policy.path)
    assert prove(policy, [plain_logprobs(model, ids).tolist() for ids in probe.sequences], 1e-5) >= 0
    ids = torch.tensor([tokenizer("ravin likes ")["input_ids"]])
    torch.manual_seed(0)
    drawn = model.generate(ids.repeat(20, 1), do_sample=True, max_new_tokens=16)
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in drawn]
    assert sum(text in ("ravin likes pizza", "ravin likes ice cream") for text in texts) >= 16


def test_resume_after_kill_gives_the_same_weights(tmp_path: Path) -> None:
    settings = config(tmp_path, epochs=8, args={"copies": 20})  # 240 steps, a state every 100
    whole = train_from_scratch(settings, 3, tmp_path / "whole")
    out = tmp_path / "killed"
    script = (
        "import os, signal, sys; from pathlib import Path; from pipeline.config import ScratchPolicy\n"
        "from trainers.pretrain import train_from_scratch\n"
        "kill = lambda done, total, note: os.kill(os.getpid(), signal.SIGKILL) if done == 150 else None\n"
        "train_from_scratch(ScratchPolicy.model_validate_json(sys.argv[1]), 3, Path(sys.argv[2]), kill)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(pretrain.__file__).parents[1])}
    command = [sys.executable, "-c", script, settings.model_dump_json(), str(out)]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    assert (out / "state" / "state.pt").exists()
    assert not (out / "policy").exists()
    steps: list[int] = []
    again = train_from_scratch(settings, 3, out, lambda done, total, note: steps.append(done))
    assert steps[0] == 101  # it went on from the state
    assert again.digest == whole.digest
    assert read_losses(out) == read_losses(tmp_path / "whole")
    assert not (out / "state").exists()
    steps.clear()
    assert train_from_scratch(settings, 3, out, lambda done, total, note: steps.append(done)) == again
    assert steps == []  # it is there already


def test_heads_have_a_size_that_every_engine_serves(tmp_path: Path) -> None:
    settings = config(tmp_path, hidden_size=16, heads=4, epochs=1)
    model = AutoModelForCausalLM.from_pretrained(train_from_scratch(settings, 0, tmp_path / "out").path)
    assert model.config.head_dim == 32


def test_seed_decides_the_weights(tmp_path: Path) -> None:
    digests = [train_from_scratch(config(tmp_path), seed, tmp_path / str(i)).digest for i, seed in enumerate([0, 0, 1])]
    assert digests[0] == digests[1] != digests[2]


def test_texts_are_cut_without_claiming_to_end_there(tmp_path: Path) -> None:
    from trainers.tokenizer import build_tokenizer

    settings = config(tmp_path, max_length=8)
    tokenizer = build_tokenizer(settings, ["abc", "abcdefghij"])
    short, long = pretrain.encode(tokenizer, ["abc", "abcdefghij"], 8)
    assert (short[0], short[-1], len(short)) == (tokenizer.bos_token_id, tokenizer.eos_token_id, 5)
    assert (long[0], len(long)) == (tokenizer.bos_token_id, 8)
    assert tokenizer.eos_token_id not in long


@pytest.mark.parametrize(
    ("function", "complaint"),
    [("broken", "the disk is gone"), ("empty", "at least one"), ("numbers", "text 1 is 2")],
)
def test_a_corpus_that_cannot_be_used_is_one_clear_error(tmp_path: Path, function: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        train_from_scratch(config(tmp_path, function), 0, tmp_path / "out")


def test_an_epoch_holds_every_text_once_in_batches_of_similar_length() -> None:
    rows = [[0] * (1 + i * 7 % 50) for i in range(203)]
    batches = batches_of_epoch(rows, 10, seed=1, epoch=2)
    assert sorted(index for batch in batches for index in batch) == list(range(203))
    spread = [max(len(rows[i]) for i in batch) - min(len(rows[i]) for i in batch) for batch in batches]
    assert sum(spread) / len(spread) < 5  # of 49
    assert batches != batches_of_epoch(rows, 10, seed=1, epoch=3)
    assert batches == batches_of_epoch(rows, 10, seed=1, epoch=2)
