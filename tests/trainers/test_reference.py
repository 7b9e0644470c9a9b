import pytest

from pipeline.errors import DataError
from pipeline.types import Policy, PreferencePair
from tests.tiny import EOS, make_policy, naive_logprobs
from tests.trainers.examples import make_pair, make_pairs
from trainers.encoding import Row
from trainers.reference import Reference


def naive(policy: Policy, pair: PreferencePair) -> tuple[float, float]:
    prompt = list(pair.prompt.token_ids)
    rows = naive_logprobs(policy, [[*prompt, *pair.chosen.token_ids], [*prompt, *pair.rejected.token_ids]])
    chosen, rejected = (sum(row[len(prompt) - 1 :]) for row in rows)
    return chosen, rejected


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize("budget", [16, 100, 10_000])
def test_pairs_keep_their_order_and_chosen_comes_first(policy: Policy, budget: int) -> None:
    pairs = make_pairs(15)
    expected = [naive(policy, pair) for pair in pairs]
    got = Reference(policy, "float32", budget).pair_logps(pairs)
    assert [chosen for chosen, _ in got] == pytest.approx([chosen for chosen, _ in expected], rel=1e-5)
    assert [rejected for _, rejected in got] == pytest.approx([rejected for _, rejected in expected], rel=1e-5)


def test_single_rows_have_the_values_of_their_pairs(policy: Policy) -> None:
    reference, pairs = Reference(policy, "float32", 10_000), make_pairs(4)
    rows = [Row(pair.prompt.token_ids, pair.rejected.token_ids) for pair in pairs]
    assert reference.logps(rows) == pytest.approx([rejected for _, rejected in reference.pair_logps(pairs)], rel=1e-5)


def test_ids_that_end_in_the_middle_are_refused_and_nothing_is_no_work(policy: Policy) -> None:
    reference = Reference(policy, "float32", 100)
    with pytest.raises(DataError, match="nowhere but at its end"):
        reference.pair_logps([make_pair((7, EOS, 7), (8,))])
    assert reference.pair_logps([]) == []
