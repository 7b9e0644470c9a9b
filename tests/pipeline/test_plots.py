"""Charts: parts can be told apart, and no colour is fixed."""

import re

import pytest

from pipeline import plots
from pipeline.charts import training
from pipeline.evidence import Evidence

STAGES = ["sample", "judge", "pair", "reference", "train", "evaluate", "engine", "policy", "prompts"]


@pytest.mark.parametrize("count", [3, 9, 14])
def test_every_part_of_a_bar_looks_different(count: int) -> None:
    names = (STAGES + [f"stage {number}" for number in range(5)])[:count]
    svg = plots.stacked("seconds", [("round 0", dict.fromkeys(names, 1.0))], "seconds")
    legend = svg[svg.index('id="seconds-legend_1"') :].partition("</svg>")[0]
    fills = re.findall(r"<path [^>]*style=\"fill: ([^;\"]+)", legend)[:count]
    patterns = dict(re.findall(r'<pattern id="([^"]+)".*?>(.*?)</pattern>', svg, re.DOTALL))
    drawn = [patterns.get(fill.removeprefix("url(#").removesuffix(")"), fill) for fill in fills]
    assert len(drawn) == count == len(set(drawn))
    assert all(name in legend for name in names)


def test_hatched_parts_follow_the_readers_colours_too() -> None:
    svg = plots.stacked("seconds", [("round 0", dict.fromkeys(STAGES, 1.0))], "seconds")
    assert "<pattern" in svg and "var(--paper)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg) and not re.search(r'(fill|stroke)="var', svg)


def test_labels_of_short_rounds_do_not_run_into_each_other() -> None:
    steps = [{"loss": 1.0}]
    evidence = [Evidence(steps=steps * count) for count in (48, 33, 15, 3)]
    loss = training([{"round": number} for number in range(4)], evidence, {})[0].svg
    assert [label in loss for label in ("round 0", "round 1", "round 2", "round 3")] == [True, True, False, False]
