"""The recipe for real use, on local models small enough for here."""

import json
from pathlib import Path

from flows import recipes
from pipeline.tables import read_pairs, read_prompts
from tests.tiny_chat import BOS, TEMPLATE, chat_policy, reward_model

from .conftest import RunSmall
from .small import store_of

CHAT_RM = Path(recipes.__file__).with_name("chat-rm.toml")


def test_chat_rm_runs_a_round_with_local_models_given_by_set(run_small: RunSmall, tmp_path: Path) -> None:
    """bfloat16 policy, chat template, reward models for labels and for evaluation, prompts from a local data set."""
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    rows = [{"prompt": f"what is {number} plus {number}?"} for number in range(24)]
    (prompts / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels, held_out = reward_model(tmp_path / "labels"), reward_model(tmp_path / "held_out", seed=1)
    status = run_small(
        "chat-rm",
        "rounds=1", f"policy.path={chat_policy(tmp_path / 'policy')}", f"prompts.source.path={prompts}",
        "prompts.source.split=train",
        "prompts.per_round=16", "prompts.held_out=8", "sampling.n=4", "sampling.max_tokens=16",
        "sampling.max_model_len=128", f"judge.path={labels}", f"evaluation.judge.path={held_out}",
        "evaluation.judge.revision=main", "pairing.drop_truncated=false", "trainer.batch_size=8",
        "trainer.learning_rate=1e-4", 'gate.require=["kl <= 10"]', "limits.threads=1",
        workspace=tmp_path / "workspace", recipe=CHAT_RM,
    )  # fmt: skip

    (state,) = status["rounds"]
    assert state["gate"]["decision"] == "promote"
    assert state["pairs"] + sum(state["dropped"].values()) == 16
    assert state["pairs"] > 0
    assert state["scores"]["abstained"] == 0
    assert not state["evaluation"]["judge_labelled"]
    assert state["training"]["loss"] < 0.7

    store = store_of(status)
    pair = read_pairs(store.get("pairs", state["artifacts"]["pairs"]).table())[0]
    assert pair.prompt.token_ids.count(BOS) == 1
    assert pair.prompt.messages[-1]["role"] == "user"
    asked = read_prompts(store.get("prompts", status["initial"]["artifacts"]["prompts"]).table())
    assert len(asked) == 24
    assert json.loads((Path(status["policy"]["path"]) / "config.json").read_text())["dtype"] == "float32"
    assert TEMPLATE[:20] in (Path(status["policy"]["path"]) / "chat_template.jinja").read_text()
