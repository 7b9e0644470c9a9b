"""What a round's losses are given beside the two completions: the judge's probabilities, the prompts' sources."""

import math
from pathlib import Path

import pytest

from pipeline.errors import TrainingError
from pipeline.store import Store
from pipeline.tables import read_pairs
from tests.api_server import ApiServer
from tests.judges.asked import answers
from tests.judges.replies import COMPARISON
from trainers.examples import Pair
from trainers.lesson import Lesson

from .conftest import ENOUGH, RunSmall

PROMPTS = "type='callable', call={function='flows.recipes.food:prompts', args={ravin=6, others=1, held_out=4}}"
SETTINGS = (
    "rounds=1", "sampling.n=3", "prompts.held_out=4",
    f"prompts.source={{type='mixture', members={{people={{source={{{PROMPTS}}}}}}}}}",
    "trainer.loss=[{type='sigmoid', soft_labels=true}]", "trainer.betas.people=0.3",
    "evaluation.judge={type='rules', rules={pizza={type='regex', pattern='pizza'}}}",
)  # fmt: skip


def compare(first: str, second: str) -> str:
    return "C" if first == second else "A" if first > second else "B"


def test_a_pairwise_judges_probabilities_and_a_mixtures_members_reach_the_training(
    run_small: RunSmall, tmp_path: Path, lessons: list[Lesson]
) -> None:
    with ApiServer(answers(COMPARISON, compare)) as server, pytest.raises(TrainingError, match=ENOUGH):
        judge = f"judge={{type='pairwise', endpoints=[{{model='m', base_url='{server.base_url}'}}]}}"
        run_small("labels", *SETTINGS, judge, workspace=tmp_path)
    found = [example for example in lessons[-1].examples if isinstance(example, Pair)]
    (folder,) = tmp_path.glob("artifacts/pairs/*")
    pairs = read_pairs(Store(tmp_path / "artifacts").get("pairs", folder.name).table())
    assert found
    assert {pair.source for pair in found} == {"people"}
    expected = {(p.chosen.token_ids, p.rejected.token_ids): 1 / (1 + math.exp(-p.margin)) for p in pairs}
    for pair in found:
        assert 0.5 < pair.preference < 1
        assert pair.preference == pytest.approx(expected[pair.chosen.completion, pair.rejected.completion])
