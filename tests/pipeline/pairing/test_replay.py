"""Which pairs of earlier rounds are trained on again."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.pairing.replay import draw, replayed


def test_the_share_is_of_all_that_is_trained_on() -> None:
    assert [replayed(100, share) for share in (0.0, 0.2, 0.5, 0.9)] == [0, 25, 100, 900]


@given(st.lists(st.text()), st.integers(0, 9), st.randoms(use_true_random=False))
def test_a_draw_depends_on_names_and_seed_alone(ids: list[str], count: int, random: object) -> None:
    drawn = draw(ids, count, "seed")
    assert drawn <= set(ids) and len(drawn) == min(count, len(set(ids)))
    random.shuffle(ids)  # type: ignore[attr-defined]
    assert draw(ids, count, "seed") == drawn


def test_another_round_draws_others() -> None:
    ids = [str(number) for number in range(200)]
    assert len({frozenset(draw(ids, 20, f"0 {round}")) for round in range(5)}) == 5
