"""Which pairs of earlier rounds are trained on again."""

import hashlib
import heapq

from hypothesis import given
from hypothesis import strategies as st

from pipeline.pairing.replay import Hand, drawable, gathered, lots, replayed

IDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=30)


def drawn(ids: list[str], count: int, seed: str, fresh: list[str] | None = None) -> list[str]:
    """Those drawn, in the order in which they are met."""
    hand = Hand(drawable(gathered([lots(ids, seed)]), gathered([lots(fresh or [], seed)]))[:count])
    return [one for one, taken in zip(ids, hand.take(lots(ids, seed)), strict=True) if taken]


def test_the_share_is_of_all_that_is_trained_on() -> None:
    assert [replayed(100, share) for share in (0.0, 0.2, 0.5, 0.9)] == [0, 25, 100, 900]


@given(IDS, IDS, st.integers(0, 9), st.randoms(use_true_random=False))
def test_a_draw_depends_on_names_and_seed_alone(ids: list[str], fresh: list[str], count: int, random: object) -> None:
    made = drawn(ids, count, "seed", fresh)
    left = set(ids) - set(fresh)
    assert set(made) <= left and len(made) == len(set(made)) == min(count, len(left))
    random.shuffle(ids)  # type: ignore[attr-defined]
    assert set(drawn(ids, count, "seed", fresh)) == set(made)


@given(IDS, IDS, st.integers(0, 9))
def test_those_with_the_lowest_hashes_are_drawn(ids: list[str], fresh: list[str], count: int) -> None:
    def by_hash(one: str) -> bytes:
        return hashlib.sha256(f"seed\0{one}".encode()).digest()

    assert set(drawn(ids, count, "seed", fresh)) == set(heapq.nsmallest(count, set(ids) - set(fresh), key=by_hash))


@given(st.lists(IDS, max_size=4))
def test_each_is_met_once_however_often_it_is_shown(parts: list[list[str]]) -> None:
    every = [lots(part, "seed") for part in parts]
    hand = Hand(gathered(every))
    met = [
        one
        for part, shown in zip(parts, every, strict=True)
        for one, hit in zip(part, hand.take(shown), strict=True)
        if hit
    ]
    assert met == list(dict.fromkeys(one for part in parts for one in part))


def test_another_round_draws_others() -> None:
    ids = [str(number) for number in range(200)]
    assert len({frozenset(drawn(ids, 20, f"0 {round}")) for round in range(5)}) == 5
