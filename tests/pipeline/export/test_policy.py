"""An exported policy: an ordinary checkpoint that loads, says the same, and has nothing of ours but its card."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pipeline.errors import ConfigError, StoreError
from pipeline.export.cards import Terms
from pipeline.export.policy import export_policy
from pipeline.policy import Probe, read_policy, read_probe, weights_digest, write_probe
from pipeline.runs import Run
from tests.exported import Making, make_run
from tests.tiny import make_policy, naive_logprobs
from tests.tiny_chat import chat_policy


def train(folder: Path, number: int) -> str:
    """The policy of a round: of round 0 plain, of round 1 one with adapters merged, and with the marks of a stay."""
    if number == 0:
        return make_policy(folder).digest
    chat_policy(folder, torch.float32)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder)
    adapted = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "v_proj"]))
    adapted.merge_and_unload().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"_name_or_path": "/home/me/models/base"}
    (folder / "config.json").write_text(json.dumps(config))
    policy = read_policy(folder)
    write_probe(folder, Probe([[1, 50, 60, 70]], naive_logprobs(policy, [[1, 50, 60, 70]]), "float32"))
    (folder / "README.md").write_text("of the base model")
    (folder / "training_args.bin").write_bytes(b"private")
    return policy.digest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("workspace"), Making(train=train, chat=True))


def test_the_best_policy_loads_and_gives_the_log_probabilities_of_its_probe(run: Run, tmp_path: Path) -> None:
    told = export_policy(run, tmp_path / "policy")
    entry = run.status()["rounds"][1]
    source = run.store.get("train", entry["artifacts"]["train"]).path / "policy"
    assert (told["round"], told["digest"]) == (1, entry["policy_out"])
    probe = read_probe(source)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    for ids, expected in zip(probe.sequences, probe.logprobs, strict=True):
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        got = logps.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        assert torch.equal(got, torch.tensor(expected))  # the same bytes give the same numbers


def test_weights_of_another_export_of_the_policy_are_linked_and_those_of_the_run_never(
    run: Run, tmp_path: Path
) -> None:
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    export_policy(run, first)
    export_policy(run, second, terms=Terms("mit"), earlier=[first])
    export_policy(run, other, 0, earlier=[first, second])
    source = run.store.get("train", run.status()["rounds"][1]["artifacts"]["train"]).path / "policy"
    own, one, two, another = (folder / "model.safetensors" for folder in (source, first, second, other))
    assert one.samefile(two) and not one.samefile(own) and not one.samefile(another)
    assert not (first / "config.json").samefile(second / "config.json")
    assert weights_digest(other) == run.status()["rounds"][0]["policy_out"]


def test_weights_that_somebody_changed_there_are_not_taken(run: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    told = export_policy(run, first)
    content = (first / "model.safetensors").read_bytes()
    (first / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    export_policy(run, second, terms=Terms("mit"), earlier=[first])
    assert weights_digest(second) == told["digest"]


def test_tokenizer_chat_template_and_generation_config_come_along(run: Run, tmp_path: Path) -> None:
    export_policy(run, tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    turns = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == "<bos>user: hi\nassistant: "
    assert GenerationConfig.from_pretrained(tmp_path / "policy").eos_token_id == 2
    assert "apply_chat_template" in (tmp_path / "policy" / "README.md").read_text()


def test_what_is_ours_or_tells_of_this_machine_is_left_out(run: Run, tmp_path: Path) -> None:
    export_policy(run, tmp_path / "policy")
    names = {file.name for file in (tmp_path / "policy").iterdir()}
    assert names >= {"README.md", "recipe.toml", "lineage.json", "config.json", "model.safetensors", "tokenizer.json"}
    assert not names & {"probe.json", "training_args.bin"}
    for file in (tmp_path / "policy").iterdir():
        if file.suffix != ".safetensors":
            assert "/home/me" not in file.read_text()
            assert str(run.workspace) not in file.read_text()
    assert "of the base model" not in (tmp_path / "policy" / "README.md").read_text()


def test_a_round_can_be_named_and_the_same_one_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        told = export_policy(run, tmp_path / folder, 0)
        assert (told["round"], told["digest"]) == (0, run.status()["rounds"][0]["policy_out"])
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / each).iterdir()} for each in ("one", "two"))
    assert one == two
    assert [each["round"] for each in json.loads(one["lineage.json"])["rounds"]] == [0]
    assert "apply_chat_template" not in one["README.md"].decode()  # this policy has no template


def test_a_run_that_promoted_nothing_exports_a_policy_only_by_round(tmp_path: Path) -> None:
    run = make_run(tmp_path / "w", Making(rounds=1, train=train, decisions=("stop",)))
    with pytest.raises(ConfigError, match="promoted no policy.*demo:0 to demo:0 name"):
        export_policy(run, tmp_path / "policy")
    assert export_policy(run, tmp_path / "policy", 0)["round"] == 0


def test_a_round_that_trained_nothing_or_is_not_there_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "w")
    with pytest.raises(ConfigError, match="trained no policy"):
        export_policy(run, tmp_path / "policy")
    with pytest.raises(ConfigError, match="9: run 'demo' has the finished rounds 0, 1"):
        export_policy(run, tmp_path / "policy", 9)
    assert not (tmp_path / "policy").exists()


def test_a_run_that_was_to_train_none_is_told_so_and_no_round_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "w", Making(rounds=1, models=("big", "small"), decisions=("none",)))
    for number in (None, 0):
        with pytest.raises(ConfigError, match="run 'demo' made data of others' models and trained no policy; allowed"):
            export_policy(run, tmp_path / "policy", number)


def test_weights_that_were_changed_in_the_store_are_not_exported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "w", Making(rounds=1, train=train))
    entry = run.status()["rounds"][0]
    weights = run.store.get("train", entry["artifacts"]["train"]).path / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StoreError, match=entry["policy_out"][:12]):
        export_policy(run, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()
