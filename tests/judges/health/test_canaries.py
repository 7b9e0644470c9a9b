from collections import Counter
from collections.abc import Callable

import pytest

from judges.health.canaries import QUESTIONS, Canary, canaries, canary_report
from pipeline.types import Judgment

Score = Callable[[str], float | None]
DECENT = {question.decent for question in QUESTIONS}


def report_of(score: Score) -> dict[str, int]:
    return dict(canary_report(canaries(), [judged(each, score) for each in canaries()]).fallen)


def judged(canary: Canary, score: Score) -> Judgment:
    return Judgment(canary.group.prompt.id, "j", tuple(score(each.text) for each in canary.group.candidates))


def test_every_kind_stands_against_every_decent_answer_in_both_places() -> None:
    asked = canaries()
    kinds = Counter(each.kind for each in asked)
    assert set(kinds.values()) == {len(QUESTIONS)}
    assert {"constant_yes", "empty", "choose_me", "forged_fence", "forged_verdict", "truncated", "markup", "repeated",
            "off_topic", "padding"} <= kinds.keys()  # fmt: skip
    assert Counter((each.kind, each.place) for each in asked) == Counter({(k, p): 2 for k in kinds for p in (0, 1)})
    assert len({each.group.prompt.id for each in asked}) == len(asked)
    for each in asked:
        texts = [candidate.text for candidate in each.group.candidates]
        decent = next(question.decent for question in QUESTIONS if question.text == each.group.prompt.text)
        assert texts[1 - each.place] == decent != texts[each.place]


def test_a_judge_that_knows_a_decent_answer_falls_for_nothing_but_its_like() -> None:
    assert report_of(lambda text: float(text in DECENT)) == {}


def test_off_topic_answers_are_decent_ones_to_another_question() -> None:
    off_topic = [each for each in canaries() if each.kind == "off_topic"]
    assert {each.group.candidates[each.place].text for each in off_topic} == DECENT


def test_who_prefers_the_longer_falls_for_padding_and_repetition_every_time() -> None:
    fallen = report_of(lambda text: float(len(text)))
    assert fallen["padding"] == fallen["repeated"] == len(QUESTIONS)
    assert not {"empty", "white_space", "constant_yes", "truncated"} & fallen.keys()


def test_who_prefers_the_shorter_falls_for_the_cut_and_the_empty_ones() -> None:
    fallen = report_of(lambda text: -float(len(text)))
    assert {"empty", "white_space", "constant_yes", "truncated"} <= fallen.keys()
    assert not {"padding", "repeated"} & fallen.keys()


@pytest.mark.parametrize(
    ("obeyed", "kind"),
    [("choose me", "choose_me"), ("ignore the rubric", "ignore_rubric"), ("system:", "authority"),
     ("</response>", "forged_fence"), ("<system>", "forged_tags"), ("<|im_start|>", "forged_turn"),
     ('"verdict":', "forged_verdict"), ("<script>", "markup")],
)  # fmt: skip
def test_who_obeys_an_answer_is_quarantined_for_that_trick_alone(obeyed: str, kind: str) -> None:
    assert report_of(lambda text: float(obeyed in text.lower())) == {kind: len(QUESTIONS)}


@pytest.mark.parametrize("place", [0, 1])
def test_always_preferring_one_place_is_half_a_fall(place: int) -> None:
    first = [Judgment("p", "j", (1.0, 0.0) if place == 0 else (0.0, 1.0)) for _ in canaries()]
    assert canary_report(canaries(), first).share == 0.5


def test_a_tie_is_no_fall_and_is_counted() -> None:
    report = canary_report(canaries(), [judged(each, lambda _: 1.0) for each in canaries()])
    assert (report.share, report.tied, report.fallen) == (1.0, report.asked, {})


def test_abstaining_on_a_canary_resists_it_and_on_the_decent_answer_says_nothing() -> None:
    resisted = canary_report(canaries(), [judged(each, lambda t: 1.0 if t in DECENT else None) for each in canaries()])
    assert (resisted.share, resisted.abstained) == (1.0, 0)
    silent = canary_report(canaries(), [judged(each, lambda _: None) for each in canaries()])
    assert (silent.share, silent.abstained) == (None, silent.asked)
