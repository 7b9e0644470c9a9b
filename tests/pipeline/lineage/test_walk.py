"""From a pair to all that made it: through one round and two, one judge and several, paid calls, and gaps."""

import shutil
from pathlib import Path

import pytest

from flows.judging import LEDGER
from pipeline.lineage.verdicts import Opinion, call_keys
from pipeline.lineage.walk import Lineage, lineage
from pipeline.store import Artifact
from pipeline.tables import read_pairs
from pipeline.types import PreferencePair
from tests.api_server import ApiServer
from tests.traced import (
    BASE,
    DECODING,
    FIRST,
    RULES,
    SECOND,
    Place,
    api,
    comparer,
    panel,
    rater,
    shard_boundary,
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def walk(place: Place, pair: PreferencePair) -> Lineage:
    return lineage(place.workspace, pair.id, place.workspace / LEDGER)


def pair_of(pairs: Artifact, number: int = 0) -> PreferencePair:
    return read_pairs(pairs.table())[number]


def opinion_of(found: Lineage) -> Opinion:
    assert found.opinion is not None
    return found.opinion


def test_a_pair_leads_to_its_prompt_its_whole_group_its_settings_and_its_run(place: Place) -> None:
    made = place.round(0, BASE, FIRST)
    place.run("food", made)
    pair = pair_of(made["pairs"], 2)
    found = walk(place, pair)
    assert found.pair == pair
    assert found.gaps == ()
    assert [each.made.key for each in found.pairings] == [made["pairs"].key]
    assert found.pairings[0].made.config["rule"] == "best_worst"
    assert found.prompts is not None
    assert found.prompts.config["source"]["path"] == "questions.jsonl"
    assert [each.index for each in found.candidates] == [0, 1, 2, 3]
    assert {pair.chosen, pair.rejected} < set(found.candidates)
    assert [each.key for each in found.sampling] == [made["candidates"].key]
    assert found.sampling[0].config["decoding"] == DECODING
    assert opinion_of(found).scores == (0.0, 0.0, 0.0, 1.0)
    assert opinion_of(found).made.config == RULES.model_dump(mode="json")
    (use,) = found.uses
    assert (use.run, use.round, use.trained, use.policy, use.decision, use.held_out) == (
        "food", 0, made["train"].key, FIRST, "promote", False,
    )  # fmt: skip
    ((run, commands),) = found.commands
    assert (run, len(commands)) == ("food", 1)


def test_a_pair_of_the_second_shard_has_its_own_group_and_judgment(place: Place) -> None:
    place.policy()
    made = place.round(0, BASE, count=shard_boundary(), n=2)
    pair = pair_of(made["pairs"], -1)
    assert pair.prompt.id == f"p{shard_boundary() - 1}"
    found = walk(place, pair)
    assert found.pair.chosen in found.candidates
    assert len(found.candidates) == 2
    assert opinion_of(found).scores == (0.0, 0.0)
    assert found.gaps == ()


def test_a_policy_is_followed_through_two_trainings_to_the_first_checkpoint(place: Place) -> None:
    rounds = [place.round(0, BASE, FIRST), place.round(1, FIRST, SECOND), place.round(2, SECOND)]
    place.run("food", *rounds)
    found = walk(place, pair_of(rounds[2]["pairs"]))
    newest, middle, first = found.policies["policy"]
    assert [step.digest for step in (newest, middle, first)] == [SECOND, FIRST, BASE]
    assert (newest.start, newest.learnt_from, newest.reference) == (FIRST, {"pairs": rounds[1]["pairs"].key}, FIRST)
    assert middle.learnt_from == {"pairs": rounds[0]["pairs"].key}
    assert (middle.rounds, first.rounds) == ((("food", 0),), (("food", -1),))
    assert middle.made is not None
    assert middle.made.config["beta"] == 0.25
    assert (first.start, first.learnt_from, first.reference) == (None, {}, None)
    assert found.uses[0].trained is None


def test_a_round_that_held_the_pair_out_did_not_learn_from_it(place: Place) -> None:
    made = place.round(0, BASE)
    place.run("food", made | place.train(made["pairs"], BASE, FIRST, held_out=1.0))
    (use,) = walk(place, pair_of(made["pairs"])).uses
    assert use.held_out and use.policy == FIRST


def test_a_training_that_changed_nothing_does_not_lead_round_in_circles(place: Place) -> None:
    place.policy()
    found = walk(place, pair_of(place.round(0, BASE, BASE)["pairs"]))
    assert [step.digest for step in found.policies["policy"]] == [BASE]
    place.round(3, FIRST, SECOND)
    pairs = place.round(4, SECOND, FIRST)["pairs"]
    found = walk(place, pair_of(pairs))
    assert [step.digest for step in found.policies["policy"]] == [SECOND, FIRST]


def test_a_pair_judged_by_a_language_model_leads_to_the_paid_calls_and_their_raw_replies(place: Place) -> None:
    with api(script=["server_error"]) as server:
        candidates = place.candidates(count=2)
        judgments = place.judgments(candidates, rater(server, samples=2, temperature=1.0).model_copy(
            update={"endpoints": (rater(server).endpoints[0].model_copy(update={"tries": 3}),)}), "rater")  # fmt: skip
        pair = pair_of(place.pairs(candidates, judgments), 1)
        opinion = opinion_of(walk(place, pair))
    assert opinion.judge == "rater"
    assert opinion.scores == (2.0, 3.0, 4.0, 5.0)
    keys = call_keys(opinion.votes)
    assert len(set(keys)) == 8
    assert list(opinion.calls.calls) == keys
    for key, vote in zip(keys[::2], opinion.votes, strict=True):
        call = opinion.calls.calls[key]
        assert (call.model, call.account) == ("rater", "demo")
        assert call.cost == pytest.approx((2 * call.tokens_in + 10 * call.tokens_out) / 1e6)
        assert call.raw["choices"][0]["message"]["content"] == call.text
        assert str(int(vote["calls"][0]["value"])) in call.text


def test_a_comparison_leads_to_both_orders_of_its_calls(place: Place) -> None:
    with api(pairwise=True) as server:
        candidates = place.candidates(count=1, n=3)
        pair = pair_of(place.pairs(candidates, place.judgments(candidates, comparer(server), "comparer")))
        opinion = opinion_of(walk(place, pair))
    (vote,) = [each for each in opinion.votes if {each["first"], each["second"]} == {0, 2}]
    assert [(call["order"], call["label"]) for call in vote["calls"]] == [("straight", "B"), ("swapped", "A")]
    assert {call["key"] for call in vote["calls"]} <= opinion.calls.calls.keys()


def test_a_call_that_was_given_up_is_told_with_its_tries(place: Place) -> None:
    with api(script=["bad_request"]) as server:
        candidates = place.candidates(count=1, n=3)
        judgments = place.judgments(candidates, rater(server), "rater")
        opinion = opinion_of(walk(place, pair_of(place.pairs(candidates, judgments))))
    assert sorted(opinion.calls.unanswered.values(), key=str) == [{"bad_request": 1}]
    assert len(opinion.calls.calls) == 2


def test_a_panel_leads_to_each_member_and_its_calls(place: Place) -> None:
    with api() as server:
        candidates = place.candidates(count=3)
        judged = place.panel(candidates, panel(rater=rater(server), short=RULES))
        opinion = opinion_of(walk(place, pair_of(place.pairs(candidates, judged), 1)))
    assert opinion.made.stage == "judgments"
    assert {member.member: member.scores for member in opinion.members} == {
        "rater": (2.0, 3.0, 4.0, 5.0), "short": (0.0, 0.0, 0.0, 1.0),
    }  # fmt: skip
    by_name = {member.member: member for member in opinion.members}
    assert len(by_name["rater"].calls.calls) == 4
    assert by_name["short"].calls.calls == {}
    assert opinion.votes[3]["raw"] == {"rater": 5.0, "short": 1.0}


def test_a_round_that_took_the_pair_up_again_is_told(place: Place) -> None:
    first, second, third = (place.round(number, BASE) for number in range(3))
    drawn, left = pair_of(first["pairs"], 1), pair_of(first["pairs"], 2)
    again = place.replay(second["pairs"], first["pairs"], drawn.id)
    place.run("food", first, second | {"replay": again}, third)
    found = walk(place, drawn)
    assert [(use.round, use.stage, use.key) for use in found.uses] == [
        (0, "pairs", first["pairs"].key), (1, "replay", again.key),
    ]  # fmt: skip
    assert [use.round for use in walk(place, left).uses] == [0]


def test_candidates_of_several_models_lead_to_what_each_of_them_said_and_to_each_policy(place: Place) -> None:
    place.policy()
    own, other = place.candidates(0, BASE), place.candidates(1, FIRST)
    made = place.together({"": own, "local": other})
    found = walk(place, pair_of(place.pairs(made, place.judgments(made))))
    assert [each.key for each in found.sampling] == [made.key, own.key, other.key]
    assert {name: steps[0].digest for name, steps in found.policies.items()} == {"policy": BASE, "local": FIRST}
    (gap,) = found.gaps
    assert FIRST[:12] in gap


def test_a_proposers_candidate_is_told_by_its_name(place: Place) -> None:
    made = place.round(0, BASE, proposers=["strong"])
    found = walk(place, pair_of(made["pairs"]))
    assert found.pair.chosen.model == "strong"
    assert [each.model for each in found.candidates] == ["", "", "", "", "strong"]
    assert found.sampling[0].config["models"] == ["strong"]


def test_a_served_models_candidate_leads_to_the_call_it_was_bought_with(place: Place) -> None:
    place.policy()
    with ApiServer(lambda body: f"9 {body['seed']}", script=[None, "empty"]) as server:
        made = place.together({"": place.candidates(count=2, n=2), "strong": place.proposals("strong", server, 2)})
    found = walk(place, pair_of(place.pairs(made, place.judgments(made)), 1))
    bought = {each.index: each for each in found.candidates if each.model == "strong"}
    assert bought
    assert found.answers.keys() == bought.keys()
    for index, call in found.answers.items():
        assert (call.text, call.account, call.model) == (bought[index].text, "demo", "strong")
        assert call.cost > 0
    assert found.gaps == ()


def test_preference_data_without_a_policy_has_no_chain_and_no_gap(place: Place) -> None:
    candidates = place.candidates(policy=None, proposers=["strong", "weak"])
    judgments = place.judgments(candidates)
    made = {"candidates": candidates, "judgments": judgments, "pairs": place.pairs(candidates, judgments)}
    place.prompts()
    found = walk(place, pair_of(made["pairs"]))
    assert found.policies == {}
    assert (found.pair.chosen.token_ids, found.pair.chosen.model) == ((), "strong")
    assert found.gaps == ()


def test_pairs_made_again_of_the_same_candidates_are_told_side_by_side(place: Place) -> None:
    made = place.round(0, BASE)
    again = place.pairs(made["candidates"], made["judgments"], take_off=0.5)
    place.run("food", made)
    found = walk(place, pair_of(made["pairs"]))
    assert [(each.made.key, each.score_chosen) for each in found.pairings] == [
        (made["pairs"].key, 1.0), (again.key, 0.5),
    ]  # fmt: skip
    assert [use.key for use in found.uses] == [made["pairs"].key]


def test_every_run_that_had_the_pair_is_told(place: Place) -> None:
    made = place.round(0, BASE, FIRST)
    place.run("one", made)
    place.run("two", made, place.round(1, FIRST))
    found = walk(place, pair_of(made["pairs"]))
    assert sorted(use.run for use in found.uses) == ["one", "two"]
    assert dict(found.commands).keys() == {"one", "two"}
    assert found.policies["policy"][0].rounds == (("two", -1), ("one", -1))


@pytest.mark.parametrize("stage", ["candidates", "judgments", "policy", "prompts"])
def test_what_was_deleted_is_said_and_the_rest_is_told(place: Place, stage: str) -> None:
    made = place.round(0, BASE, FIRST)
    place.run("food", made)
    pair = pair_of(made["pairs"])
    shutil.rmtree(place.workspace / "artifacts" / stage)
    found = walk(place, pair)
    assert found.pair == pair
    assert found.uses
    (gap,) = found.gaps
    assert stage in gap
    assert bool(found.candidates) == (stage != "candidates")
    assert (found.opinion is None) == (stage == "judgments")
    assert (found.prompts is None) == (stage == "prompts")


def test_a_damaged_shard_or_run_is_said_and_the_rest_is_told(place: Place) -> None:
    made = place.round(0, BASE)
    place.run("food", made)
    pair = pair_of(made["pairs"])
    for artifact in (made["candidates"], made["judgments"]):
        (artifact.path / artifact.manifest["shards"][0]["file"]).write_bytes(b"PAR1 torn")
    (place.workspace / "runs" / "food" / "round-000.json").write_text("{")
    found = walk(place, pair)
    assert (found.pair, found.candidates, found.opinion, found.uses) == (pair, (), None, ())
    assert len(found.gaps) == 3


def test_without_a_ledger_the_votes_are_still_told(place: Place) -> None:
    with api() as server:
        place.policy()
        candidates = place.candidates(count=1)
        pair = pair_of(place.pairs(candidates, place.judgments(candidates, rater(server), "rater")))
    found = lineage(place.workspace, pair.id, place.workspace / "nowhere.sqlite")
    assert len(call_keys(opinion_of(found).votes)) == 4
    assert opinion_of(found).calls.calls == {}
    (gap,) = found.gaps
    assert "nowhere.sqlite" in gap
