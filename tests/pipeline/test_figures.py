"""Names and meanings for people."""

import pytest

from pipeline.figures import DROP_REASONS, TRAINING, probe, shortened, stage_names, training_figure
from pipeline.pairing import REASONS

FOODS = "pizza|sushi|dosa|tacos|ramen|curry|salad|pasta|soup|bread"


def test_every_reason_to_drop_a_group_is_explained() -> None:
    assert tuple(DROP_REASONS) == REASONS


@pytest.mark.parametrize(
    ("pattern", "limit", "short"),
    [
        ("pizza", 5, "pizza"),
        (FOODS, 20, "pizza|sushi|dosa|…"),
        (FOODS, len(FOODS), FOODS),
        ("[0-9]{4}-[0-9]{2}", 10, "[0-9]{4}-…"),
    ],
)
def test_a_long_pattern_is_cut_between_its_alternatives(pattern: str, limit: int, short: str) -> None:
    assert shortened(pattern, limit) == short and len(short) <= limit


def test_a_probe_is_explained_by_the_runs_own_settings() -> None:
    probes = {"words": {"type": "share", "prompts": ["ada likes", "bo likes"], "samples": 50, "pattern": FOODS}}
    figure = probe("words", {"evaluation": {"probes": probes}})
    assert figure.unit == "share" and "50 samples a prompt" in figure.meaning and "2 prompts" in figure.meaning
    assert probe("other_kl", {}).unit == "nats" and probe("other", {}).unit == "share"


def test_stages_of_a_round_come_before_those_only_the_start_has() -> None:
    initial, round = {"policy": 3.0, "evaluate": 1.0}, {"sample": 1.0, "train": 2.0, "evaluate": 1.0}
    assert stage_names([initial, round]) == ["sample", "train", "evaluate", "policy"]


def test_names_of_metrics_are_made_up_of_those_that_have_a_label() -> None:
    margins = TRAINING["rewards/margins"]
    assert training_figure("rewards/margins") == margins
    held_out = training_figure("eval/rewards/margins")
    assert (held_out.label, held_out.unit) == ("Held out: reward margin", margins.unit)
    assert training_figure("loss/sigmoid").label == "Loss, sigmoid"
    labelled = training_figure("eval/logps/undesirable")
    assert (labelled.label, labelled.unit) == ("Held out: log-probability, undesirable", "nats")
    assert training_figure("new_figure").label == "new_figure"
