import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.agreement import agreement, cohen_kappa, fleiss_kappa, label_counts
from judges.annotation.store import Vote, VoteStore
from judges.annotation.tasks import compare
from judges.labels.reading import (
    DROPS,
    FLAGS,
    Label,
    Reading,
    majority,
    read_annotations,
    read_labels,
    read_verdicts,
)
from pipeline.errors import DataError

Write = Callable[..., Path]
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: What is two and two?\n\nAssistant:"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def lines(*rows: Any) -> Path:
        path = tmp_path / "labels.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return lines


def row(prompt: Any = "q", a: Any = "yes", b: Any = "no", label: Any = "a", **others: Any) -> dict[str, Any]:
    return {"prompt": prompt, "a": a, "b": b, "label": label, **others}


GOOD = row("another", "one", "two")


def conserved(reading: Reading) -> bool:
    return reading.rows == len(reading.pairs) + reading.merged + sum(reading.dropped.values())


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ("{not json", "not_a_record"),
        ([1, 2], "not_a_record"),
        ({"prompt": "q", "a": "yes", "label": "a"}, "missing"),
        (row(prompt=None), "missing"),
        (row(b=None), "missing"),
        (row(a=True), "boolean"),
        (row(a=True, b=False), "boolean"),
        (row(b=12), "not_text"),
        (row(a=["yes"]), "not_text"),
        (row(prompt=7), "not_text"),
        (row(prompt=[{"role": "user"}]), "not_text"),
        (row(prompt="  "), "no_prompt"),
        (row(prompt=[]), "no_prompt"),
        (row(label="A is better"), "unknown_label"),
        (row(label=1), "unknown_label"),
        (row(label=None, labels={"anna": "a", "ben": "maybe"}), "unknown_label"),
        (row(a="", b=" \n"), "both_empty"),
        (row(a="same", b="same "), "identical_with_winner"),
        (row(a="same", b="same", label="tie"), "identical"),
        (GOOD, "duplicate"),
        ({**GOOD, "label": "b"}, "contradictory_duplicate"),
        (row("another", "two", "one", "b"), "flipped"),
        (row("another", "two", "one", "a"), "contradictory_flip"),
        (row("another", "two", "one", "tie"), "contradictory_flip"),
    ],
)  # fmt: skip
def test_a_broken_row_is_dropped_under_its_own_name_and_the_good_one_is_kept(
    write: Write, broken: Any, fault: str
) -> None:
    reading = read_labels(write(GOOD, broken))
    assert reading.dropped == {fault: 1}
    assert [pair.prompt for pair in reading.pairs] == ["another"]
    assert reading.examples[fault][-1].startswith("row 2: ")
    assert fault in DROPS


def test_an_empty_response_and_a_missing_label_are_kept_and_noted(write: Write) -> None:
    reading = read_labels(write(row(b=""), row("p", label=None), row("r", label="")))
    assert [pair.label for pair in reading.pairs] == ["a", None, None]
    assert reading.found == {"one_empty": 1, "no_label": 2}
    assert reading.found.keys() <= FLAGS.keys()


def test_repeats_are_kept_where_that_is_asked(write: Write) -> None:
    path = write(GOOD, GOOD, row("another", "two", "one", "b"))
    assert len(read_labels(path).pairs) == 1
    reading = read_labels(path, repeats=True)
    assert len(reading.pairs) == 3
    assert reading.found == {"duplicate": 1, "flipped": 3}


def test_a_row_does_not_repeat_one_that_was_dropped_itself(write: Write) -> None:
    reading = read_labels(write({**GOOD, "label": "?"}, GOOD))
    assert reading.dropped == {"unknown_label": 1}
    assert [pair.label for pair in reading.pairs] == ["a"]


def test_one_row_a_vote_of_several_annotators_becomes_one_pair_whichever_way_round_they_saw_it(write: Write) -> None:
    reading = read_labels(
        write(row(annotator="anna"), row(a="no", b="yes", label="b", annotator="ben"), row(label="b", annotator="cleo"))
    )
    (pair,) = reading.pairs
    assert pair.annotators == {"anna": "a", "ben": "a", "cleo": "b"}
    assert (pair.label, reading.merged, reading.dropped) == ("a", 2, {})


def test_a_second_vote_of_the_same_annotator_is_a_duplicate(write: Write) -> None:
    reading = read_labels(write(row(annotator="anna"), row(annotator="anna"), row(label="b", annotator="anna")))
    assert reading.dropped == {"duplicate": 1, "contradictory_duplicate": 1}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["a"], "a"), (["a", "b"], "tie"), (["a", "b", "b"], "b"), (["a", "b", "tie"], "tie"), (["tie"] * 2, "tie"),
     (["a", "a", "b", "tie"], "tie"), ([], None)],
)  # fmt: skip
def test_the_label_is_what_more_than_half_say_and_else_a_tie(labels: list[Label], expected: Label | None) -> None:
    assert majority(labels) == expected


def test_no_majority_is_noted(write: Write) -> None:
    reading = read_labels(write(row(label=None, labels={"anna": "a", "ben": "b"})))
    assert reading.pairs[0].label == "tie"
    assert reading.found == {"no_majority": 1}


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "prompt": st.sampled_from(["p", "q", "", None, 3, [], [{"role": "user", "content": "hi"}]]),
                "a": st.sampled_from(["x", "y", "", True, None, 1.5, ["x"], {}]),
                "b": st.sampled_from(["x", "y", "", False, None, {"role": "assistant"}]),
                "label": st.sampled_from(["a", "b", "tie", "both_bad", "c", 1, True, None, [], {}]),
                "annotator": st.sampled_from(["anna", "ben"]),
                "id": st.sampled_from([1, "1", "x"]),
            },
        ),
        max_size=12,
    )
)
def test_whatever_the_rows_every_one_is_a_pair_or_a_vote_or_counted(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.json"
    path.write_text(json.dumps([row("sound"), *rows]))
    reading = read_labels(path)
    assert conserved(reading)
    assert reading.rows == len(rows) + 1
    assert len({pair.id for pair in reading.pairs}) == len(reading.pairs)
    assert all(isinstance(text, str) for pair in reading.pairs for text in (pair.prompt, pair.a, pair.b, pair.id))
    assert reading.dropped.keys() <= DROPS.keys()


# ---------------------------------------------------------------------------------------------- formats
def sides(reading: Reading) -> list[tuple[str, str]]:
    """Prompt, and the response that won."""
    return [(pair.prompt, pair.a if pair.label == "a" else pair.b) for pair in reading.pairs]


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


@pytest.mark.parametrize(
    "preferred",
    [
        {"prompt": "What is two and two?", "chosen": "four", "rejected": "five"},
        {"prompt": turns("What is two and two?"), "chosen": turns("", "four")[1:], "rejected": turns("", "five")[1:]},
        {"prompt": "What is two and two?", "chosen": turns("What is two and two?", "four"),
         "rejected": turns("What is two and two?", "five")},
        {"chosen": turns("What is two and two?", "four"), "rejected": turns("What is two and two?", "five")},
        {"chosen": DIALOGUE + " four", "rejected": DIALOGUE + " five"},
        {"prompt": "What is two and two?", "chosen": "five", "rejected": "four", "preference": 0.2},
        {"prompt": "What is two and two?", "chosen": "five", "rejected": "four", "label": False},
        {"instruction": "What is two and two?", "input": "", "response1": "four", "response2": "five",
         "annotator1": 1, "annotator2": "1", "annotator3": 0},
        {"input": "What is two and two?", "output_1": "five", "output_2": "four", "label": 2},
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_format_says_who_won(tmp_path: Path, preferred: dict[str, Any], kind: str) -> None:
    path = tmp_path / f"labels.{kind}"
    if kind == "parquet" and "annotator1" not in preferred:
        pq.write_table(pa.Table.from_pylist([preferred]), path)
    else:
        path = path.with_suffix(".jsonl")
        path.write_text(json.dumps(preferred))
    assert sides(read_labels(path)) == [("What is two and two?", "four")]


def test_a_dialogue_keeps_its_turns_and_a_single_question_is_a_plain_prompt(write: Write) -> None:
    chosen = {"chosen": DIALOGUE + " four", "rejected": DIALOGUE + " five"}
    (pair,) = read_labels(write(chosen)).pairs
    assert list(pair.messages) == turns("Hi", "Hello!", "What is two and two?")
    (plain,) = read_labels(write({**chosen, "chosen": turns("Hi", "a"), "rejected": turns("Hi", "b")})).pairs
    assert plain.messages == ()


@pytest.mark.parametrize(
    ("chosen", "rejected", "fault"),
    [
        (DIALOGUE + " four", DIALOGUE.replace("two?", "three?") + " five", "prompt_mismatch"),
        (turns("one", "x"), turns("two", "y"), "prompt_mismatch"),
        ("no dialogue", "at all", "no_prompt"),
        (DIALOGUE + " four", DIALOGUE + " four", "identical_with_winner"),
        (turns("one", "x"), turns("one"), "not_text"),
    ],
)
def test_a_broken_dialogue_is_dropped_by_name(write: Write, chosen: Any, rejected: Any, fault: str) -> None:
    sound = {"chosen": DIALOGUE + " x", "rejected": DIALOGUE + " y"}
    reading = read_labels(write(sound, {"chosen": chosen, "rejected": rejected}))
    assert reading.dropped == {fault: 1}
    assert len(reading.pairs) == 1


def test_chosen_is_dealt_to_both_sides_so_that_a_place_cannot_win(write: Write) -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)]
    winners = [pair.label for pair in read_labels(write(*rows)).pairs]
    assert 70 < winners.count("a") < 130
    turned = [{**each, "chosen": each["rejected"], "rejected": each["chosen"]} for each in rows]
    assert read_labels(write(*rows, *turned)).dropped == {"contradictory_duplicate": 200}


def test_what_ratchet_annotate_wrote_is_read_without_the_skips(tmp_path: Path) -> None:
    one, other = compare("q", "yes", "no"), compare("r", "left", "right")
    better = "first" if one.first == "yes" else "second"
    with VoteStore(tmp_path / "votes.jsonl") as store:
        store.add_tasks([one, other])
        store.cast(Vote(one.id, "anna", better), Vote(one.id, "ben", "skip"), Vote(other.id, "anna", "both_bad"))
    reading = read_labels(tmp_path / "votes.jsonl")
    assert sides(reading)[0] == ("q", "yes")
    assert [list(pair.annotators) for pair in reading.pairs] == [["anna"], ["anna"]]
    assert reading.pairs[1].label == "tie"


def test_an_unknown_format_is_refused_with_its_keys_and_the_known_ones(write: Write) -> None:
    with pytest.raises(DataError, match=r"the keys question, answer; allowed: .*prompt, a, b \(simple\)"):
        read_labels(write({"question": 1, "answer": 2}))


def test_a_file_without_one_sound_row_is_refused_with_the_faults(write: Write) -> None:
    with pytest.raises(DataError, match="none of 2 rows is a pair \\(2 boolean\\)"):
        read_labels(write(row(a=True), row(b=True)))


# ---------------------------------------------------------------------------------------------- real files
def pandalm(shared_data: Path) -> Path:
    return shared_data / "preferences" / "pandalm_testset_v1.json"


def test_every_broken_row_of_pandalm_is_counted(shared_data: Path) -> None:
    reading = read_labels(pandalm(shared_data))
    assert reading.found == {"boolean": 6, "one_empty": 54, "duplicate": 99, "flipped": 102}
    assert reading.dropped == {"boolean": 6, "duplicate": 88, "flipped": 44}
    assert (reading.rows, len(reading.pairs)) == (999, 861)
    kept = read_labels(pandalm(shared_data), repeats=True)
    assert (len(kept.pairs), kept.dropped, kept.found) == (993, {"boolean": 6}, reading.found)


def test_pandalms_annotators_agree_as_published(shared_data: Path) -> None:
    votes = read_annotations(pandalm(shared_data))
    first, second, third = (votes[f"annotator{number}"] for number in (1, 2, 3))
    assert {len(each) for each in votes.values()} == {999}
    kappas = [cohen_kappa(first, second), cohen_kappa(first, third), cohen_kappa(second, third)]
    assert [round(kappa, 3) for kappa in kappas] == [0.852, 0.879, 0.862]
    table = label_counts(list(zip(first, second, third, strict=True)))
    assert round(fleiss_kappa(table), 3) == 0.864


def test_pandalms_published_judge_is_right_in_6977_percent(shared_data: Path) -> None:
    verdicts = read_verdicts(shared_data / "preferences" / "pandalm_gpt35_judge.json")
    votes = read_annotations(pandalm(shared_data)).values()
    people = [majority([label for label in each if label]) for each in zip(*votes, strict=True)]
    said = [verdicts[str(index)] for index in range(999)]
    assert said.count(None) == 25  # unreadable verdicts: abstentions here, counted wrong in the published figure
    right = sum(one == other for one, other in zip(said, people, strict=True))
    assert round(100 * right / 999, 2) == 69.77
    assert agreement(said, people) == right / (999 - 25)


def test_every_broken_row_of_hh_is_counted(shared_data: Path) -> None:
    reading = read_labels(shared_data / "preferences" / "hh_harmless_base_test.jsonl.gz")
    assert (reading.rows, len(reading.pairs)) == (2312, 2307)
    assert reading.dropped == {"prompt_mismatch": 5}
    assert reading.found == {"prompt_mismatch": 5, "one_empty": 4}


LLMBAR: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "LLMBar_Natural": (100, {}),
    "LLMBar_Adversarial_GPTInst": (92, {}),
    "LLMBar_Adversarial_GPTOut": (47, {}),
    "LLMBar_Adversarial_Manual": (46, {}),
    "LLMBar_Adversarial_Neighbor": (134, {}),
    "Processed_FairEval": (66, {}),
    "Processed_LLMEval2": (200, {"identical_with_winner": 1}),
    "Processed_MT-Bench": (200, {"flipped": 5}),
}


@pytest.mark.parametrize("name", LLMBAR)
def test_every_broken_row_of_llmbar_is_counted(shared_data: Path, name: str) -> None:
    reading = read_labels(shared_data / "preferences" / "llmbar" / f"{name}_dataset.json")
    assert (reading.rows, reading.dropped) == LLMBAR[name]
    assert conserved(reading)
    assert {pair.label for pair in reading.pairs} == {"a", "b"}
