"""Pairs have a name for ever."""

from dataclasses import replace

from pipeline.config import PairingConfig
from pipeline.pairing import Origin
from pipeline.types import Group, Judgment

from .rounds import Found, group, judged, pair_round, paired

HERE = Origin(0, "c", "j")
ONE, SCORES = group("p", "ab"), [(1.0, 0.0)]


def pairs(who: Group = ONE, scores: list[tuple[float, float]] = SCORES, origin: Origin = HERE) -> Found:
    return pair_round([who], judged([who], scores), PairingConfig(), origin=origin)


def pair_id(who: Group = ONE, scores: list[tuple[float, float]] = SCORES, origin: Origin = HERE) -> str:
    return pairs(who, scores, origin).pairs[0].id


def test_pair_id_names_prompt_candidates_and_upstream_keys_and_nothing_else() -> None:
    first, second = ONE.candidates
    others = [
        pair_id(origin=Origin(0, "d", "j")),
        pair_id(origin=Origin(0, "c", "k")),
        pair_id(scores=[(0.0, 1.0)]),
        pair_id(who=replace(ONE, prompt=replace(ONE.prompt, id="q"))),
        pair_id(who=replace(ONE, candidates=(first, replace(second, seed=7)))),
        pair_id(who=replace(ONE, candidates=(first, replace(second, model="another")))),
    ]
    assert len({pair_id(), *others}) == 7
    assert pair_id(origin=Origin(1, "c", "j"), scores=[(9.0, 3.0)]) == pair_id()


def test_candidates_that_share_a_seed_still_give_pairs_with_ids_of_their_own() -> None:
    one = group("p", "abcd")
    alike = replace(one, candidates=tuple(replace(each, seed=0) for each in one.candidates))
    found = paired([alike], [[3, 2, 1, 0]], pairs_per_prompt=9).pairs
    assert len({pair.id for pair in found}) == len(found) == 6
    turned = replace(alike, candidates=alike.candidates[::-1])
    assert {pair.id for pair in paired([turned], [[0, 1, 2, 3]], pairs_per_prompt=9).pairs} == {p.id for p in found}


def test_who_wrote_a_candidate_and_where_its_prompt_is_from_stay_with_the_pair() -> None:
    first, second = ONE.candidates
    prompt = replace(ONE.prompt, source="books", answer="a", messages=({"role": "user", "content": "p"},))
    who = Group(prompt, (first, replace(second, model="other", cumulative_logprob=-1.5)))
    (pair,) = pairs(who).pairs
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, *who.candidates)


def test_votes_are_not_read() -> None:
    from pipeline.pairing import Shard, Yardstick, pair
    from pipeline.tables import candidates_table, judgments_table, prompts_table

    judgments = judgments_table([Judgment("p", "judge", (1.0, 0.0))]).select(["prompt_id", "scores"])
    shard = Shard(prompts_table([ONE.prompt]), candidates_table([ONE]), judgments)
    assert pair(shard, PairingConfig(), Yardstick(), HERE).kept == 1
