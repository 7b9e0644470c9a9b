"""TRL's trainers take the exported configs as they are, and do a step on a tiny model. One file: TRL loads slowly."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from pipeline.export.dataset import export_data
from tests.exported import Making, make_run
from tests.tiny_chat import TEMPLATE, chat_policy, reward_model

ANSWERS = TEMPLATE.replace("{{ eos_token }}", "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "chat"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trl")
    chat_policy(place / "policy", torch.float32)
    reward_model(place / "judge", ANSWERS, pad_token_id=0)
    making = Making(rounds=1, chat=request.param, panel=True, sources=("web",))
    export_data(make_run(place / "workspace", making), place / "data")
    return place


def once(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"), "max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True,
        "logging_strategy": "no", "gradient_checkpointing": False,
    }  # fmt: skip


def load(folder: Path, config: str) -> Any:
    return datasets.load_dataset(str(folder / "data"), config, split="train", cache_dir=str(folder / "cache"))


def learns(trainer: Any) -> float:
    """One step; its loss. The weights must have moved."""
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    loss = float(trainer.train().training_loss)
    after = list(trainer.model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert loss == loss
    return loss


def test_dpo_trainer_takes_default(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    trainer = DPOTrainer(model, args=DPOConfig(**once(folder)), train_dataset=load(folder, "default"),
                         processing_class=tokenizer)  # fmt: skip
    assert len(trainer.train_dataset) == len(load(folder, "default"))
    assert learns(trainer) == pytest.approx(0.6931, abs=1e-3)  # policy and reference are the same at the first step


def test_reward_trainer_takes_default_and_its_margin(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder / "judge", num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "judge")
    trainer = RewardTrainer(model, args=RewardConfig(**once(folder)), train_dataset=load(folder, "default"),
                            processing_class=tokenizer)  # fmt: skip
    assert "margin" in trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    learns(trainer)


def test_kto_trainer_takes_kto(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    trainer = KTOTrainer(model, args=KTOConfig(**once(folder)), train_dataset=load(folder, "kto"),
                         processing_class=tokenizer)  # fmt: skip
    learns(trainer)


def test_sft_trainer_takes_sft(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    trainer = SFTTrainer(model, args=SFTConfig(**once(folder), max_length=None), train_dataset=load(folder, "sft"),
                         processing_class=tokenizer)  # fmt: skip
    learns(trainer)
