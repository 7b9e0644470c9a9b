"""A reward model is trained, and judges as it was trained."""

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
)

from judges.reward_model import RewardModelJudge
from pipeline.config import RewardModelJudge as JudgeConfig
from pipeline.config import RewardTrainerConfig
from pipeline.errors import DataError, NonFiniteError, StoreError, TrainingError
from pipeline.policy import weights_digest
from pipeline.types import Candidate, Group, Prompt
from tests.tiny import make_policy
from tests.tiny_chat import EOS, TEMPLATE, chat_policy, llama, save_tokenizer
from trainers.bradley_terry import bradley_terry
from trainers.conversations import ConversationEncoder
from trainers.examples import Pair
from trainers.reward_base import load_base, weights_of
from trainers.reward_loop import RewardLoop
from trainers.reward_model import train_reward_model
from trainers.rewards import Rewards, ids_of

OF_THE_MACHINE = ("pairs_per_second", "tokens_per_second", "memory/process_gib", "memory/gpu_gib")


def config(**changes: Any) -> RewardTrainerConfig:
    settings = {"learning_rate": 2e-3, "batch_size": 16, "epochs": 2, "token_budget": 400, "eval_steps": 5}
    return RewardTrainerConfig(**(settings | changes))


def liked(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs in which the answer with a z is the chosen one; both are of any length."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        one, other = ("".join(draw.choices("abcdefgh ", k=draw.randint(4, 16))) + "." for _ in range(2))
        at = draw.randrange(len(one))
        rows.append({"prompt": f"question {number}? ", "chosen": one[:at] + "z" + one[at:], "rejected": other})
    return rows


def encode(base: Path, rows: list[dict[str, str]]) -> list[Pair]:
    examples = ConversationEncoder(AutoTokenizer.from_pretrained(base), 256).encode(rows, "rows").examples
    return [example for example in examples if isinstance(example, Pair)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    alphabet = " abcdefghijklmnopqrstuvwxyz.?0123456789"
    return make_policy(tmp_path_factory.mktemp("base"), alphabet=alphabet, spread=0.05).path


@pytest.fixture(scope="module")
def pairs(base: Path) -> list[Pair]:
    return encode(base, liked(160))


@pytest.fixture(scope="module")
def held_out(base: Path) -> list[Pair]:
    return encode(base, liked(60, seed=1))


def lines(directory: Path) -> list[dict[str, Any]]:
    """Each step's figures, without those that no seed decides."""
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: each for name, each in line.items() if name not in OF_THE_MACHINE} for line in found]


# ---------------------------------------------------------------------------------------------- it learns
def bert(path: Path) -> Path:
    torch.manual_seed(0)
    settings = BertConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, pad_token_id=0,
    )  # fmt: skip
    BertForMaskedLM(settings).save_pretrained(path)
    save_tokenizer(path, None)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_causal_model_learns_what_is_liked_and_the_saved_one_judges_the_same(
    base: Path, held_out: list[Pair], tmp_path: Path, dtype: str
) -> None:
    settings = config(epochs=4, batch_size=8, dtype=dtype, centring=0.01)
    outcome = train_reward_model(base, encode(base, liked(320)), held_out, settings, 0, tmp_path)
    assert outcome.held_out is not None
    assert outcome.held_out["accuracy"] > 0.9
    assert outcome.held_out["pairs"] == 60
    assert not (tmp_path / "state").exists()

    judge = RewardModelJudge(JudgeConfig(type="reward_model", path=str(tmp_path / "model")), "rm")
    assert judge.model.dtype == getattr(torch, dtype)
    judgments = judge.judge([group_of(row) for row in liked(60, seed=1)])
    apart = [one - other for one, other in (judgment.scores for judgment in judgments)]  # type: ignore[operator]
    right = sum(each > 0 for each in apart) / len(apart)
    tolerance = 1e-4 if dtype == "float32" else 0.05
    assert sum(apart) / len(apart) == pytest.approx(outcome.held_out["margin"], abs=tolerance)
    assert right == pytest.approx(outcome.held_out["accuracy"], abs=0 if dtype == "float32" else 0.05)
    assert list(judgments[0].votes[0]["logits"]) == ["reward"]

    again = train_reward_model(base, [], [], settings, 0, tmp_path)  # at its end: what is there
    assert again == outcome


def group_of(row: dict[str, str]) -> Group:
    answers = (row["chosen"], row["rejected"])
    candidates = tuple(Candidate(i, (5,), text, "stop", i) for i, text in enumerate(answers))
    return Group(Prompt("p", row["prompt"], (7,)), candidates)


def test_an_encoder_can_be_the_base(tmp_path: Path) -> None:
    path = bert(tmp_path / "bert")
    settings = config(epochs=6, batch_size=8, learning_rate=3e-3)
    outcome = train_reward_model(path, encode(path, liked(200)), encode(path, liked(40, 1)), settings, 0, tmp_path)
    assert outcome.held_out is not None
    assert outcome.held_out["accuracy"] > 0.9
    RewardModelJudge(JudgeConfig(type="reward_model", path=str(tmp_path / "model")), "rm")


def test_the_weights_with_the_lowest_held_out_loss_are_kept_and_patience_ends_it(
    base: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    """Held out is the opposite of what is taught: it soon gets worse."""
    backwards = [Pair(pair.rejected, pair.chosen) for pair in pairs[:40]]
    settings = config(epochs=10, eval_steps=2, patience=3)
    outcome = train_reward_model(base, pairs, backwards, settings, 0, tmp_path)
    losses = {line["step"]: line["eval/loss"] for line in lines(tmp_path) if "eval/loss" in line}
    assert outcome.kept == min(losses, key=lambda step: losses[step])
    assert outcome.stopped is not None and outcome.stopped.startswith("3 evaluations without a lower held-out loss")
    assert max(losses) == outcome.kept + 3 * 2 == len(lines(tmp_path))
    assert outcome.held_out is not None
    assert outcome.held_out["loss"] == pytest.approx(losses[outcome.kept], abs=1e-6)


# ---------------------------------------------------------------------------------------------- the step
@pytest.mark.parametrize("budget", [60, 100_000])
def test_a_step_is_the_gradient_of_the_mean_loss_whatever_the_budget(
    base: Path, pairs: list[Pair], tmp_path: Path, budget: int
) -> None:
    batch = [Pair(pair.chosen, pair.rejected, i / 10, 0.5 + i / 40) for i, pair in enumerate(pairs[:16])]
    settings = config(token_budget=budget, margin_weight=0.3, centring=0.02, epochs=1, schedule="constant")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_base(base, 0, tokenizer, [ids_of(row)[-1] for pair in batch for row in pair.rows])
    expected = plain_gradients(model, batch, settings)
    loop = RewardLoop(model, batch, [], settings, 0, tmp_path)
    found = loop._backward(batch)
    for name, master in loop.weights.masters.items():
        assert master.grad is not None
        torch.testing.assert_close(master.grad, expected[name], rtol=1e-4, atol=1e-6)
    assert found["loss"] == pytest.approx(expected["loss"].item(), abs=1e-5)


def plain_gradients(model: Any, batch: list[Pair], settings: RewardTrainerConfig) -> dict[str, torch.Tensor]:
    """A forward pass a row, nothing padded."""
    rewards = [
        torch.stack([model(input_ids=torch.tensor([ids_of(row)])).logits[0, 0] for row in rows])
        for rows in ([pair.chosen for pair in batch], [pair.rejected for pair in batch])
    ]
    labels = (torch.tensor([getattr(pair, name) for pair in batch]) for name in ("margin", "preference"))
    loss = bradley_terry(*rewards, *labels, settings.margin_weight, settings.centring).mean()
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return {"loss": loss.detach(), **gradients}


def test_a_new_head_gives_rewards_near_zero_and_reads_the_rows_own_end(base: Path, pairs: list[Pair]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    row = pairs[0].chosen
    last = ids_of(row)[-1]
    model = load_base(base, 0, tokenizer, [last])
    assert model.config.pad_token_id == tokenizer.pad_token_id
    rewards = Rewards(model, 1000).measured([each for pair in pairs for each in pair.rows])
    assert 0 < max(map(abs, rewards)) < 3
    again = load_base(base, 0, tokenizer, [last])
    assert torch.equal(model.score.weight, again.score.weight)
    assert not torch.equal(model.score.weight, load_base(base, 1, tokenizer, [last]).score.weight)
    assert load_base(base, 0, tokenizer, [tokenizer.pad_token_id]).config.pad_token_id is None


def test_the_head_computes_in_float32_and_moves_in_bfloat16_training(base: Path, pairs: list[Pair]) -> None:
    model = load_base(base, 0, AutoTokenizer.from_pretrained(base), [])
    weights = weights_of(model, "bfloat16")
    assert model.score.weight.dtype == torch.float32
    assert model.base_model.embed_tokens.weight.dtype == torch.bfloat16
    Rewards(model, 1000).of(pairs[0].rows).sum().backward()
    assert weights.masters["score.weight"].grad is not None
    assert all(master.dtype == master.grad.dtype == torch.float32 for master in weights)  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------- bases
def test_a_classifier_keeps_its_head_and_one_with_other_outputs_gets_a_new_one(tmp_path: Path) -> None:
    for labels in (1, 2):
        path = tmp_path / str(labels)
        model = LlamaForSequenceClassification(llama(num_labels=labels, pad_token_id=EOS))
        model.save_pretrained(path)
        save_tokenizer(path, TEMPLATE)
        loaded = load_base(path, 0, AutoTokenizer.from_pretrained(path), [EOS])
        assert loaded.score.weight.shape == (1, 16)
        assert torch.equal(loaded.score.weight, model.score.weight) == (labels == 1)
        assert loaded.config.pad_token_id == (EOS if labels == 1 else 0)


def test_a_checkpoint_that_lacks_more_than_the_head_is_refused(tmp_path: Path) -> None:
    model = LlamaForSequenceClassification(llama(num_labels=1))
    state = {name: each for name, each in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    save_tokenizer(tmp_path, TEMPLATE)
    with pytest.raises(DataError, match=r"lacks model\.layers\.1\.mlp\.down_proj\.weight"):
        load_base(tmp_path, 0, AutoTokenizer.from_pretrained(tmp_path), [])


def test_a_chat_model_is_trained_on_templated_conversations(tmp_path: Path) -> None:
    path = chat_policy(tmp_path / "chat")
    outcome = train_reward_model(path, encode(path, liked(32)), [], config(epochs=1), 0, tmp_path / "out")
    assert (outcome.kept, outcome.held_out) == (2, None)
    judge = RewardModelJudge(JudgeConfig(type="reward_model", path=str(tmp_path / "out" / "model")), "rm")
    (judgment,) = judge.judge([group_of({"prompt": "q", "chosen": "a", "rejected": "b"})])
    assert None not in judgment.scores


# ---------------------------------------------------------------------------------------------- sessions that end
class Killed(BaseException):
    """As a kill, nothing is saved on the way out."""


def stop_at(step: int, how: Callable[[], None]) -> Callable[[int, int, str], None]:
    return lambda done, total, note: how() if done == step else None


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_that_is_killed_or_interrupted_ends_as_one_that_is_not(
    base: Path, pairs: list[Pair], held_out: list[Pair], tmp_path: Path, dtype: str
) -> None:
    settings = config(checkpoint_steps=4, eval_steps=3, dtype=dtype)
    whole = train_reward_model(base, pairs, held_out, settings, 3, tmp_path / "whole")
    out = tmp_path / "out"
    for expected, progress in [
        (Killed, stop_at(6, kill)),
        (SystemExit, stop_at(9, lambda: signal.raise_signal(signal.SIGTERM))),
        (Killed, stop_at(15, kill)),
    ]:
        with pytest.raises(expected):
            train_reward_model(base, pairs, held_out, settings, 3, out, progress)
    steps: list[int] = []
    again = train_reward_model(base, pairs, held_out, settings, 3, out, lambda done, *_: steps.append(done))
    assert steps[0] > 9
    assert again.held_out == whole.held_out
    assert again.kept == whole.kept
    assert weights_digest(out / "model") == weights_digest(tmp_path / "whole" / "model")
    assert lines(out) == lines(tmp_path / "whole")


def test_a_model_that_could_not_be_written_is_only_written_again(base: Path, pairs: list[Pair], tmp_path: Path) -> None:
    """Its last state is of its last step, whatever ``checkpoint_steps``."""
    settings, out = config(checkpoint_steps=1000, eval_steps=3, epochs=1), tmp_path / "out"
    out.mkdir()
    in_the_way = out / "model.part"
    in_the_way.touch()
    with pytest.raises(StoreError, match=r"model\.part cannot be written"):
        train_reward_model(base, pairs, (), settings, 3, out)
    in_the_way.unlink()
    train_reward_model(base, pairs, (), settings, 3, out, lambda *_: pytest.fail("a step"))
    whole = tmp_path / "whole"
    train_reward_model(base, pairs, (), settings, 3, whole)
    assert weights_digest(out / "model") == weights_digest(whole / "model")
    assert lines(out) == lines(whole)


def test_out_of_memory_halves_the_budget_until_a_pair_is_too_much(
    base: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Rewards.of

    def scarce(self: Rewards, rows: Any) -> torch.Tensor:
        if len(rows) * max(map(len, rows)) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, rows)

    monkeypatch.setattr(Rewards, "of", scarce)
    limit = 200
    loop = RewardLoop(load_base(base, 0, AutoTokenizer.from_pretrained(base), []), pairs, [], config(), 0, tmp_path)
    loop.step(0)
    assert 100 <= loop.rewards.token_budget <= 200
    assert caplog.messages[-1].endswith(f" tokens at once; the token budget is now {loop.rewards.token_budget}")
    again = RewardLoop(load_base(base, 0, AutoTokenizer.from_pretrained(base), []), pairs, [], config(), 0, tmp_path)
    assert (again.first, again.rewards.token_budget) == (0, loop.rewards.token_budget)  # though there is memory again
    limit = 10
    with pytest.raises(TrainingError, match="out of memory on one pair of"):
        loop.step(1)


def test_memory_that_no_smaller_budget_mends_is_one_clear_error(
    base: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("torch.optim.AdamW.step", fail)
    with pytest.raises(TrainingError, match=r"^out of memory while training .* by a smaller base$"):
        train_reward_model(base, pairs, (), config(), 0, tmp_path)


def test_memory_that_runs_out_while_measuring_leaves_the_training_as_it_is(
    base: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Rewards.of
    loop = RewardLoop(load_base(base, 0, AutoTokenizer.from_pretrained(base), []), [], pairs, config(), 0, tmp_path)
    budget, rows = loop.rewards.token_budget, [row for pair in pairs for row in pair.rows]
    expected = loop.rewards.measured(rows)

    def scarce(self: Rewards, rows: Any) -> torch.Tensor:
        if len(rows) * max(map(len, rows)) > limit:
            raise MemoryError
        return plain(self, rows)

    monkeypatch.setattr(Rewards, "of", scarce)
    limit = budget // 3
    assert loop.rewards.measured(rows) == pytest.approx(expected, abs=1e-5)
    assert loop.rewards.measured_at_once <= limit < loop.rewards.token_budget == budget
    assert len(caplog.messages) == 2
    assert caplog.messages[-1].endswith(f"the token budget is now {loop.rewards.measured_at_once}")
    limit = max(map(len, rows)) - 1
    with pytest.raises(TrainingError, match=f"out of memory on one row of {limit + 1} tokens"):
        loop.rewards.measured(rows)


def test_a_loss_that_is_no_number_ends_the_training(base: Path, pairs: list[Pair], tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step \d+: loss"):
        train_reward_model(base, pairs, [], config(learning_rate=1e30, max_grad_norm=1e30), 0, tmp_path)


def test_nothing_to_train_on_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to train on"):
        train_reward_model(base, [], [], config(), 0, tmp_path)


def test_a_saved_model_loads_with_nothing_missing(base: Path, pairs: list[Pair], tmp_path: Path) -> None:
    train_reward_model(base, pairs[:16], [], config(epochs=1), 0, tmp_path)
    _, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
