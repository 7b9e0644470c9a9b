import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from trainers import losses
from trainers.encoding import Batch
from trainers.logprobs import completion_logprobs

# β, log π and log π_ref of chosen and rejected; loss, rewards, and the loss's derivative by log π(chosen), which is
# minus that by log π(rejected). Computed in float64 by eric-mitchell/direct-preference-optimization,
# trainers.py:preference_loss (commit f8b8c0f); TRL, torchtune, open-instruct, HALOs and NCA agree to 1e-14.
GOLDEN = [
    (0.1, -12.926804868045885, -33.0890260798303, -14.157058076781507, -31.4642681339945,
     0.5605510662882095, 0.1230253208735622, -0.16247579458357964, -0.042910562349503516),
    (0.1, -12.259893133206711, -12.16816139638197, -12.259893133206711, -12.16816139638197,
     0.6931471805599453, 0.0, 0.0, -0.05),
    (0.5, -31.03917846014967, -116.2891043574063, -33.05545084047063, -91.17006689416834,
     1.2812741282699124e-06, 1.008136190160478, -12.55951873161898, -6.406366537192836e-07),
    (0.3, -365.8219475166099, -1414.7567936602884, -308.4458464993504, -1151.8219629062,
     1.6523170734954186e-27, -17.212830305177846, -78.8804492262265, -4.956951220486256e-28),
    (0.3, -1122.6794024432606, -191.01850520562238, -909.1819423702595, -155.51646911569054,
     53.39862719492078, -64.04923802190032, -10.65061082697955, -0.3),
]  # fmt: skip


def tensors(*columns: Any) -> Any:
    return [torch.tensor(column, dtype=torch.float64) for column in columns]


def gradients(chosen: Tensor, rejected: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    chosen, rejected = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    losses.sigmoid(chosen, rejected, *rest).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    return chosen.grad, rejected.grad


def assert_close(ours: Tensor, theirs: Any) -> None:
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("row", GOLDEN)
def test_sigmoid_its_gradient_and_the_rewards_are_those_of_the_authors_code(row: tuple[float, ...]) -> None:
    beta, *logps = row[:5]
    loss, reward_chosen, reward_rejected, slope = row[5:]
    args = tensors(*([value] for value in logps))
    assert_close(losses.sigmoid(*args, beta), [loss])
    ours = losses.rewards(*args, beta)
    torch.testing.assert_close(torch.cat(ours), tensors([reward_chosen, reward_rejected])[0], rtol=1e-12, atol=1e-15)
    by_chosen, by_rejected = gradients(*args, beta)
    assert_close(by_chosen, [slope])
    assert_close(by_rejected, [-slope])


def test_sigmoid_conforms_to_every_source_that_computed_the_golden_values(shared_data: Path) -> None:
    batches = json.loads((shared_data / "golden" / "losses.json").read_text())["batches"]
    names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    checked = 0
    for batch in batches:
        args = tensors(*(batch["inputs"][f"{name}_logps"] for name in names))
        by_chosen, by_rejected = gradients(*args, batch["beta"])
        chosen, rejected = losses.rewards(*args, batch["beta"])
        loss = losses.sigmoid(*args, batch["beta"])
        ours = {
            "losses": loss, "mean": loss.mean(), "chosen_rewards": chosen, "rejected_rewards": rejected,
            "grad_sum_wrt_chosen_logp": by_chosen, "grad_sum_wrt_rejected_logp": by_rejected,
        }  # fmt: skip
        for case in (case for case in batch["cases"] if case["loss"] == "sigmoid"):
            for name in ours.keys() & case.keys():
                assert_close(ours[name], case[name])
                checked += 1
    assert checked > 200  # 5 batches, 9 sources, 4 to 6 figures each


def test_summed_and_mean_log_probabilities_conform_to_the_authors(shared_data: Path) -> None:
    (case,) = json.loads((shared_data / "golden" / "losses.json").read_text())["batch_logps"]
    (logits,) = tensors(case["logits"])
    labels = torch.tensor(case["labels"])
    batch = Batch(labels.clamp(min=0), torch.ones_like(labels), labels != -100)
    sums, lengths = completion_logprobs(lambda **_: CausalLMOutputWithPast(logits=logits), batch)
    torch.testing.assert_close(sums, tensors(case["sum"])[0], rtol=1e-6, atol=0.0)  # logits are taken as float32
    torch.testing.assert_close(-losses.nll(sums, lengths), tensors(case["average"])[0], rtol=1e-6, atol=0.0)


def test_nll_is_the_mean_over_the_chosen_completions_own_tokens() -> None:
    logps = torch.tensor([-6.0, -6.0], dtype=torch.float64, requires_grad=True)
    loss = losses.nll(logps, torch.tensor([2, 12]))
    assert loss.tolist() == [3.0, 0.5]
    loss.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [-1 / 2, -1 / 12]


finite = st.floats(-1e300, 0.0)
betas = st.floats(1e-3, 10.0)


@given(finite, finite, betas)
def test_the_loss_is_ln_2_where_policy_equals_reference(chosen: float, rejected: float, beta: float) -> None:
    args = tensors([chosen], [rejected], [chosen], [rejected])
    assert losses.sigmoid(*args, beta).item() == math.log(2)


@given(finite, finite, finite, finite, betas)
def test_loss_and_gradient_are_finite_for_whatever_log_probabilities(
    chosen: float, rejected: float, reference_chosen: float, reference_rejected: float, beta: float
) -> None:
    args = tensors([chosen], [rejected], [reference_chosen], [reference_rejected])
    loss = losses.sigmoid(*args, beta).item()
    slope = gradients(*args, beta)[0].item()
    assert math.isfinite(loss)
    assert loss >= 0
    assert -beta <= slope <= 0  # it only ever raises the chosen completion
