"""``ratchet judge train``, but for the command line's own words."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as Terminal
from transformers import AutoModelForSequenceClassification

from flows.console import Console
from flows.request import Limits
from flows.reward import RewardRequest, ask, plan, train
from flows.tables import reward_plan_table, reward_table
from judges import make_judge
from pipeline.config import RewardModelJudge, ScratchPolicy
from pipeline.errors import ConfigError, DataError
from pipeline.recipe import load_reward_trainer
from pipeline.types import Candidate, Group, Prompt
from tests.tiny import make_policy
from tests.tiny_chat import chat_policy
from trainers.checkpoints import save_policy
from trainers.pretrain import build_tokenizer, new_model

FAST = ["batch_size=8", "epochs=3", "learning_rate=2e-3", "token_budget=1024", "eval_steps=4"]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def liked(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The answer with a z is the chosen one."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefgh ", k=8)) for _ in range(count)]
    names = [chr(97 + number // 26) + chr(97 + number % 26) for number in range(count)]
    return [
        {"prompt": f"{name}? ", "chosen": f"{word}z.", "rejected": f"{word}b."}
        for name, word in zip(names, words, strict=True)
    ]


def shown(result: dict[str, Any], table: Callable[[dict[str, Any]], Any] = reward_table) -> str:
    terminal = Terminal(file=io.StringIO(), width=200, record=True)
    terminal.print(table(result))
    return terminal.export_text()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_policy(tmp_path_factory.mktemp("base"), layers=1, spread=0.05).path)


@pytest.fixture(scope="module")
def prefs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "prefs.jsonl", [*liked(120), {"prompt": "a", "chosen": True}])


def asked(prefs: str, base: str, folder: Path, *settings: str, **more: Any) -> RewardRequest:
    trainer = load_reward_trainer(None, [*FAST, *settings])
    return ask([prefs], base, folder / more.pop("out", "rm"), trainer, folder / "workspace", **more)


def test_pairs_become_a_judge_and_the_same_call_makes_nothing_twice(prefs: str, base: str, tmp_path: Path) -> None:
    result = train(asked(prefs, base, tmp_path), Console(quiet=True))
    assert (result["state"], result["reused"]) == ("complete", False)
    assert result["data"][0]["dropped"] == {"missing": 1}
    assert result["training_examples"]["pairs"] == 108
    assert result["held_out"]["pairs"] == 12
    assert result["held_out"]["accuracy"] == 1.0
    assert json.loads((tmp_path / "rm" / "result.json").read_text()) == result
    assert "chosen is longer" not in shown(result)
    assert f"step {result['kept']} of 42" in shown(result)

    judge = make_judge(RewardModelJudge(type="reward_model", path=str(tmp_path / "rm")), "rm")
    candidates = tuple(Candidate(i, (5,), text, "stop", i) for i, text in enumerate(("az.", "ab.")))
    (judgment,) = judge.judge([Group(Prompt("p", "zz? ", (7,)), candidates)])
    good, bad = judgment.scores
    assert good is not None and bad is not None and good > bad

    again = train(asked(prefs, base, tmp_path), Console(quiet=True))
    assert again == {**result, "reused": True}
    other = train(asked(prefs, base, tmp_path, out="copy"), Console(quiet=True))
    assert other["reused"]
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "copy").num_labels == 1
    with pytest.raises(ConfigError, match=r"--out .* is another training's"):
        train(asked(prefs, base, tmp_path, "epochs=1"), Console(quiet=True))


def test_a_dry_run_makes_nothing_and_says_what_a_training_will_do(prefs: str, base: str, tmp_path: Path) -> None:
    planned = plan(asked(prefs, base, tmp_path), Console(quiet=True))
    assert not list(tmp_path.iterdir())
    assert json.loads(json.dumps(planned)) == planned
    assert planned["cached"] == {"training": False}
    result = train(asked(prefs, base, tmp_path), Console(quiet=True))
    assert {name: result[name] for name in data_of_both(planned)} == data_of_both(planned)
    lines = (Path(result["directory"]) / "metrics.jsonl").read_text().splitlines()
    assert planned["work"]["steps"] == len(lines) == result["steps"] == 42
    assert planned["work"]["tokens"] == sum(json.loads(line)["tokens"] for line in lines)
    assert planned["work"]["tokens"] <= planned["work"]["padded_tokens"] <= 1024 * planned["work"]["passes"]
    assert "42 in 3 epochs" in shown(planned, reward_plan_table) and "to be trained" in shown(
        planned, reward_plan_table
    )

    files = sorted(tmp_path.rglob("*"))
    assert plan(asked(prefs, base, tmp_path, out="copy"), Console(quiet=True))["cached"] == {"training": True}
    assert plan(asked(prefs, base, tmp_path, "epochs=2", out="copy"), Console(quiet=True))["cached"] == {
        "training": False
    }
    assert sorted(tmp_path.rglob("*")) == files


def data_of_both(said: dict[str, Any]) -> dict[str, Any]:
    return {name: said[name] for name in ("data", "training_examples", "held_out_examples", "config", "seed")}


def test_without_held_out_pairs_nobody_says_how_good_it_is(prefs: str, base: str, tmp_path: Path) -> None:
    result = train(asked(prefs, base, tmp_path, "epochs=1", held_out="0"), Console(quiet=True))
    assert result["held_out"] is None
    assert result["kept"] == result["steps"] == 15
    assert "nobody knows how good it is" in shown(result)


def test_chats_are_read_by_the_bases_template(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "what is it?"}
    rows = [
        {"prompt": [turn], "chosen": [{"role": "assistant", "content": f"good {number}"}],
         "rejected": [{"role": "assistant", "content": f"bad {number}"}]}
        for number in range(8)
    ]  # fmt: skip
    chat = str(chat_policy(tmp_path / "chat"))
    result = train(asked(write(tmp_path / "chat.jsonl", rows), chat, tmp_path, held_out="0"), Console(quiet=True))
    assert result["training_examples"] == {"pairs": 8, "singles": 0, "prompts": 1}


def test_real_sentences_make_a_judge_that_tells_praise_from_blame(shared_data: Path, tmp_path: Path) -> None:
    """From random weights, on 1,500 pairs of sentences from film reviews (Pang and Lee, ACL 2005)."""
    folder = next(shared_data.rglob("rt-polarity.pos")).parent
    good, bad = ((folder / f"rt-polarity.{kind}").read_text("utf-8").split("\n")[:1500] for kind in ("pos", "neg"))
    settings: Any = {"tokenizer": "bpe", "vocab_size": 4096, "hidden_size": 64, "layers": 1, "heads": 2}
    scratch = ScratchPolicy(type="scratch", corpus={"function": "not:asked"}, **settings)
    tokenizer = build_tokenizer(scratch, [*good, *bad])
    save_policy(new_model(scratch, tokenizer, 0), tokenizer, tmp_path / "base")
    rows = [
        {"prompt": f"Review {number}:", "chosen": f" {one.strip()}", "rejected": f" {other.strip()}"}
        for number, (one, other) in enumerate(zip(good, bad, strict=True))
    ]
    trainer = ["learning_rate=3e-3", "batch_size=64", "eval_steps=5", "token_budget=4096", "epochs=2"]
    request = asked(write(tmp_path / "pairs.jsonl", rows), str(tmp_path / "base"), tmp_path, *trainer)
    result = train(request, Console(quiet=True))
    assert result["held_out"]["pairs"] == 150
    assert result["held_out"]["accuracy"] > 0.65
    assert all(part["accuracy"] > 0.55 for part in result["held_out"]["by_length"].values() if part["pairs"] > 40)


def test_what_cannot_be_trained_on_is_one_clear_error(prefs: str, base: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--base 'nothing' leads nowhere"):
        asked(prefs, "nothing", tmp_path)
    with pytest.raises(ConfigError, match="a reward model reads whole conversations"):
        asked(prefs, base, tmp_path, limits=Limits(prompt=5))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        asked(prefs, base, tmp_path, out="taken")
    with pytest.raises(ConfigError, match="learning_rat"):
        asked(prefs, base, tmp_path, "learning_rat=1")
    single = write(tmp_path / "single.jsonl", [{"prompt": "q", "completion": "a", "label": True}])
    with pytest.raises(DataError, match="one completion with a label; allowed: pairs"):
        train(asked(single, base, tmp_path), Console(quiet=True))
