"""The health of a language model as a judge, over a local server that speaks the protocol: two orders, two calls."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from judges import Desk
from judges.health.check import check, verdicts
from judges.labels.reading import LabelledPair
from judges.pairwise import PairwiseJudge as LlmPairwise
from pipeline.config import JudgeEndpoint, PairwiseJudge
from pipeline.protocols import Judge
from tests.api_server import ApiServer, Body

PAIRS = [LabelledPair(str(i), f"question {i}", f"good {i}", f"bad {i}", "a") for i in range(10)]


def better(body: Body) -> str:
    """Knows which answer of ``PAIRS`` is the good one; of anything else says so."""
    shown = str(body["messages"][-1]["content"])
    good, bad = shown.find("good "), shown.find("bad ")
    return "[[neither]]" if min(good, bad) < 0 else "[[A]]" if good < bad else "[[B]]"


@pytest.fixture
def pairwise(tmp_path: Path) -> Iterator[Callable[[ApiServer], Judge]]:
    made: list[LlmPairwise] = []

    def make(server: ApiServer) -> Judge:
        endpoint = JudgeEndpoint(model="m", base_url=server.base_url, structured="none", tries=1)
        config = PairwiseJudge(type="pairwise", endpoints=(endpoint,))
        made.append(LlmPairwise(config, "pairwise", Desk(str(tmp_path / "ledger.sqlite"), "test")))
        return made[-1]

    yield make
    for judge in made:
        judge.close()


def test_a_pairwise_judge_pays_for_each_order_once_and_its_consistency_is_that_of_its_two_orders(
    pairwise: Callable[[ApiServer], Judge],
) -> None:
    with ApiServer(better) as server:
        health = check(pairwise(server), PAIRS, with_canaries=False)
        assert len(server.calls) == 2 * len(PAIRS)
    assert (health.agreement.value, health.swap_consistency.value) == (1.0, 1.0)


def test_a_model_that_always_says_a_ties_everywhere_and_is_never_consistent(
    pairwise: Callable[[ApiServer], Judge],
) -> None:
    with ApiServer(lambda body: "[[A]]") as server:
        health = check(pairwise(server), PAIRS)
    assert (health.tie_rate.value, health.swap_consistency.value) == (1.0, 0.0)
    assert health.canaries is not None
    assert (health.canaries.share, health.canaries.tied) == (1.0, health.canaries.asked)


def test_what_the_model_could_not_say_abstains_by_name(pairwise: Callable[[ApiServer], Judge]) -> None:
    broken = [LabelledPair("x", "question", "fine", "poor", "a"), *PAIRS]
    with ApiServer(better) as server:
        seen = verdicts(pairwise(server), broken)
        assert len(server.calls) == 2 * len(broken)
    assert (seen[0].verdict, seen[0].orders, seen[0].reason) == (None, (None, None), "unreadable")
    assert [each.verdict for each in seen[1:]] == ["a"] * len(PAIRS)
