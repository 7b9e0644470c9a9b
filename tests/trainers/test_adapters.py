"""Adapters in, an ordinary policy out, exact whatever the training computed in."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import PreTrainedModel

from pipeline.config.trainer import LoraConfig
from pipeline.errors import ConfigError
from pipeline.types import Policy
from tests.tiny import make_policy
from tests.trainers.naive import draw_rows, make_model, naive_logps
from tests.trainers.trainings import config, lines, make_examples, make_lesson
from trainers.adapters import ADAPTER, BasePolicy, add_adapters, load_base, merge
from trainers.checkpoints import STATE, load_model
from trainers.dpo import train_policy
from trainers.packed import PackedPolicy
from trainers.packing import group_rows, pack
from trainers.reference import Reference
from trainers.statistics import Slopes
from trainers.weights import Weights

ROWS = draw_rows([7, 3], [5, 2])


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return make_policy(tmp_path_factory.mktemp("policy"))


def adapted(family: str = "llama", lora: LoraConfig | None = None, **shape: Any) -> PreTrainedModel:
    """With adapters that do something."""
    model = make_model(family, **shape)
    add_adapters(model, lora or LoraConfig(rank=2), seed=1)
    disturb(model)
    return model


def disturb(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def adapters_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}


# ---------------------------------------------------------------------------------------------- put on
def test_new_adapters_change_nothing_and_are_all_that_is_trainable() -> None:
    plain, model = make_model("llama"), make_model("llama")
    add_adapters(model, LoraConfig(rank=3), seed=1)
    assert type(model) is type(plain)
    assert torch.equal(naive_logps(model, ROWS), naive_logps(plain, ROWS))
    trainable = adapters_of(model)
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert len(trainable) == 2 * 2 * len(layers)
    assert all(any(f".{layer}.lora_" in name for layer in layers) for name in trainable)
    assert {each.dtype for each in trainable.values()} == {torch.float32}


def test_adapters_are_a_function_of_the_seed_alone() -> None:
    drawn = []
    for noise, seed in ((0, 1), (5, 1), (0, 2)):
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        model = make_model("llama")
        add_adapters(model, LoraConfig(rank=2), seed)
        drawn.append(torch.cat([each.flatten() for each in adapters_of(model).values()]))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("modules", ["q_proj", ("q_proj", "mlp.up_proj")])
def test_only_the_layers_that_are_named_get_adapters(modules: str | tuple[str, ...]) -> None:
    model = make_model("llama")
    add_adapters(model, LoraConfig(rank=2, modules=modules), seed=1)
    found = {name.split(".lora_")[0].rpartition(".")[2] for name in adapters_of(model)}
    assert found == {"q_proj"} if modules == "q_proj" else {"q_proj", "up_proj"}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("q_prj", "no linear layer is named 'q_prj'; allowed: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj"),
        (("q_proj", "embed_tokens"), "no linear layer is named 'embed_tokens'; allowed: down_proj"),
        (("q_proj", "lm_head"), "'lm_head' is the head, which takes no adapter; allowed: down_proj"),
    ],
)
def test_a_layer_that_takes_no_adapter_is_refused_by_name(modules: str | tuple[str, ...], message: str) -> None:
    model = make_model("llama")
    with pytest.raises(ConfigError, match=message):
        add_adapters(model, LoraConfig(modules=modules), seed=1)


def test_four_bits_are_refused_before_anything_is_loaded_where_they_cannot_be(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    lora = LoraConfig(quantise="nf4")
    nowhere = Policy("none", tmp_path / "nothing")
    message = "trainer.lora.quantise = 'nf4' needs a CUDA device; torch sees none"
    with pytest.raises(ConfigError, match=message):
        load_base(nowhere.path, lora, torch.bfloat16)
    with pytest.raises(ConfigError, match=message):
        Reference(nowhere, "bfloat16", 1000, lora)


# ---------------------------------------------------------------------------------------------- merged
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_merged_model_is_an_ordinary_one_that_says_what_the_adapted_one_said(family: str, tmp_path: Path) -> None:
    model = adapted(family, LoraConfig(rank=2, alpha=3.0))
    make_model(family).save_pretrained(tmp_path / "base")
    merged = merge(tmp_path / "base", LoraConfig(rank=2, alpha=3.0), adapters_of(model), tmp_path)
    merged.set_attn_implementation("eager")  # that of the others; sdpa knows no soft cap
    assert type(merged) is type(make_model(family))
    assert merged.state_dict().keys() == make_model(family).state_dict().keys()
    ours, theirs, base = (naive_logps(each, ROWS) for each in (merged, model, make_model(family)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (theirs - base).abs().max() > 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_is_the_float32_base_plus_the_adapters_whatever_was_computed_in(
    policy: Policy, dtype: str, tmp_path: Path
) -> None:
    lora = {"rank": 2, "alpha": 4.0, "modules": ["q_proj"]}
    settings = config(dtype=dtype, lora=lora)
    lesson = make_lesson(policy, make_examples(policy, 10), rate=1e-2, dtype=dtype)
    trained, _ = train_policy(policy, lesson, settings, tmp_path)
    before, after = load_model(policy.path).state_dict(), load_model(trained.path).state_dict()
    assert before.keys() == after.keys()
    kept = peft.load_peft_weights(str(tmp_path / ADAPTER), device="cpu")
    for name, weight in after.items():
        if "q_proj" not in name:
            assert torch.equal(weight, before[name]), name
            continue
        a, b = (kept[f"base_model.model.{name.replace('weight', f'lora_{which}.weight')}"] for which in "AB")
        assert a.dtype == b.dtype == torch.float32
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(weight, before[name] + 2.0 * b @ a, rtol=1e-6, atol=1e-7)


def test_the_adapter_kept_beside_the_policy_makes_it_of_its_base(policy: Policy, tmp_path: Path) -> None:
    examples = make_examples(policy, 10)
    trained, outcome = train_policy(
        policy, make_lesson(policy, examples, rate=1e-2), config(lora={"rank": 2}), tmp_path
    )
    assert outcome.metrics["rewards/margins"] > 0.2
    rows = [row for example in examples for row in example.rows]
    theirs = peft.PeftModel.from_pretrained(load_model(policy.path), str(tmp_path / ADAPTER))
    with torch.no_grad():
        ours = naive_logps(load_model(trained.path), rows)
        torch.testing.assert_close(ours, naive_logps(theirs, rows), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------- trained
def test_a_state_holds_adapters_alone_and_a_resume_ends_at_the_same_policy(policy: Policy, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, _total: int, _note: str) -> None:
        if done == 3:
            raise Stopped

    settings = config(lora={"rank": 2}, checkpoint_steps=2, dtype="bfloat16")
    lesson = make_lesson(policy, make_examples(policy, 10), rate=1e-2, dtype="bfloat16")
    whole, _ = train_policy(policy, lesson, settings, tmp_path / "whole")
    with pytest.raises(Stopped):
        train_policy(policy, lesson, settings, tmp_path / "again", stop)
    state = torch.load(tmp_path / "again" / STATE / "state.pt", weights_only=True)
    assert all("lora_" in name and each.dtype == torch.float32 for name, each in state["model"].items())
    assert len(state["optimizer"]["state"]) == len(state["model"])
    again, _ = train_policy(policy, lesson, settings, tmp_path / "again")
    assert again.digest == whole.digest
    assert lines(tmp_path / "again") == lines(tmp_path / "whole")


def test_the_next_round_starts_at_the_merged_weights_so_that_its_base_is_the_previous_policy(
    policy: Policy, tmp_path: Path
) -> None:
    settings = config(lora={"rank": 2}, reference="lora_base")
    examples = make_examples(policy, 10)
    first, _ = train_policy(policy, make_lesson(policy, examples, rate=1e-2), settings, tmp_path / "first")
    train_policy(first, make_lesson(first, examples), settings, tmp_path / "second")  # the gate at step 0 is passed
    assert lines(tmp_path / "second")[0]["kl"] == pytest.approx(0.0, abs=1e-5)


# ---------------------------------------------------------------------------------------------- the base as reference
def test_adapters_off_the_policy_is_its_base_and_on_again_it_learns() -> None:
    model = adapted()
    weights = Weights(model, "float32")
    policy, part = PackedPolicy(model, weights), pack(group_rows(ROWS))
    base = BasePolicy(policy)
    theirs = naive_logps(make_model("llama"), part.rows)
    before = policy.statistics(part).logps
    torch.testing.assert_close(base.statistics(part).logps, theirs.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(policy.statistics(part).logps, before)
    known = policy.backward(part, lambda _number, known: Slopes(torch.ones_like(known.logps)), reference=base)
    assert known.reference_kl is not None
    assert known.reference_kl.max() > 1e-3
    assert all(master.grad is not None and master.grad.abs().max() > 0 for master in weights)


def test_a_live_base_teaches_what_a_live_copy_of_it_does(policy: Policy, tmp_path: Path) -> None:
    settings = config(lora={"rank": 2}, loss=[{"type": "tdpo2"}])
    lessons = [
        make_lesson(policy, make_examples(policy, 10), rate=1e-2, live=policy, starts_at_reference=same)
        for same in (True, False)
    ]
    ours, theirs = (
        train_policy(policy, lesson, settings, tmp_path / str(number))[1] for number, lesson in enumerate(lessons)
    )
    assert ours.metrics["loss"] == pytest.approx(theirs.metrics["loss"], rel=1e-5)
    assert lines(tmp_path / "0")[0]["loss"] != pytest.approx(ours.metrics["loss"], rel=0.05)


def test_shards_of_quantised_weights_are_refused_by_the_config() -> None:
    with pytest.raises(ValueError, match="processes = 2 cannot share quantised weights"):
        config(processes=2, lora={"quantise": "nf4"})
