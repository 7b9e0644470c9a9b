import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from pipeline.errors import DataError
from pipeline.policy import prove, read_policy, read_probe, tensor_shapes
from tests.tiny import EOS, make_policy, naive_logprobs, perturb
from trainers import checkpoints
from trainers.checkpoints import (
    average_policies,
    load_model,
    load_tokenizer,
    load_training_state,
    save_policy,
    save_training_state,
    saved_dtype,
)
from trainers.logprobs import plain_logprobs

TEXT = "ravin likes pizza"


def train_a_little(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.arange(4, 20, device=model.device)[None]
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_comes_back_as_it_was_saved(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    source = make_policy(tmp_path / "source", tied=tied, dtype=dtype)
    saved = save_policy(load_model(source.path), load_tokenizer(source.path), tmp_path / "saved", dtype)
    assert saved.digest == source.digest == read_policy(saved.path).digest
    assert tensor_shapes(saved.path) == tensor_shapes(source.path)  # tied weights are written once
    ids = load_tokenizer(source.path)(TEXT)["input_ids"]
    assert ids == load_tokenizer(saved.path)(TEXT)["input_ids"]
    models = [load_model(policy.path) for policy in (source, saved)]
    before, after = (model(torch.tensor([ids], device=model.device)).logits for model in models)
    assert torch.equal(before, after)
    configs = [json.loads((policy.path / "config.json").read_text()) for policy in (source, saved)]
    assert configs[0] == configs[1]
    assert AutoModelForCausalLM.from_pretrained(saved.path).dtype == dtype == saved_dtype(saved.path)
    assert GenerationConfig.from_pretrained(saved.path).eos_token_id == EOS


def test_weights_trained_in_float32_are_proved_in_the_16_bit_they_are_saved_in(tmp_path: Path) -> None:
    source = make_policy(tmp_path / "source")
    model, tokenizer = load_model(source.path), load_tokenizer(source.path)
    saved = save_policy(model, tokenizer, tmp_path / "saved", torch.bfloat16)
    probe = read_probe(saved.path)
    assert probe.dtype == "bfloat16"
    assert prove(saved, naive_logprobs(saved, probe.sequences), 1e-5) < 1e-5
    unrounded = [plain_logprobs(model, ids).tolist() for ids in probe.sequences]
    assert probe.differences(unrounded)[0] > 1e-3  # the weights on disk are others than those in memory
    assert next(model.parameters()).dtype == torch.float32


def test_a_probe_has_texts_and_random_ids_that_fit_the_model(tmp_path: Path) -> None:
    source = make_policy(tmp_path / "source")
    model, tokenizer = load_model(source.path), load_tokenizer(source.path)
    tokenizer.add_tokens(["a token the model has no embedding for", "another"])
    probe = checkpoints.make_probe(model, tokenizer, torch.float32)
    assert len(probe.sequences) == len(checkpoints.PROBE_TEXTS) + 2
    assert all(1 < len(ids) <= checkpoints.PROBE_TOKENS for ids in probe.sequences)
    assert max(map(max, probe.sequences)) < model.config.vocab_size
    assert probe == checkpoints.make_probe(model, tokenizer, torch.float32)


@pytest.mark.parametrize("tied", [False, True])
def test_an_average_lies_between_two_policies_weight_by_weight(tmp_path: Path, tied: bool) -> None:
    old = make_policy(tmp_path / "old", tied=tied)
    new = perturb(old, tmp_path / "new", seed=1)
    average = average_policies(old, new, 0.75, tmp_path / "average")
    weights = [load_model(policy.path).state_dict() for policy in (old, new, average)]
    assert tensor_shapes(average.path) == tensor_shapes(old.path)
    for name, mean in weights[2].items():
        torch.testing.assert_close(mean, 0.75 * weights[0][name] + 0.25 * weights[1][name])
    whole = [average_policies(old, new, decay, tmp_path / str(decay)).digest for decay in (1.0, 0.0)]
    assert whole == [old.digest, new.digest]


def test_training_starts_in_float32_without_dropout(tmp_path: Path) -> None:
    model = load_model(make_policy(tmp_path, dtype=torch.bfloat16).path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from trainers import checkpoints
kill = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
what, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
model, tokenizer = checkpoints.load_model(source), checkpoints.load_tokenizer(source)
if what == "policy":
    checkpoints.write_probe = kill
    checkpoints.save_policy(model, tokenizer, out / "policy")
optimizer = torch.optim.AdamW(model.parameters())
checkpoints.save_training_state(out, 1, model, optimizer, {"loss": 0.5})
def torn(state, path):
    Path(path).write_bytes(b"torn")
    kill()
torch.save = torn
checkpoints.save_training_state(out, 2, model, optimizer, {"loss": 0.25})
"""


def test_saves_killed_half_way_leave_what_was_there_before(tmp_path: Path) -> None:
    source = make_policy(tmp_path / "source")
    environment = os.environ | {"PYTHONPATH": str(Path(checkpoints.__file__).parents[1])}
    children = [
        subprocess.Popen([sys.executable, "-c", KILLED, what, source.path, tmp_path], env=environment)
        for what in ("policy", "state")
    ]
    assert [child.wait() for child in children] == [-signal.SIGKILL] * 2

    assert not (tmp_path / "policy").exists()
    assert list(tmp_path.glob("policy.part/*.safetensors"))  # it was well on its way
    model, tokenizer = load_model(source.path), load_tokenizer(source.path)
    assert save_policy(model, tokenizer, tmp_path / "policy").digest == source.digest
    assert not (tmp_path / "policy.part").exists()

    assert (tmp_path / "state.part").read_bytes() == b"torn"
    optimizer = torch.optim.AdamW(model.parameters())
    assert load_training_state(tmp_path, model, optimizer) == (1, {"loss": 0.5})


def test_a_state_restores_weights_and_optimiser_so_that_the_next_steps_are_the_same(tmp_path: Path) -> None:
    source = make_policy(tmp_path / "source")
    model = load_model(source.path)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    train_a_little(model, optimizer)
    save_training_state(tmp_path / "state", 1, model, optimizer, {})
    train_a_little(model, optimizer)

    other = load_model(source.path)
    other_optimizer = torch.optim.AdamW(other.parameters(), fused=True)
    assert load_training_state(tmp_path / "state", other, other_optimizer) == (1, {})
    train_a_little(other, other_optimizer)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_no_state_is_none_and_a_damaged_one_is_a_clear_error(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    assert load_training_state(tmp_path, model, optimizer) is None
    (tmp_path / "state.pt").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"state\.pt cannot be read .*; delete it to train from the start"):
        load_training_state(tmp_path, model, optimizer)
