"""A reference's log-probabilities, and of which rows they are asked for."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError, TrainingError
from pipeline.types import Policy
from tests.tiny import make_policy, naive_logprobs, perturb
from tests.trainers.naive import make_model
from tests.trainers.trainings import make_examples
from trainers.checkpoints import load_tokenizer, save_policy
from trainers.examples import Example, Pair, Row, Single
from trainers.packing import Pack, group_rows
from trainers.reference import Reference, mismatches, reference_rows
from trainers.statistics import Statistics

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple)  # so few that many are equal
rows = st.builds(Row, tokens, tokens)


@st.composite
def example(draw: st.DrawFn) -> Example:
    row = draw(rows)
    return draw(st.sampled_from([Single(row, True), Pair(row, Row(row.prompt, draw(tokens)))]))


examples = st.lists(example(), min_size=1, max_size=10)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return make_policy(tmp_path_factory.mktemp("policy"))


def naive(policy: Policy, rows: list[Row]) -> list[list[float]]:
    found = naive_logprobs(policy, [[*row.prompt, *row.completion] for row in rows])
    return [logps[len(row.prompt) - 1 :] for row, logps in zip(rows, found, strict=True)]


def test_a_model_that_packing_does_not_know_is_refused_before_any_row_is_scored(policy: Policy, tmp_path: Path) -> None:
    unknown = save_policy(make_model("bloom"), load_tokenizer(policy.path), tmp_path / "bloom")
    with pytest.raises(TrainingError, match="Bloom.*off its own forward pass"):
        Reference(unknown, "float32", 100)


@pytest.mark.parametrize("budget", [16, 100, 10_000])
def test_tokens_and_sums_are_those_of_a_plain_forward_pass_in_the_rows_order(policy: Policy, budget: int) -> None:
    rows = [row for example in make_examples(policy, 15) for row in example.rows]
    rows = [*rows, rows[0]]  # asked for twice
    reference, expected = Reference(policy, "float32", budget), naive(policy, rows)
    seen: list[tuple[int, int]] = []
    got = reference.token_logps(rows, lambda done, total, note: seen.append((done, total)))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert reference.logps(rows) == pytest.approx(list(map(sum, expected)), rel=1e-5)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (len(set(rows)), len(rows))


@pytest.mark.parametrize("failures", [1, 2])
def test_where_memory_runs_out_the_missing_rows_run_with_half_the_budget(
    policy: Policy, failures: int, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row for example in make_examples(policy, 60) for row in example.rows]
    budget = 4 * max(group.tokens for group in group_rows(rows))
    reference = Reference(policy, "float32", budget)
    expected, statistics = Reference(policy, "float32", budget).token_logps(rows), reference.policy.statistics
    tokens: list[int] = []

    def failing(pack: Pack) -> Statistics:
        tokens.append(pack.input_ids.shape[1])
        if len(tokens) <= failures:
            raise MemoryError
        return statistics(pack)

    reference.policy.statistics = failing
    with caplog.at_level(logging.WARNING, "ratchet.trainers"):
        got = reference.token_logps(rows)
    assert len(caplog.messages) == failures
    assert caplog.messages[-1].endswith(f" tokens at once; the token budget is now {reference.token_budget}")
    assert reference.token_budget <= budget // 2**failures
    assert max(tokens[failures:]) <= reference.token_budget < tokens[0]
    for ours, theirs in zip(got, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def test_any_other_failure_is_not_tried_again(policy: Policy) -> None:
    rows = [row for example in make_examples(policy, 3) for row in example.rows]
    reference = Reference(policy, "float32", 200)

    def failing(pack: Pack) -> Statistics:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    reference.policy.statistics = failing
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        reference.token_logps(rows)


def test_nothing_is_no_work(policy: Policy) -> None:
    assert Reference(policy, "float32", 100).logps([]) == []


def test_several_references_live_side_by_side(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One that sampled, one that began: each keeps its weights, whoever is asked first."""
    other = perturb(policy, tmp_path_factory.mktemp("other"), seed=1)
    rows = [row for example in make_examples(policy, 4) for row in example.rows]
    first, second = Reference(policy, "float32", 100), Reference(other, "float32", 100)
    for reference, source in ((second, other), (first, policy), (second, other)):
        assert reference.logps(rows) == pytest.approx([sum(each) for each in naive(source, rows)], rel=1e-5)


# ---------------------------------------------------------------------------------------------- rows
@given(examples, st.randoms())
def test_rows_are_asked_for_once_in_an_order_that_the_data_sets_own_does_not_change(
    examples: list[Example], random: st.DataObject
) -> None:
    wanted = {row for example in examples for row in example.rows}
    several = len({row.prompt for row in wanted}) > 1
    mismatched = mismatches(examples) if several else {}
    rows = reference_rows(examples, mismatched)
    assert len(set(rows)) == len(rows)
    assert set(rows) == wanted | set(mismatched.values())
    assert set(reference_rows(examples, {})) == wanted
    shuffled = list(examples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert reference_rows(shuffled, mismatches(shuffled) if several else {}) == rows


@given(examples, st.just([]) | examples)
def test_every_row_has_a_mismatched_one_of_its_own_prompt_and_anothers_completion_that_is_trained_on(
    examples: list[Example], held_out: list[Example]
) -> None:
    rows, apart = ({row for example in each for row in example.rows} for each in (examples, held_out))
    if len({row.prompt for row in rows}) == 1:  # nobody to borrow from
        with pytest.raises(DataError, match="all examples have one prompt"):
            mismatches(examples, held_out)
        return
    mismatched = mismatches(examples, held_out)
    assert mismatched.keys() == rows | apart
    assert mismatches(examples, held_out) == mismatched
    for row, other in mismatched.items():
        assert other.prompt == row.prompt
        donors = {donor.prompt for donor in rows if donor.completion == other.completion}
        assert donors - {row.prompt}


def test_mismatched_completions_are_spread_over_the_data() -> None:
    """Each is the next prompt's, so that no completion stands for all."""
    examples = [Single(Row((number,), (10 + number,)), True) for number in range(6)]
    assert [mismatches(examples)[single.row].completion[0] for single in examples] == [11, 12, 13, 14, 15, 10]
    held_out = [Single(Row((number,), (20 + number,)), True) for number in (2, 9)]
    found = mismatches(examples[:2] + examples[3:], held_out)
    assert [found[single.row].completion[0] for single in (examples[1], *held_out)] == [13, 13, 10]
