from dataclasses import replace

import pytest

from trainers.examples import Pair, Row, Single, digest_examples, digest_rows

CHOSEN, REJECTED = Row((1, 2), (3, 4)), Row((1, 2), (5,))
PAIR = Pair(CHOSEN, REJECTED, margin=0.5, preference=0.9, source="a", prompt_id="p")
SINGLE = Single(CHOSEN, desirable=True, source="a", prompt_id="p")


@pytest.mark.parametrize(
    "other",
    [
        replace(PAIR, rejected=Row((1, 2), (6,))),
        replace(PAIR, chosen=REJECTED, rejected=CHOSEN),
        replace(PAIR, margin=0.4),
        replace(PAIR, preference=1.0),
        replace(PAIR, prompt_id="q"),
        SINGLE,
        replace(SINGLE, desirable=False),
    ],
)
def test_all_that_a_training_sees_is_in_the_digest(other: Pair | Single) -> None:
    assert digest_examples([other]) != digest_examples([PAIR])
    assert digest_examples([PAIR, other]) != digest_examples([other, PAIR])


def test_a_source_counts_only_where_it_has_a_beta_of_its_own() -> None:
    renamed = replace(PAIR, source="b")
    assert digest_examples([renamed]) == digest_examples([PAIR])
    assert digest_examples([renamed], {"a": 0.1}) != digest_examples([PAIR], {"a": 0.1})


def test_where_a_prompt_ends_is_in_the_digest_of_rows() -> None:
    assert digest_rows([Row((1, 2), (3, 4))]) != digest_rows([Row((1, 2, 3), (4,))])
    assert digest_rows([CHOSEN, REJECTED]) != digest_rows([REJECTED, CHOSEN])
