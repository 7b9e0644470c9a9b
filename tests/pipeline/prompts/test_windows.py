"""Held-out prompts are apart, and rounds take every prompt once before any comes again, each source by its weight."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PromptsConfig
from pipeline.errors import DataError
from pipeline.prompts import load_prompts, peek, round_slice
from pipeline.types import Prompt
from tests.pipeline.prompts.given import FRUIT, Mixture, Source, conserved, texts

MEMBERS = st.dictionaries(
    st.sampled_from("abcde"), st.tuples(st.integers(1, 25), st.sampled_from([0.1, 1.0, 1.5, 3.0])), min_size=1
)


# ---------------------------------------------------------------------------------------------- held out
def test_marked_rows_are_held_out_first_and_never_trained_on(source: Source, tokenizer: Any) -> None:
    rows = [{"prompt": word, "split": "held_out" if word in ("fig", "plum") else "train"} for word in FRUIT]
    some = load_prompts(source(rows, held_out=1), tokenizer)
    assert set(texts(some.held_out)) < {"fig", "plum"}
    assert some.dropped == {"surplus_held_out": 1}
    more = load_prompts(source(rows, held_out=4), tokenizer)
    assert {"fig", "plum"} < set(texts(more.held_out))
    assert not set(texts(more.held_out)) & set(texts(more.rounds))
    assert conserved(some)
    assert conserved(more)


def test_split_hangs_on_ids_and_seed_and_not_on_row_order(source: Source, tokenizer: Any) -> None:
    rows = [{"prompt": a + b} for a in FRUIT for b in FRUIT]
    config = source(rows, held_out=20)
    first = load_prompts(config, tokenizer, seed=1)
    assert set(texts(first.held_out)) != set(texts(load_prompts(config, tokenizer, seed=2).held_out))
    again = load_prompts(source(rows[::-1], held_out=20), tokenizer, seed=1)
    assert set(texts(first.held_out)) == set(texts(again.held_out))


@pytest.mark.parametrize(
    ("held_out", "mark", "message"),
    [
        (6, "train", r"6 and at least one .* of 6 prompts \(dropped: 2 too_long\)"),
        (6, "held_out", r"6 and at least one"),
        (5, "held_out", r"all 6 usable rows are held out"),
    ],
)
def test_too_few_prompts_is_an_error_with_the_numbers(
    source: Source, tokenizer: Any, held_out: int, mark: str, message: str
) -> None:
    rows = [{"prompt": word, "split": mark} for word in FRUIT]
    with pytest.raises(DataError, match=message):
        load_prompts(source(rows, held_out=held_out, max_tokens=len("cherry")), tokenizer)


# ---------------------------------------------------------------------------------------------- rounds
def numbered(count: int, source: str = "") -> list[Prompt]:
    return [Prompt(f"{source}{index}", f"prompt {index}", (index,), source=source) for index in range(count)]


def mixed(members: Mapping[str, tuple[int, float]]) -> tuple[list[Prompt], dict[str, float]]:
    prompts = [prompt for name, (count, _) in members.items() for prompt in numbered(count, name)]
    return prompts, {name: weight for name, (_, weight) in members.items()}


@settings(max_examples=60, deadline=None)
@given(MEMBERS, st.booleans(), st.integers(1, 30), st.integers(0, 9), st.randoms())
def test_windows_use_every_prompt_equally_and_none_twice(
    members: Mapping[str, tuple[int, float]], weighted: bool, per_round: int, seed: int, random: Any
) -> None:
    prompts, weights = mixed(members)
    count = len(prompts)
    uses: Counter[str] = Counter()
    for round in range(8):
        window = round_slice(prompts, round, per_round, seed, weights if weighted else None)
        ids = [prompt.id for prompt in window]
        assert len(set(ids)) == len(ids) == min(per_round, count)
        uses.update(ids)
        assert max(uses.values()) - (min(uses.values()) if len(uses) == count else 0) <= 1
        shuffled = random.sample(prompts, count)
        again = round_slice(shuffled, round, per_round, seed, weights if weighted else None)
        assert set(again) == set(window)
        assert again == window or per_round >= count


@settings(max_examples=100, deadline=None)
@given(MEMBERS, st.integers(1, 30), st.integers(0, 9))
def test_each_window_has_each_member_s_share_until_one_has_run_dry(
    members: Mapping[str, tuple[int, float]], per_round: int, seed: int
) -> None:
    prompts, weights = mixed(members)
    left = {name: count for name, (count, _) in members.items()}
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    for round in range(len(prompts) // per_round if per_round < len(prompts) else 0):
        window = Counter(prompt.source for prompt in round_slice(prompts, round, per_round, seed, weights))
        if any(window[name] >= left[name] for name in left):
            break
        for name, share in shares.items():  # of two windows' ends, each is off by the bound of its apportionment
            assert abs(window[name] - share * per_round) <= 1 + (len(members) - 2) * share + 1e-9
        left = {name: count - window[name] for name, count in left.items()}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 9))
def test_mixture_of_one_is_that_one(count: int, per_round: int, seed: int) -> None:
    prompts = numbered(count, "a")
    for round in range(4):
        assert round_slice(prompts, round, per_round, seed, {"a": 2.0}) == round_slice(prompts, round, per_round, seed)


def sources_of(members: Mapping[str, tuple[int, float]], per_round: int, rounds: int) -> list[dict[str, int]]:
    prompts, weights = mixed(members)
    windows = (round_slice(prompts, round, per_round, 0, weights) for round in range(rounds))
    return [dict(sorted(Counter(prompt.source for prompt in window).items())) for window in windows]


def test_windows_hold_the_weights_and_a_dry_member_s_share_goes_to_the_others() -> None:
    members = {"big": (1000, 1.0), "small": (40, 2.0), "other": (60, 1.0)}
    assert sources_of(members, 20, 6) == [
        {"big": 5, "other": 5, "small": 10},
        {"big": 5, "other": 5, "small": 10},
        {"big": 5, "other": 5, "small": 10},
        {"big": 5, "other": 5, "small": 10},
        {"big": 10, "other": 10},
        {"big": 10, "other": 10},
    ]


def test_small_share_of_a_small_window_is_made_good_in_the_next_ones() -> None:
    assert sum(window.get("b", 0) for window in sources_of({"a": (90, 9.0), "b": (10, 1.0)}, 2, 20)) == 4
    assert Counter(str(window) for window in sources_of(dict.fromkeys("abc", (20, 1.0)), 10, 6)) == {
        "{'a': 4, 'b': 3, 'c': 3}": 2,
        "{'a': 3, 'b': 4, 'c': 3}": 2,
        "{'a': 3, 'b': 3, 'c': 4}": 2,
    }


def test_laps_and_seeds_are_shuffled_differently() -> None:
    prompts = numbered(40)
    first = round_slice(prompts, 0, 20, seed=0)
    assert first != round_slice(prompts, 2, 20, seed=0)
    assert first != round_slice(prompts, 0, 20, seed=1)
    assert sorted(texts(first)) != sorted(texts(prompts[:20]))


def test_zero_a_round_takes_all() -> None:
    prompts = numbered(5)
    assert round_slice(prompts, 3, 0, seed=0) == prompts


def test_a_look_ahead_sees_each_member_s_share(mixture: Mixture) -> None:
    config = mixture({"a": [{"prompt": f"a{i}"} for i in range(50)], "b": [{"prompt": "b"}]}, {"a": 3.0}, per_round=4)
    assert [prompt.id for prompt in peek(config, 4)] == ["a/1", "a/2", "b/1", "a/3"]
    assert len(peek(config, 10**9)) == 51


def test_weights_that_nothing_uses_are_refused() -> None:
    members = {
        name: {"weight": weight, "source": {"type": "hub", "path": "a/b"}} for name, weight in (("a", 1), ("b", 2))
    }
    with pytest.raises(ValueError, match="the members' weights have no effect; allowed: 1 or more, or equal weights"):
        PromptsConfig.model_validate({"source": {"type": "mixture", "members": members}})
