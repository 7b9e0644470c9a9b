"""Losses, rewards and gradients against those that the losses' authors' own code and other trainers computed.

The whole set is among the shared data; ``golden.json`` beside this file is an extract of it that is always here: two
batches, one source a loss, sums in place of tokens. ``source`` names the code that computed a case.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainers.losses.aot import aot_paired, aot_quantiles, aot_unpaired
from trainers.losses.apo import apo_down, apo_zero
from trainers.losses.bco import bco, bco_pairs, running_mean
from trainers.losses.cpo import cpo
from trainers.losses.discopop import discopop
from trainers.losses.divergence import forward_kl, jensen_shannon
from trainers.losses.exo import exo
from trainers.losses.hinge import hinge
from trainers.losses.ipo import ipo_length_normalised, ipo_sum
from trainers.losses.kto import kto, kto_pairs, reference_point
from trainers.losses.nca import nca
from trainers.losses.nll import nll
from trainers.losses.odds import odds
from trainers.losses.rewards import rewards
from trainers.losses.sigmoid import robust, sigmoid, sigmoid_length_normalised
from trainers.losses.simpo import simpo
from trainers.losses.sppo import sppo

EXTRACT = json.loads((Path(__file__).parent / "golden.json").read_text())
INFINITE = float("inf")

FAULTS = {
    ("exo_pair", "trl_1.16.0"): 1e-7,  # ε is a float32 number there
    ("kto", "halos"): 5e-8,  # the KL is
    ("bco_pair_delta", "trl_0.24.0"): 5e-6,  # δ is, some 20 nats in the long batch
    ("bco_unpaired", "trl_0.24.0"): 5e-6,
}
"""Relative tolerance for what a source holds in float32; 1e-10 for all else."""

NAN = ("policy_equals_reference", "ipo_length_normalised", "halos")
"""There it divides by the number of tokens whose reward is not zero."""

Pairs = tuple[Tensor, Tensor, Tensor, Tensor]


class Inputs:
    """A golden batch in float64; log π of chosen and rejected are leaves."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        values = {name: each for name, each in batch["inputs"].items() if not name.endswith("token_logps")}
        tensors = {name: torch.tensor(each, dtype=torch.float64) for name, each in values.items()}
        self.chosen = tensors["policy_chosen_logps"].requires_grad_()
        self.rejected = tensors["policy_rejected_logps"].requires_grad_()
        self.references = tensors["ref_chosen_logps"], tensors["ref_rejected_logps"]
        self.lengths = tensors["chosen_lengths"], tensors["rejected_lengths"]
        self.mismatched = tensors["policy_kl_logps"], tensors["ref_kl_logps"]

    @property
    def policies(self) -> tuple[Tensor, Tensor]:
        return self.chosen, self.rejected

    @property
    def pairs(self) -> Pairs:
        return (*self.policies, *self.references)

    @property
    def no_references(self) -> tuple[Tensor, Tensor]:
        return self.references[0] * 0, self.references[1] * 0

    @property
    def completions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Chosen, then rejected ones: log π, log π_ref and whether they are desirable."""
        ones = torch.ones_like(self.chosen, dtype=torch.bool)
        return torch.cat(self.policies), torch.cat(self.references), torch.cat([ones, ~ones])


def delta(inputs: Inputs, beta: float) -> float:
    """BCO's δ of a first batch, which has the batch's own rewards in it."""
    return running_mean(0.0, 0.0, torch.cat(rewards(*inputs.pairs, beta)).detach())[0]


def author_exo(inputs: Inputs, beta: float) -> Tensor:
    """EXO with the authors' target [1, e⁻¹⁰], which lacks the first label's log(1 − ε)."""
    chosen = torch.sigmoid(rewards(*inputs.pairs, beta)[0] - rewards(*inputs.pairs, beta)[1])
    return exo(*inputs.pairs, beta, math.exp(-10.0)) + chosen * math.log1p(-math.exp(-10.0))


def kto_completions(inputs: Inputs, p: Mapping[str, Any]) -> Tensor:
    point = reference_point(*inputs.mismatched)
    return kto(*inputs.completions, point, p["beta"], p["desirable_weight"], p["undesirable_weight"])


def soft_sppo(inputs: Inputs, p: Mapping[str, Any]) -> Tensor:
    wins = (torch.tensor(p[name], dtype=torch.float64) for name in ("chosen_probs_win", "chosen_probs_lose"))
    return sppo(*inputs.pairs, p["beta"], *wins) / 2  # the authors' code halves it


LOSSES: dict[str, Callable[[Inputs, Mapping[str, Any]], Tensor]] = {
    "sigmoid": lambda i, p: sigmoid(*i.pairs, p["beta"]),
    "cdpo": lambda i, p: sigmoid(*i.pairs, p["beta"], p.get("label_smoothing", p.get("epsilon"))),
    "sigmoid_reference_free": lambda i, p: sigmoid(*i.policies, *i.no_references, p["beta"]),
    "sigmoid_length_normalised": lambda i, p: sigmoid_length_normalised(*i.pairs, *i.lengths, p["beta"]),
    "robust": lambda i, p: robust(*i.pairs, p["beta"], p["label_smoothing"]),
    "ipo_sum": lambda i, p: ipo_sum(*i.pairs, p["beta"]),
    "ipo_length_normalised": lambda i, p: ipo_length_normalised(*i.pairs, *i.lengths, p.get("beta", p.get("tau"))),
    "hinge": lambda i, p: hinge(*i.pairs, p["beta"]),
    "simpo": lambda i, p: simpo(*i.policies, *i.lengths, p["beta"], p["gamma_beta_ratio"] * p["beta"]),
    "simpo_smoothed": lambda i, p: simpo(*i.policies, *i.lengths, p["beta"], p["gamma"], p["label_smoothing"]),
    "orpo_or_term": lambda i, p: p["lambda_"] * odds(*i.policies, *i.lengths),
    "cpo_preference_term": lambda i, p: cpo(*i.policies, p["beta"], p["label_smoothing"]),
    "kto": kto_completions,
    "nca_pair": lambda i, p: nca(*i.pairs, p["beta"]),
    "exo_pair": lambda i, p: exo(*i.pairs, p["beta"], p["label_smoothing"]),
    "exo_pair_author_epsilon": lambda i, p: author_exo(i, p["beta_model"]),
    "sppo_hard": lambda i, p: sppo(*i.pairs, p["beta"]),
    "sppo_soft": soft_sppo,
    "aot_paired_data": lambda i, p: aot_paired(*i.pairs, p["beta"], p["label_smoothing"]),
    "aot_unpaired_data": lambda i, p: aot_unpaired(*i.pairs, p["beta"], p["label_smoothing"]),
    "apo_zero": lambda i, p: apo_zero(*i.pairs, p["beta"]),
    "apo_down": lambda i, p: apo_down(*i.pairs, p["beta"]),
    "bco_pair_no_delta": lambda i, p: bco_pairs(*i.pairs, p["beta"]),
    "bco_pair_delta": lambda i, p: bco_pairs(*i.pairs, p["beta"], delta(i, p["beta"])),
    "bco_unpaired": lambda i, p: bco(*i.completions, p["beta"], delta(i, p["beta"])),
    "discopop": lambda i, p: discopop(*i.pairs, p["beta"], p.get("discopop_tau", 0.05)),
    "sigmoid_forward_kl": lambda i, p: forward_kl(*i.pairs, p["beta"], linear_from=INFINITE),
    "sigmoid_js_divergence": lambda i, p: jensen_shannon(*i.pairs, p["beta"]),
}
"""Ours, for the name and the parameters of a golden case."""


def ours(batch: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Tensor]:
    inputs = Inputs(batch)
    losses = LOSSES[case["loss"]](inputs, case["params"])
    by_chosen, by_rejected = torch.autograd.grad(losses.sum(), inputs.policies)
    chosen, rejected = our_rewards(inputs, case)
    figures = {
        "losses": losses.detach(), "mean": losses.detach().mean(), "chosen_rewards": chosen,
        "rejected_rewards": rejected, "grad_sum_wrt_chosen_logp": by_chosen, "grad_sum_wrt_rejected_logp": by_rejected,
    }  # fmt: skip
    if case["loss"] == "kto":
        figures["kl"] = reference_point(*inputs.mismatched)
    if case["loss"] == "bco_unpaired":
        figures["delta"] = torch.tensor(delta(inputs, case["params"]["beta"]))
    return figures


def our_rewards(inputs: Inputs, case: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """What the case's source calls rewards: some are of the mean a token, some have no reference, some no β."""
    name, params, halos = case["loss"], case["params"], case["source"] == "halos"
    beta = params.get("beta", params.get("lambda_", params.get("tau", params.get("beta_model"))))
    policies, references = inputs.policies, inputs.references
    if name in ("simpo", "simpo_smoothed", "orpo_or_term", "cpo_preference_term"):
        references = inputs.no_references
    if name in ("simpo", "simpo_smoothed", "orpo_or_term") or (name, halos) == ("ipo_length_normalised", True):
        chosen, rejected = inputs.lengths
        policies = policies[0] / chosen, policies[1] / rejected
        references = references[0] / chosen, references[1] / rejected
    if halos and name in ("simpo", "kto", "ipo_length_normalised"):
        beta = 1.0
    chosen, rejected = rewards(*policies, *references, beta)
    return chosen.detach(), rejected.detach()


def read(figure: Any) -> Any:
    """Numbers; NaN is a string in the file."""
    return [float(each) for each in figure] if isinstance(figure, list) else float(figure)


def check(batch: Mapping[str, Any], case: Mapping[str, Any]) -> int:
    """Compare every figure the case has with ours; returns how many."""
    rtol = FAULTS.get((case["loss"], case["source"]), 1e-10)
    computed = ours(batch, case)
    assert all(bool(figure.isfinite().all()) for figure in computed.values())
    compared = computed.keys() & case.keys()
    for name in compared:
        theirs = torch.tensor(read(case[name]), dtype=torch.float64)
        if (batch["name"], case["loss"], case["source"]) == NAN:
            assert theirs.isnan().all()
            continue
        try:
            torch.testing.assert_close(computed[name].double(), theirs, rtol=rtol, atol=1e-13)
        except AssertionError as error:
            raise AssertionError(f"{batch['name']} {case['loss']} {case['source']} {name}: {error}") from None
    return len(compared)


@pytest.mark.parametrize("batch", EXTRACT["batches"], ids=lambda batch: batch["name"])
def test_every_loss_conforms_to_the_extract_of_the_golden_values(batch: Mapping[str, Any]) -> None:
    assert {case["loss"] for case in batch["cases"]} == LOSSES.keys()
    assert sum(check(batch, case) for case in batch["cases"]) > 4 * len(batch["cases"])


def test_every_loss_conforms_to_every_source_in_every_golden_case(shared_data: Path) -> None:
    batches = json.loads((shared_data / "golden" / "losses.json").read_text())["batches"]
    figures = [check(batch, case) for batch in batches for case in batch["cases"]]
    assert len(figures) == 5 * 74  # a loss without a function here is a KeyError
    assert min(figures) >= 1
    assert sum(figures) > 1900


def test_the_likelihood_of_chosen_tokens_is_the_mean_other_trainers_report(shared_data: Path) -> None:
    for batch in json.loads((shared_data / "golden" / "losses.json").read_text())["batches"]:
        inputs = Inputs(batch)
        lengths = inputs.lengths[0]
        mean = float((nll(inputs.chosen.detach(), lengths) * lengths).sum() / lengths.sum())  # theirs is over tokens
        reported = [case["params"].get("chosen_nll_token_mean") for case in batch["cases"]]
        assert [mean for _ in filter(None, reported)] == pytest.approx([each for each in reported if each], rel=1e-12)
        assert any(reported)


@pytest.mark.parametrize("batch", EXTRACT["batches"], ids=lambda batch: batch["name"])
def test_unpaired_losses_of_pairs_are_those_of_their_completions(batch: Mapping[str, Any]) -> None:
    inputs = Inputs(batch)
    point = reference_point(*inputs.mismatched)
    both = kto(*inputs.completions, point, 0.1, 1.3, 0.7).chunk(2)
    torch.testing.assert_close(kto_pairs(*inputs.pairs, point, 0.1, 1.3, 0.7), (both[0] + both[1]) / 2)
    both = bco(*inputs.completions, 0.1, 0.02).chunk(2)
    torch.testing.assert_close(bco_pairs(*inputs.pairs, 0.1, 0.02), both[0] + both[1])
    quantiles = aot_quantiles(*rewards(*inputs.pairs, 0.1), 0.1)
    torch.testing.assert_close(quantiles, aot_unpaired(*inputs.pairs, 0.1, 0.1).mean(), rtol=1e-12, atol=0.0)
