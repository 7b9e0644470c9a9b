import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import TrainerConfig
from pipeline.errors import DataError, NonFiniteError, StepZeroError, TrainingError
from pipeline.policy import tensor_shapes
from pipeline.protocols import Progress, silent
from pipeline.types import Policy, PreferencePair
from tests.tiny import EOS, make_policy, perturb
from tests.trainers.examples import make_pair, make_pairs
from trainers import dpo
from trainers.checkpoints import load_model, load_tokenizer, save_policy, saved_dtype
from trainers.dpo import train_policy
from trainers.encoding import Row, pair_rows, special_ids
from trainers.reference import Reference

Logps = Sequence[tuple[float, float]]
PAIRS = make_pairs(22)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def logps(policy: Policy) -> Logps:
    return Reference(policy, "float32", 1000).pair_logps(PAIRS)


def config(**changes: Any) -> TrainerConfig:
    return TrainerConfig(**({"batch_size": 5, "epochs": 2, "token_budget": 100, "schedule": "constant"} | changes))


def run(
    policy: Policy,
    pairs: Sequence[PreferencePair],
    logps: Logps,
    directory: Path,
    rate: float = 1e-3,
    same: bool = True,
    progress: Progress = silent,
    **changes: Any,
) -> tuple[Policy, dict[str, float]]:
    return train_policy(
        policy, pairs, logps, config(**changes), directory,
        learning_rate=rate, seed=7, starts_at_reference=same, progress=progress,
    )  # fmt: skip


def lines(directory: Path) -> list[dict[str, float]]:
    """The metrics of each step but its speed, the one thing that no seed decides."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "pairs_per_second"} for row in rows]


def test_training_starts_at_ln_2_and_raises_the_margin(policy: Policy, logps: Logps, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    trained, last = run(
        policy, PAIRS, logps, tmp_path, epochs=6, progress=lambda done, total, _: seen.append((done, total))
    )
    rows = lines(tmp_path)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < 0.4
    assert last["rewards/margins"] > 1
    assert rows[-1] == {name: value for name, value in last.items() if name != "pairs_per_second"}
    steps = 6 * 5  # 22 pairs in batches of 5: the fifth holds the last two
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert [row["epoch"] for row in rows[4::5]] == [1, 2, 3, 4, 5, 6]
    assert seen == [(step, steps) for step in range(1, steps + 1)]
    assert trained.digest != policy.digest
    assert not (tmp_path / "state").exists()
    after = Reference(trained, "float32", 1000).pair_logps(PAIRS)
    margins = [(c - rc) - (r - rr) for (c, r), (rc, rr) in zip(after, logps, strict=True)]
    assert sum(margins) / len(margins) > 10  # nats; β is 0.1


def test_every_pair_is_seen_once_an_epoch_in_an_order_that_epochs_change(policy: Policy, tmp_path: Path) -> None:
    pairs = [dpo.TrainingPair(*(Row((1,), (4 + i, EOS)),) * 2, 0.0, 0.0) for i in range(22)]
    loop = dpo.Loop(load_model(policy.path), pairs, config(), tmp_path, 1e-3, seed=7)
    batches = [loop._indices(step) for step in range(loop.steps)]
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 2] * 2
    epochs = [[index for batch in half for index in batch] for half in (batches[:5], batches[5:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(22))] * 2
    assert epochs[0] != epochs[1]


def test_metrics_are_means_over_the_batch(policy: Policy, logps: Logps, tmp_path: Path) -> None:
    shifted = [(chosen - 2.0, rejected + 1.0) for chosen, rejected in logps]
    run(policy, PAIRS, shifted, tmp_path, same=False, batch_size=22, epochs=1, beta=0.5)
    (row,) = lines(tmp_path)
    assert row["rewards/chosen"] == pytest.approx(1.0, abs=1e-5)
    assert row["rewards/rejected"] == pytest.approx(-0.5, abs=1e-5)
    assert row["rewards/margins"] == pytest.approx(1.5, abs=1e-5)
    assert row["rewards/accuracies"] == 1
    assert row["loss"] == pytest.approx(math.log1p(math.exp(-1.5)), abs=1e-5)
    assert row["logps/chosen"] == pytest.approx(sum(chosen for chosen, _ in logps) / 22, abs=1e-4)
    assert row["lengths/rejected"] == sum(len(pair.rejected.token_ids) for pair in PAIRS) / 22
    nll = sum(-chosen / len(pair.chosen.token_ids) for (chosen, _), pair in zip(logps, PAIRS, strict=True)) / 22
    assert row["nll"] == pytest.approx(nll, abs=1e-5)


def test_loss_terms_are_weighted_and_added(policy: Policy, logps: Logps, tmp_path: Path) -> None:
    terms = [{"type": "sigmoid", "weight": 2.0}, {"type": "nll", "weight": 0.25}]
    run(policy, PAIRS, logps, tmp_path, loss=terms)
    row = lines(tmp_path)[0]
    assert row["loss"] == pytest.approx(2 * math.log(2) + 0.25 * row["nll"], abs=1e-5)


def test_the_token_budget_changes_memory_and_not_the_result(policy: Policy, logps: Logps, tmp_path: Path) -> None:
    one, some, all_at_once = (
        run(policy, PAIRS, logps, tmp_path / str(budget), token_budget=budget) for budget in (16, 100, 100_000)
    )
    for trained, metrics in (some, all_at_once):
        assert metrics["loss"] == pytest.approx(one[1]["loss"], abs=1e-6)
        assert metrics["grad_norm"] == pytest.approx(one[1]["grad_norm"], rel=1e-4)
        ours, theirs = load_model(trained.path), load_model(one[0].path)
        for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=0.0, atol=1e-4)  # Adam: ±rate where a gradient is all noise


def test_no_forward_pass_is_over_the_token_budget_but_for_a_lone_pair(policy: Policy, tmp_path: Path) -> None:
    model = load_model(policy.path)
    shapes: list[torch.Size] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    rows = [Row((1,), (4,) * (1 + index)) for index in range(20)]
    pairs = [dpo.TrainingPair(row, Row((1,), (EOS,)), 0.0, 0.0) for row in rows]
    settings = config(batch_size=20, epochs=1, token_budget=40)
    dpo.train(model, pairs, settings, tmp_path, learning_rate=1e-3, seed=0, starts_at_reference=False)
    assert sum(shape[0] for shape in shapes) == 2 * 20
    assert all(shape.numel() <= 40 or shape[0] == 2 for shape in shapes)
    assert max(shape[0] for shape in shapes) > 2


def test_clipping_and_weight_decay_reach_the_optimiser(policy: Policy, logps: Logps, tmp_path: Path) -> None:
    """Clipped to nothing, a step is the decay alone: weights shrink by rate × decay."""
    trained, _ = run(
        policy, PAIRS, logps, tmp_path, rate=0.1, batch_size=22, epochs=1, weight_decay=1.0, max_grad_norm=1e-12
    )
    before, after = load_model(policy.path), load_model(trained.path)
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old, rtol=0.0, atol=1e-4)


def test_rates_follow_the_config(policy: Policy, logps: Logps, tmp_path: Path) -> None:
    run(policy, PAIRS, logps, tmp_path, rate=1e-3, schedule="linear", warmup_ratio=0.15)
    rates = [1e-3 * factor for factor in (0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8)]
    assert [row["learning_rate"] for row in lines(tmp_path)] == pytest.approx(rates)


def test_a_16_bit_policy_goes_on_in_float32_so_that_no_small_update_is_rounded_away(tmp_path: Path) -> None:
    """A step of 1e-6 is far below what a bfloat16 weight can move by, and must be in the next round's start."""
    policy = make_policy(tmp_path / "policy", dtype=torch.bfloat16, tied=True)
    logps = Reference(policy, "bfloat16", 1000).pair_logps(PAIRS)
    trained, metrics = run(policy, PAIRS, logps, tmp_path / "out", dtype="bfloat16", epochs=1, rate=1e-6)
    assert metrics["loss"] < math.log(2) + 0.1
    assert tensor_shapes(trained.path) == tensor_shapes(policy.path)
    assert saved_dtype(trained.path) == torch.float32
    before, after = load_model(policy.path).state_dict(), load_model(trained.path).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert (before[name] != after[name]).float().mean() > 0.9
    assert (before[name] == after[name].bfloat16()).float().mean() > 0.9  # what 16 bit would have kept of it


def test_a_reference_of_other_weights_is_refused_before_the_first_update(
    policy: Policy, logps: Logps, tmp_path: Path
) -> None:
    other = perturb(policy, tmp_path / "other", seed=1)
    with pytest.raises(StepZeroError, match=r"nats a completion away .* allowed: 0\.01.* other weights"):
        run(other, PAIRS, logps, tmp_path / "out")
    assert lines(tmp_path / "out") == []
    run(other, PAIRS, logps, tmp_path / "out", same=False, epochs=1)  # it may be, where it is meant to be


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(
    policy: Policy, logps: Logps, tmp_path: Path, bad: float
) -> None:
    poisoned = [*logps[:-1], (bad, logps[-1][1])]
    with pytest.raises(NonFiniteError, match=r"step \d: loss (nan|inf) and gradient norm .* must be finite"):
        run(policy, PAIRS, poisoned, tmp_path, same=False, checkpoint_steps=1)
    assert all(math.isfinite(row["loss"]) for row in lines(tmp_path))
    assert not (tmp_path / "policy").exists()


def test_no_pairs_and_wrong_pairs_are_clear_errors(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no pair to train on"):
        run(policy, [], [], tmp_path)
    with pytest.raises(DataError, match="pair p: chosen completion"):
        run(policy, [make_pair((7, EOS, 7), (8,))], [(0.0, 0.0)], tmp_path)


KILLED = """
import json, os, signal, sys
from pathlib import Path
from pipeline.config import TrainerConfig
from pipeline.policy import read_policy
from tests.trainers.examples import make_pairs
from trainers.dpo import train_policy
path, out, logps, config = sys.argv[1:]
kill = lambda done, total, note: os.kill(os.getpid(), signal.SIGKILL) if done == 8 else None
train_policy(
    read_policy(Path(path)), make_pairs(22), json.loads(logps), TrainerConfig.model_validate_json(config), Path(out),
    learning_rate=1e-3, seed=7, starts_at_reference=True, progress=kill,
)
"""


def test_a_training_killed_half_way_goes_on_to_the_same_weights_and_metrics(
    policy: Policy, logps: Logps, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"checkpoint_steps": 3, "schedule": "cosine"}
    whole, _ = run(policy, PAIRS, logps, tmp_path / "whole", **changes)
    out = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(Path(dpo.__file__).parents[1])}
    settings = config(**changes).model_dump_json()
    command = [sys.executable, "-c", KILLED, str(policy.path), str(out), json.dumps(logps), settings]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    assert [row["step"] for row in lines(out)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert not (out / "policy").exists()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # torn

    steps: list[int] = []
    again, metrics = run(policy, PAIRS, logps, out, progress=lambda done, total, note: steps.append(done), **changes)
    assert steps == [7, 8, 9, 10]  # it went on from the state after step 6
    assert again.digest == whole.digest
    assert lines(out) == lines(tmp_path / "whole")

    # Killed between the policy and what the caller does next: the policy is there, and so may be a state.
    (out / "state").mkdir()
    steps.clear()
    assert run(policy, PAIRS, logps, out, progress=lambda done, total, note: steps.append(done), **changes) == (
        again,
        metrics,
    )
    assert steps == []
    assert not (out / "state").exists()


def test_a_training_killed_after_its_last_step_only_saves(policy: Policy, logps: Logps, tmp_path: Path) -> None:
    whole, _ = run(policy, PAIRS, logps, tmp_path / "whole")
    model = load_model(policy.path)
    specials = special_ids(load_tokenizer(policy.path), model)
    pairs = [dpo.TrainingPair(*pair_rows(p, *specials).rows, *values) for p, values in zip(PAIRS, logps, strict=True)]
    ours: dict[str, Any] = {"learning_rate": 1e-3, "seed": 7, "starts_at_reference": True}
    last = dpo.train(model, pairs, config(checkpoint_steps=10), tmp_path / "out", **ours)
    steps: list[int] = []
    again, found = run(
        policy, PAIRS, logps, tmp_path / "out", progress=lambda done, total, note: steps.append(done),
        checkpoint_steps=10,
    )  # fmt: skip
    assert steps == []
    assert again.digest == whole.digest == save_policy(model, load_tokenizer(policy.path), tmp_path / "mine").digest
    assert found == last
