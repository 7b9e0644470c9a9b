"""Sums over the tokens of completions, shared ones too, and completions labelled one by one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import DataError
from tests.trainers.comparisons import BETA, SOME, TYPES, compare, losses, make_completions, term
from trainers.comparisons import Completions
from trainers.examples import Pair, Row
from trainers.losses.aot import aot_quantiles
from trainers.losses.bco import bco
from trainers.losses.kto import kto, reference_point
from trainers.losses.nll import nll
from trainers.objective import Objective

SINGLES = ["aot_unpaired", "bco", "kto", "nll"]


def test_pairs_that_share_a_completion_give_it_the_sum_of_their_gradients() -> None:
    completions = make_completions(4)
    shared = compare([0, 0, 1, 0], [1, 2, 2, 3])
    alone = [compare([a], [b]) for a, b in ((0, 1), (0, 2), (1, 2), (0, 3))]
    whole = losses(term("sigmoid"), completions=completions, comparisons=shared)
    parts = [losses(term("sigmoid"), completions=completions, comparisons=each) for each in alone]
    assert torch.equal(whole, torch.cat(parts))
    (together,) = torch.autograd.grad(whole.sum(), completions.token_logps)
    separate = sum(torch.autograd.grad(each.sum(), completions.token_logps)[0] for each in parts)
    torch.testing.assert_close(together, separate, rtol=1e-6, atol=1e-8)


def test_long_completions_are_summed_in_float64() -> None:
    count = 3000
    tokens = torch.full((count,), -1.1)
    completions = Completions(
        tokens, torch.zeros(count, dtype=torch.int64), torch.tensor([count]), torch.zeros(1, dtype=torch.float64)
    )
    assert completions.logps.item() == pytest.approx(count * float(tokens[0]), rel=1e-14)


def test_losses_over_tokens_are_worked_out_a_completion_at_a_time() -> None:
    """LD-DPO, WPO and TDPO against sums over slices of the token tensors."""
    completions = make_completions(2, seed=3)
    comparisons = compare([0], [1])
    first = int(completions.lengths[0])
    assert completions.lengths.tolist() == sorted(completions.lengths.tolist())  # chosen is the shorter one here
    tokens, reference = completions.token_logps.double(), completions.reference_token_logps
    assert reference is not None
    assert completions.collision is not None
    assert completions.reference_kl is not None
    ratios = tokens - reference.double()

    def loss(name: str, **parameters: Any) -> float:
        return losses(term(name, **parameters), completions=completions, comparisons=comparisons).item()

    def dpo(margin: Tensor) -> Tensor:
        return -F.logsigmoid(BETA * margin)

    public = ratios[first : 2 * first].sum() + 0.25 * ratios[2 * first :].sum()
    assert loss("ld_dpo", alpha=0.25) == pytest.approx(dpo(ratios[:first].sum() - public).item(), rel=1e-9)
    aligned = tokens - completions.collision
    weight = (aligned[:first].mean() + aligned[first:].mean()).exp()
    plain = dpo(ratios[:first].sum() - ratios[first:].sum())
    assert loss("wpo") == pytest.approx((weight * plain).item(), rel=1e-9)
    kl = completions.reference_kl.double()
    gap = kl[first:].sum() - kl[:first].sum()
    assert loss("tdpo1") == pytest.approx(dpo(ratios[:first].sum() - ratios[first:].sum() - gap).item(), rel=1e-9)


@pytest.mark.parametrize(("name", "reaches_chosen"), [("tdpo1", True), ("tdpo2", False)])
def test_gradients_flow_through_the_kl_where_the_paper_lets_them(name: str, reaches_chosen: bool) -> None:
    completions = make_completions()
    values = losses(term(name), completions=completions)
    assert completions.reference_kl is not None
    (gradient,) = torch.autograd.grad(values.sum(), completions.reference_kl)
    of_chosen = (completions.owner % 2) == 0
    assert bool((gradient[of_chosen] != 0).all()) == reaches_chosen
    assert (gradient[~of_chosen] > 0).all()


def test_completions_labelled_one_by_one_follow_the_pairs() -> None:
    completions = make_completions()
    singles = completions.logps[SOME.singles], completions.reference_logps[SOME.singles]
    point = reference_point(completions.logps[9:], completions.reference_logps[9:])
    ours = losses(term("kto", desirable_weight=1.3), completions=completions, comparisons=SOME)
    assert torch.equal(ours[2:], kto(*singles, SOME.desirable, point, BETA, 1.3))
    ours = losses(term("bco", delta=False), completions=completions, comparisons=SOME)
    assert torch.equal(ours[2:], bco(*singles, SOME.desirable, BETA))
    ours = losses(term("nll"), completions=completions, comparisons=SOME)
    likelihood = nll(singles[0], completions.lengths[SOME.singles])
    assert torch.equal(ours[2:], likelihood * SOME.desirable)


def test_single_completions_have_the_beta_of_their_source() -> None:
    completions = make_completions()
    betas = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    comparisons = replace(SOME, single_betas=betas)
    ours = losses(term("bco", delta=False), completions=completions, comparisons=comparisons)[2:]
    singles = completions.logps[SOME.singles], completions.reference_logps[SOME.singles]
    assert torch.equal(ours, bco(*singles, SOME.desirable, betas))


def test_kto_of_a_pair_is_the_mean_of_kto_of_its_two_completions() -> None:
    completions = make_completions()
    apart = compare([], [], [0, 1], desirable=torch.tensor([True, False]), mismatched=SOME.mismatched)
    paired = losses(term("kto"), completions=completions, comparisons=SOME)[0]
    assert paired.item() == pytest.approx(
        losses(term("kto"), completions=completions, comparisons=apart).mean().item(), rel=1e-12
    )


def test_unpaired_aot_takes_pairs_and_singles_alike() -> None:
    completions = make_completions()
    ours = losses(term("aot_unpaired"), completions=completions, comparisons=SOME)
    rewards = BETA * (completions.logps - completions.reference_logps)
    good, bad = rewards[[0, 2, 5, 6, 8]], rewards[[1, 3, 4, 7]]
    torch.testing.assert_close(ours, aot_quantiles(good, bad).expand(7), rtol=1e-12, atol=0.0)


def test_a_batch_of_singles_alone_has_no_figures_of_pairs() -> None:
    completions = make_completions()
    comparisons = replace(compare([], [], [4, 5, 6]), mismatched=SOME.mismatched)
    for name in SINGLES:
        objective = Objective([term(name)], BETA)
        objective.observe(completions, comparisons)
        values, figures = objective(completions, comparisons)
        assert values.shape == (3,)
        assert {name.partition("/")[2] for name in figures} == {"desirable", "undesirable"}
    assert figures["rewards/desirable"].shape == (2,)
    assert figures["logps/undesirable"].tolist() == [completions.logps[4].item()]


def test_losses_of_pairs_refuse_single_completions_before_training() -> None:
    for name in TYPES:
        objective = Objective([term("kto"), term(name)], BETA)
        objective.check(has_pairs=True, has_singles=False)
        if name in SINGLES:
            objective.check(has_pairs=False, has_singles=True)
        else:
            with pytest.raises(DataError, match=f"'{name}' compares pairs.*'aot_unpaired', 'bco', 'kto', 'nll'"):
                objective.check(has_pairs=True, has_singles=True)
    with pytest.raises(DataError, match="neither pairs nor"):
        Objective([term("kto")], BETA).check(has_pairs=False, has_singles=False)


def test_a_term_that_reads_labels_refuses_pairs_without_any_and_says_how_many_lack_one() -> None:
    bare = Pair(Row((1,), (2,)), Row((1,), (3,)))
    scored, soft = replace(bare, margin=0.5), replace(bare, preference=0.7)
    readers = {"odpo": (scored, "margin, or score_chosen"), "modpo": (scored, "margin"),
               "sigmoid": (soft, "preference"), "sppo": (soft, "preference")}  # fmt: skip
    for name, (labelled, column) in readers.items():
        parameters = {"soft_labels": True} if labelled is soft else {}
        objective = Objective([term("kto"), term(name, **parameters)], BETA)
        with pytest.raises(
            DataError, match=rf"loss '{name}' reads each pair's .*, and no pair has one; columns: {column}"
        ):
            objective.check_labels([bare, bare])
        assert objective.check_labels([labelled, labelled]) == []
        (line,) = objective.check_labels([bare, labelled, bare])
        assert line.startswith("2 of 3 pairs have no ")
    for name in set(TYPES) - {"odpo", "modpo"}:
        assert Objective([term(name)], BETA).check_labels([bare]) == []
    assert Objective([term("modpo", share=1.0)], BETA).check_labels([bare]) == []
