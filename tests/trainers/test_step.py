"""A batch's gradient and figures against all of it at once: padded rows, pure losses, autograd."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.config import LossConfig
from tests.trainers.comparisons import term
from tests.trainers.naive import assert_same_gradients, counting_tokens, make_model, naive_logps, take_gradients
from tests.trainers.whole import BETA, BETAS, CASES, MISMATCHED, PAIRS, ROWS, Whole
from trainers import logprobs
from trainers.examples import Row
from trainers.losses.rewards import reward_margins
from trainers.objective import Objective
from trainers.packed import PackedPolicy
from trainers.step import KnownReference, Step
from trainers.weights import Weights

BUDGETS = (1, 30, 10**6)


# ---------------------------------------------------------------------------------------------- a step
@pytest.fixture
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Policy and reference: far enough apart that losses are nowhere near ln 2."""
    return make_model("llama", num_hidden_layers=1), make_model("llama", seed=1, num_hidden_layers=1)


def known_reference(reference: PreTrainedModel) -> KnownReference:
    rows = [*ROWS, *MISMATCHED.values()]
    with torch.no_grad():
        tokens = naive_logps(reference, rows).split([len(row.completion) for row in rows])
    lists = {row: each.tolist() for row, each in zip(rows, tokens, strict=True)}
    return KnownReference({row: sum(each) for row, each in lists.items()}, lists)


def make_step(
    models: tuple[PreTrainedModel, PreTrainedModel], terms: list[LossConfig], budget: int, **more: Any
) -> Step:
    """Of the models as they are; call after whatever needs them plain."""
    objective = Objective(terms, BETA, BETAS)
    known = known_reference(models[1])
    policy = PackedPolicy(models[0], Weights(models[0], "float32"))
    live = PackedPolicy(models[1].requires_grad_(False)) if "reference_kl" in objective.needs else None
    mismatched = MISMATCHED if "mismatched" in objective.needs else None
    return Step(policy, objective, known, budget, live, mismatched, **more)


def taken(step: Step) -> dict[str, Tensor]:
    """The gradients there are; none are left."""
    assert step.policy.weights is not None
    found = take_gradients(step.policy.model)
    step.policy.weights.clear()
    return found


@pytest.mark.parametrize(("name", "budget"), list(product(CASES, BUDGETS)))
def test_gradient_and_loss_are_those_of_the_whole_batch_at_once_whatever_the_budget(
    name: str, budget: int, models: tuple[PreTrainedModel, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches, so that running figures are those after the first; and chunks that end within packs."""
    monkeypatch.setitem(logprobs.CHUNK, "cpu", 16)
    case = CASES[name]
    losses, found = case.make(), []
    batches = [case.examples[: len(case.examples) // 2], case.examples]
    for batch in batches:
        loss = losses(Whole(batch, *models)).mean()
        loss.backward()
        models[1].zero_grad()
        found.append((loss.item(), take_gradients(models[0])))
    step = make_step(models, case.terms, budget)
    assert step.objective.coupled == case.coupled
    for batch, (loss, gradients) in zip(batches, found, strict=True):
        figures = step.backward(batch)
        assert figures["loss"] == pytest.approx(loss, rel=1e-5)
        assert_same_gradients(taken(step), gradients)


@pytest.mark.parametrize("name", CASES)
def test_figures_do_not_depend_on_the_budget_and_are_those_of_an_evaluation(
    name: str, models: tuple[PreTrainedModel, PreTrainedModel]
) -> None:
    case, found = CASES[name], []
    for budget in BUDGETS:
        step = make_step(models, case.terms, budget)
        found.append(step.backward(case.examples))
        taken(step)
        state = dict(step.objective.state)
        assert step.measure(case.examples) == pytest.approx(found[-1], rel=1e-5, abs=1e-6)
        assert step.objective.state == state
        assert not any(each.any() for each in taken(step).values())
        step.policy.unpack()
        models[1].set_attn_implementation("eager")
    for each in found[1:]:
        assert each == pytest.approx(found[0], rel=1e-5, abs=1e-6)


def test_figures_are_means_over_pairs_or_over_different_completions(
    models: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    batch = Whole(PAIRS, *models)
    with torch.no_grad():
        chosen, rejected, reference_chosen, reference_rejected = batch.pairs
        margins = reward_margins(*batch.pairs, batch.betas)
        rows = list(dict.fromkeys(row for pair in PAIRS for row in pair.rows))
        gaps = batch.sums(models[1], rows) - batch.sums(models[0], rows)
        initial = {row: -float(number) for number, row in enumerate(rows)}
        drift = torch.tensor(list(initial.values())) - batch.sums(models[0], rows)
    step = make_step(models, [term("sigmoid"), term("nll", weight=0.5)], 30, initial=initial)
    figures = step.backward(PAIRS)
    expected = {
        "rewards/margins": margins, "rewards/accuracies": (margins > 0).double(),
        "rewards/chosen": batch.betas * (chosen - reference_chosen),
        "logps/chosen": chosen, "logps/rejected": rejected, "reference_logps/rejected": reference_rejected,
        "lengths/chosen": batch.lengths[0].double(), "kl": gaps, "kl_initial": drift,
    }  # fmt: skip
    for name, values in expected.items():
        assert figures[name] == pytest.approx(values.mean().item(), rel=1e-5, abs=1e-6), name
    assert 0 < figures["rewards/accuracies"] < 1
    assert figures["loss"] == pytest.approx(figures["loss/sigmoid"] + 0.5 * figures["loss/nll"], rel=1e-9)
    assert step.totals.gap == pytest.approx(gaps.abs().max().item(), rel=1e-5)


def test_gradients_of_batches_add_up(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    step = make_step(models, [term("sigmoid")], 30)
    parts = []
    for batch in (PAIRS[:3], PAIRS[3:]):
        step.backward(batch)
        parts.append(taken(step))
    for batch in (PAIRS[:3], PAIRS[3:]):
        step.backward(batch)
    assert_same_gradients(taken(step), {name: each + parts[1][name] for name, each in parts[0].items()})


def test_without_a_reference_there_is_no_divergence_and_none_is_needed(
    models: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    policy = PackedPolicy(models[0], Weights(models[0], "float32"))
    figures = Step(policy, Objective([term("simpo")], BETA), KnownReference(), 30).backward(PAIRS)
    assert "kl" not in figures
    assert figures["reference_logps/chosen"] == 0


# ---------------------------------------------------------------------------------------------- what is forwarded
def cost(rows: Sequence[Row]) -> int:
    """Tokens of each prompt once and of each completion once, but for its last."""
    different = set(rows)
    return sum(map(len, {row.prompt for row in different})) + sum(len(row.completion) - 1 for row in different)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_completion_in_many_pairs_is_run_once(budget: int, models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    rows = [row for pair in PAIRS for row in pair.rows]
    step = make_step(models, [term("sigmoid")], budget)
    with counting_tokens(models[0]) as counts:
        step.backward(PAIRS)
    assert sum(counts) == cost(rows)
    assert sum(counts) < 0.5 * sum(len(row) for row in rows)
    assert len(counts) == {1: 4, 10**6: 1}.get(budget, len(counts))


def test_a_coupled_objective_runs_the_batch_twice_and_what_is_mismatched_once(
    models: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    rows = [row for pair in PAIRS for row in pair.rows]
    step = make_step(models, [term("kto")], 30)
    with counting_tokens(models[0]) as counts:
        step.backward(PAIRS)
    assert sum(counts) == cost(rows) + cost([*rows, *(MISMATCHED[row] for row in rows)])


def test_a_reference_in_memory_is_run_beside_the_policy_and_gets_no_gradient(
    models: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    step = make_step(models, [term("tdpo2")], 30)
    with counting_tokens(models[1]) as counts:
        step.backward(PAIRS)
    assert sum(counts) == cost([row for pair in PAIRS for row in pair.rows])
    assert take_gradients(models[1]) == {}
