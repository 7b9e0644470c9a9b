"""The objective: terms mix, say what they need, and chunks change nothing; examples keep their β and labels."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.config import SigmoidLoss
from tests.trainers.comparisons import BETA, EVERY, PAIRS, SOME, TYPES, losses, make_completions, pairs, term
from trainers.comparisons import Comparisons
from trainers.losses.sigmoid import odpo, sigmoid
from trainers.objective import Objective

COUPLED = {"aot_paired", "aot_unpaired", "bco", "beta_dpo", "kto"}
SINGLES = ["aot_unpaired", "bco", "kto", "nll"]


def part(comparisons: Comparisons, which: slice) -> Comparisons:
    names = ("chosen", "rejected", "margins", "preferences", "betas")
    return replace(comparisons, **{name: getattr(comparisons, name)[which] for name in names})


# ---------------------------------------------------------------------------------------------- terms
def test_the_configured_terms_are_all_those_the_design_lists() -> None:
    assert len(TYPES) == len(set(TYPES)) == 32
    assert {"sigmoid", "ipo_sum", "ipo_length_normalised", "simpo", "odds", "kto", "tdpo2", "beta_dpo"} <= set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_a_term_gives_every_pair_a_finite_loss_and_reaches_the_tokens(name: str) -> None:
    completions = make_completions()
    objective = Objective([term(name)], BETA)
    objective.observe(completions, EVERY)
    values, figures = objective(completions, EVERY)
    assert values.shape == (PAIRS,)
    assert values.dtype == torch.float64
    assert values.isfinite().all()
    assert not any(figure.requires_grad for figure in figures.values())
    (gradient,) = torch.autograd.grad(values.sum(), completions.token_logps)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", TYPES)
def test_a_separable_term_gives_the_same_over_parts_of_the_batch_and_only_a_coupled_one_does_not(name: str) -> None:
    completions = make_completions()
    objective = Objective([term(name)], BETA)
    objective.observe(completions, EVERY)
    whole = objective(completions, EVERY)[0]

    def of(which: slice) -> Tensor:
        one = Objective([term(name)], BETA)
        few = replace(part(EVERY, which), mismatched=EVERY.mismatched[which.start // 3 :][:1])
        one.observe(completions, few)
        return one(completions, few)[0]

    parts = torch.cat([of(slice(0, 3)), of(slice(3, PAIRS))])
    assert objective.coupled == (name in COUPLED)
    assert torch.equal(parts, whole) != objective.coupled


def test_bco_without_delta_is_separable() -> None:
    assert not Objective([term("bco", delta=False)], BETA).coupled
    assert Objective([term("sigmoid"), term("kto")], BETA).coupled


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("sigmoid", {"reference"}),
        ("simpo", set()),
        ("odds", set()),
        ("nll", set()),
        ("kto", {"reference", "mismatched"}),
        ("wpo", {"reference", "collision"}),
        ("tdpo2", {"reference", "reference_kl"}),
        ("ld_dpo", {"reference", "reference_tokens"}),
    ],
)
def test_what_a_term_does_not_need_it_does_not_read(name: str, needs: set[str]) -> None:
    objective = Objective([term(name)], BETA)
    assert objective.needs == needs
    completions = make_completions()
    expected = objective(completions, EVERY)[0]
    bare = replace(
        completions,
        reference_logps=completions.reference_logps if "reference" in needs else completions.reference_logps * 0 - 7,
        collision=completions.collision if "collision" in needs else None,
        reference_kl=completions.reference_kl if "reference_kl" in needs else None,
        reference_token_logps=completions.reference_token_logps if "reference_tokens" in needs else None,
    )
    mismatched = EVERY.mismatched if "mismatched" in needs else EVERY.mismatched[:0]
    assert torch.equal(objective(bare, replace(EVERY, mismatched=mismatched))[0], expected)


def test_weights_mix_linearly_in_value_and_gradient() -> None:
    completions = make_completions()
    mixed = losses(term("sigmoid", weight=0.7), term("nll", weight=0.2), term("apo_zero"), completions=completions)
    alone = [losses(term(name), completions=completions) for name in ("sigmoid", "nll", "apo_zero")]
    expected = 0.7 * alone[0] + 0.2 * alone[1] + alone[2]
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=0.0)
    gradients = [torch.autograd.grad(each.sum(), completions.token_logps)[0] for each in (mixed, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_figures_tell_several_terms_apart_even_of_one_type() -> None:
    completions = make_completions()
    terms = [term("sigmoid"), term("nll", weight=3.0), term("sigmoid", beta=2.0)]
    figures = Objective(terms, BETA)(completions, EVERY)[1]
    for name, each in zip(("sigmoid", "nll", "sigmoid.2"), terms, strict=True):
        unweighted = losses(each.model_copy(update={"weight": 1.0}), completions=completions)
        assert torch.equal(figures[f"loss/{name}"], unweighted.detach())
    assert not any(name.startswith("loss/") for name in Objective(terms[:1], BETA)(completions, EVERY)[1])


def test_figures_of_pairs_are_those_of_the_four_log_probabilities() -> None:
    completions = make_completions()
    chosen, rejected, reference_chosen, reference_rejected = (each.detach() for each in pairs(completions))
    figures = Objective([term("sigmoid")], BETA)(completions, EVERY)[1]
    expected = {
        "rewards/chosen": BETA * (chosen - reference_chosen),
        "rewards/rejected": BETA * (rejected - reference_rejected),
        "rewards/margins": BETA * (chosen - reference_chosen - rejected + reference_rejected),
        "rewards/accuracies": (chosen - reference_chosen > rejected - reference_rejected).double(),
        "logps/chosen": chosen, "logps/rejected": rejected,
        "reference_logps/chosen": reference_chosen, "reference_logps/rejected": reference_rejected,
        "lengths/chosen": completions.lengths[::2].double(), "lengths/rejected": completions.lengths[1::2].double(),
        "nll": -chosen / completions.lengths[::2],
    }  # fmt: skip
    assert figures.keys() == expected.keys()
    for name, figure in expected.items():
        torch.testing.assert_close(figures[name], figure, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------------------------------------- β, labels, margins
def test_each_example_has_the_beta_of_its_source_and_a_terms_own_overrides_all() -> None:
    completions = make_completions()
    objective = Objective([term("sigmoid")], BETA, {"helpful": 0.5, "harmless": 0.05})
    sources = ["helpful", "other", "harmless", "helpful", "", "harmless"]
    betas = torch.tensor([objective.beta_of(source) for source in sources], dtype=torch.float64)
    assert betas.tolist() == [0.5, BETA, 0.05, 0.5, BETA, 0.05]
    values = objective(completions, replace(EVERY, betas=betas))[0]
    one_by_one = [sigmoid(*pairs(completions), float(beta))[i] for i, beta in enumerate(betas)]
    torch.testing.assert_close(values, torch.stack(one_by_one), rtol=1e-12, atol=0.0)
    own = Objective([term("sigmoid", beta=1.5)], BETA)(completions, replace(EVERY, betas=betas))[0]
    torch.testing.assert_close(own, sigmoid(*pairs(completions), 1.5), rtol=1e-12, atol=0.0)


def test_simpo_has_a_beta_of_its_own_scale() -> None:
    completions = make_completions()
    assert torch.equal(
        losses(term("simpo"), completions=completions), losses(term("simpo", beta=2.0), completions=completions)
    )


def test_soft_labels_are_used_where_asked_for_alone() -> None:
    completions = make_completions()
    hard = sigmoid(*pairs(completions), BETA)
    assert torch.equal(losses(term("sigmoid"), completions=completions), hard)
    soft = losses(term("sigmoid", soft_labels=True), completions=completions)
    assert torch.equal(soft, sigmoid(*pairs(completions), BETA, 0.0, EVERY.preferences))
    assert not torch.equal(soft[:-1], hard[:-1])
    assert soft[-1] == hard[-1]  # its preference is 1
    sure = replace(EVERY, preferences=torch.ones(PAIRS, dtype=torch.float64))
    for name in ("sigmoid", "sppo"):
        asked = losses(term(name, soft_labels=True), completions=completions, comparisons=sure)
        torch.testing.assert_close(asked, losses(term(name), completions=completions), rtol=1e-12, atol=0.0)


def test_margins_reach_the_losses_that_take_them() -> None:
    completions = make_completions()
    offset = losses(term("odpo", alpha=0.4, scaling="identity"), completions=completions)
    assert torch.equal(offset, odpo(*pairs(completions), EVERY.margins, BETA, 0.4, "identity"))
    against, none = replace(EVERY, margins=-EVERY.margins), replace(EVERY, margins=EVERY.margins * 0)
    for name, same in (
        ("odpo", True),
        ("modpo", False),
    ):  # a contradicted choice's offset is none; MODPO's is another's
        terms = term(name, scaling="identity") if name == "odpo" else term(name)
        found = [losses(terms, completions=completions, comparisons=each) for each in (against, none)]
        assert torch.equal(*found) == same
    for name in ("odpo", "modpo"):
        doubled = losses(term(name), completions=completions, comparisons=replace(EVERY, margins=2 * EVERY.margins))
        assert (doubled > losses(term(name), completions=completions)).all()


# ---------------------------------------------------------------------------------------------- running figures
def test_only_observing_moves_the_running_figures() -> None:
    completions = make_completions()
    objective = Objective([term("bco"), term("beta_dpo"), term("sigmoid")], BETA)
    before = dict(objective.state)
    assert before == {
        "bco/delta": 0, "bco/count": 0, "beta_dpo/center": 0, "beta_dpo/spread": 0, "beta_dpo/batches": 0
    }  # fmt: skip
    first = objective(completions, EVERY)[0]
    assert objective.state == before
    objective.observe(completions, EVERY)
    rewards = (BETA * (completions.logps - completions.reference_logps)).detach()
    assert objective.state["bco/delta"] == pytest.approx(rewards.mean().item(), rel=1e-12)
    assert objective.state["bco/count"] == 12
    assert objective.state["beta_dpo/center"] == pytest.approx(0.1 * (rewards[::2] - rewards[1::2]).mean().item())
    assert objective.state["beta_dpo/batches"] == 1
    assert not torch.equal(objective(completions, EVERY)[0], first)


def test_a_saved_state_gives_the_same_losses_and_the_same_next_state() -> None:
    terms = [term("bco"), term("beta_dpo"), term("bco", beta=2.0)]
    one, other = Objective(terms, BETA), Objective(terms, BETA)
    one.observe(make_completions(seed=1), EVERY)
    other.state = dict(one.state)
    completions = make_completions(seed=2)
    assert torch.equal(one(completions, EVERY)[0], other(completions, EVERY)[0])
    for objective in (one, other):
        objective.observe(completions, EVERY)
    assert one.state == other.state
    assert one.state["bco/delta"] != one.state["bco.2/delta"]


def test_bco_delta_counts_singles_too() -> None:
    completions = make_completions()
    objective = Objective([term("bco")], BETA)
    objective.observe(completions, SOME)
    rewards = (BETA * (completions.logps - completions.reference_logps)).detach()[:9]
    assert objective.state["bco/delta"] == pytest.approx(rewards.mean().item(), rel=1e-12)


# ---------------------------------------------------------------------------------------------- config
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sigmoid", {"label_smoothing": 0.5}),
        ("sigmoid", {"beta": 0.0}),
        ("sigmoid", {"weight": 0.0}),
        ("sigmoid", {"gamma": 1.0}),
        ("nll", {"beta": 0.1}),
        ("exo", {"label_smoothing": 0.0}),
        ("discopop", {"tau": 1.5}),
        ("alpha_divergence", {"alpha": 1.0}),
        ("modpo", {"share": 0.0}),
        ("beta_dpo", {"keep": 0.0}),
        ("ipo", {}),
    ],
)
def test_a_term_outside_its_limits_is_refused(name: str, parameters: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        term(name, **parameters)


def test_the_first_loss_of_a_policy_equal_to_its_reference_is_ln_2() -> None:
    completions = make_completions()
    equal = replace(completions, reference_logps=completions.logps.detach())
    assert losses(SigmoidLoss(type="sigmoid"), completions=equal).tolist() == [math.log(2)] * PAIRS
