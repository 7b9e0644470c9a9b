"""A judge that compares, as the held-out one: it sees both policies' answers to a prompt as one group."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.candidates import all_groups
from pipeline.metrics import win_rate
from tests.api_server import ApiServer
from tests.judges.asked import answers
from tests.judges.replies import COMPARISON

from .conftest import RunSmall
from .small import store_of

ONE = ("rounds=1", "prompts.source.call.args.ravin=6", "prompts.source.call.args.held_out=4", "prompts.held_out=4")


def initial(text: str) -> int:
    """Further in the alphabet is better."""
    return ord(text.strip()[:1] or "a")


def arbitrate(first: str, second: str) -> str:
    one, other = initial(first), initial(second)
    return "C" if one == other else "A" if one > other else "B"


@pytest.fixture
def arbiter() -> Iterator[ApiServer]:
    with ApiServer(answers(COMPARISON, arbitrate)) as started:
        yield started


def test_a_pairwise_judges_win_rate_is_that_of_comparing_all_answers_of_both(
    run_small: RunSmall, arbiter: ApiServer, tmp_path: Path
) -> None:
    endpoint = f'{{model="arbiter", base_url="{arbiter.base_url}"}}'
    status = run_small(
        "arbiter", *ONE, f'evaluation.judge={{type="pairwise", endpoints=[{endpoint}]}}', "evaluation.n=3",
        workspace=tmp_path,
    )  # fmt: skip
    (entry,) = status["rounds"]
    store = store_of(status)
    drawn = [all_groups(store.get("candidates", each["artifacts"]["answers"])) for each in (entry, status["initial"])]
    new, old = ([[initial(each.text) for each in group.candidates] for group in groups] for groups in drawn)
    assert new != old
    figures = entry["evaluation"]
    assert figures["win_rate"] == figures["win_rate_vs_initial"] == pytest.approx(win_rate(new, old).value)
    assert figures["score_mean"] is None  # within a group alone do its scores mean anything
    first = status["initial"]["evaluation"]
    assert (first["win_rate"], first["score_delta"]) == (0.5, 0.0)
    (together,) = tmp_path.glob("artifacts/together/*")
    for group, before, after in zip(all_groups(store.get("together", together.name)), *reversed(drawn), strict=True):
        assert [each.text for each in group.candidates] == [
            each.text for each in (*after.candidates, *before.candidates)
        ]
        assert [each.index for each in group.candidates] == list(range(6))
