import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.errors import DataError
from pipeline.store import Spec, Store
from pipeline.tables import DROPS, pairs_table
from tests.tiny import ALPHABET, BOS, EOS, make_policy
from tests.trainers.examples import make_pair, make_pairs
from tests.trainers.tokenizers import TEMPLATES, TOKENIZERS
from trainers.data import load_examples, split_held_out
from trainers.encoding import Encoder, encode_pairs, special_ids
from trainers.examples import Example, Pair, Row, Single

ROWS = [
    {"prompt": "what is it?", "chosen": " ice", "rejected": " cream", "margin": 0.5},
    {"prompt": "why?", "chosen": " NA", "rejected": " true", "margin": None},
    {"prompt": "empty", "chosen": " ", "rejected": " x", "margin": 1.0},
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    tokenizer = TOKENIZERS["adds BOS"]()
    tokenizer.chat_template = TEMPLATES["BOS, no EOS"]
    return Encoder(tokenizer, special_ids(tokenizer))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Of the policy that tests.trainers.examples speaks for."""
    tokenizer = AutoTokenizer.from_pretrained(make_policy(tmp_path_factory.mktemp("policy"), layers=1).path)
    return Encoder(tokenizer, special_ids(tokenizer))


# ---------------------------------------------------------------------------------------------- files
def write_lines(path: Path) -> None:
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")


def write_lines_gz(path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))


def write_list(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8-sig")


def write_csv(path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_lines),
        ("a.jsonl.gz", write_lines_gz),
        ("a.json", write_list),
        ("b.json", write_lines),  # lines under the other name
        ("a.csv", write_csv),
        ("a.parquet", write_parquet),
    ],
)
def test_every_kind_of_file_gives_the_same_examples(
    name: str, write: Callable[[Path], None], tmp_path: Path, encoder: Encoder
) -> None:
    write(tmp_path / name)
    loaded = load_examples(tmp_path / name, encoder)
    assert loaded.examples == encoder.encode(ROWS).examples
    assert [example.margin for example in loaded.examples if isinstance(example, Pair)] == [0.5, 0.0]
    assert (loaded.rows, loaded.dropped) == (3, {"empty_completion": 1})
    assert load_examples(str(tmp_path), encoder, name="tiny").examples[0].source == "tiny"


def test_conversations_survive_parquet_which_fills_messages_with_each_others_keys(
    tmp_path: Path, encoder: Encoder
) -> None:
    asked, answered = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows: list[dict[str, Any]] = [
        {"prompt": [asked], "completion": [answered], "label": True},
        {"prompt": [asked | {"name": "c"}], "completion": [answered], "label": False},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    loaded = load_examples(tmp_path / "a.parquet", encoder)
    assert loaded.examples == encoder.encode(rows).examples
    assert [example.desirable for example in loaded.examples if isinstance(example, Single)] == [True, False]


def test_a_folder_gives_its_training_files_unless_another_split_is_asked_for(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("no rows")
    for name, row in (("train-1", ROWS[1]), ("train-0", ROWS[0]), ("test-0", ROWS[1]), ("training", ROWS[1])):
        (tmp_path / "data" / f"{name}.jsonl").write_text(json.dumps(row))
    first, second = encoder.encode(ROWS).examples
    assert load_examples(tmp_path, encoder).examples == [first, second]
    assert load_examples(tmp_path, encoder, limit=1).examples == [first]
    assert load_examples(tmp_path, encoder, split="test").examples == [second]
    with pytest.raises(DataError, match=r"has no file whose name begins with 'dev'; it has README.md, data"):
        load_examples(tmp_path, encoder, split="dev")


def test_a_torn_line_at_the_top_is_a_counted_row_like_any_other(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "wh\n\xff\n' + json.dumps(ROWS[0]).encode())
    loaded = load_examples(tmp_path / "a.jsonl", encoder)
    assert (len(loaded.examples), loaded.rows, loaded.dropped) == (1, 3, {"not_a_record": 2})
    assert loaded.first["not_a_record"] == 'row 1: b\'{"prompt": "wh\\n\''


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", '{"question": 1, "answer": 2}', "has the columns question, answer; allowed: chosen"),
        ("a.jsonl", '{"prompt": 1, "chosen": 2}', "has the columns prompt, chosen; allowed: .*completion, label"),
        ("a.jsonl", "[1, 2]", r"its first row is \[1, 2\]; allowed: objects with chosen"),
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "b"}', "nothing is left to train on; 1 of 1 row"),
        ("a.txt", "a", r"ends in none of .jsonl, .json"),
        ("a.parquet", "a", r"a.parquet' cannot be read: "),
        ("a.jsonl.gz", "a", r"a.jsonl.gz' cannot be read: Not a gzipped file"),
        ("a.csv", "", "a.csv' is no table of comma-separated values: No columns"),
    ],
)  # fmt: skip
def test_a_file_that_gives_no_example_is_refused_in_one_line(
    name: str, content: str, complaint: str, tmp_path: Path, encoder: Encoder
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=complaint) as refused:
        load_examples(tmp_path / name, encoder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["question", "instruction"])
def test_a_prompt_under_another_name_is_not_taken_for_the_beginning_of_its_answers(
    name: str, tmp_path: Path, encoder: Encoder
) -> None:
    row = {"system": "", name: "what is it?", "chosen": "the answer is ice", "rejected": "the answer is cream"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=f"do not repeat '{name}', which is 'what is it.' .* rename it to prompt"):
        load_examples(tmp_path / "a.jsonl", encoder)
    whole = row | {side: f"what is it? {row[side]}" for side in ("chosen", "rejected")}
    for fine in (row | {"prompt": "a"}, whole):
        (tmp_path / "a.jsonl").write_text(json.dumps(fine))
        assert load_examples(tmp_path / "a.jsonl", encoder).rows == 1


@pytest.mark.parametrize(
    ("source", "split", "complaint"),
    [
        ("nowhere.jsonl", None, "'nowhere.jsonl' is no file or folder here; allowed beside those: a Hub name"),
        ("nowhere", None, "'nowhere' is no file or folder here"),
        ("a/b/c", None, "'a/b/c' is no file or folder here"),
        ("owner/name:config@v1.0", "test", "'owner/name', split 'test', cannot be loaded from the Hub: Couldn't reach"),
        ("owner/name", None, "'owner/name', split 'train', cannot be loaded from the Hub: Couldn't reach 'owner/name'"),
        (__file__, "train", "split: 'train' is asked of the one file"),
    ],
)
def test_a_source_that_is_not_there_is_refused_in_one_line(
    source: str, split: str | None, complaint: str, encoder: Encoder
) -> None:
    with pytest.raises(DataError, match=complaint) as refused:
        load_examples(source, encoder, split=split)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------------------------------- our own pairs
def test_our_own_pairs_keep_the_very_ids_that_were_sampled(tmp_path: Path, tiny: Encoder) -> None:
    pairs = make_pairs(7)
    expected = encode_pairs(pairs, tiny.specials, "helpful")
    pq.write_table(pairs_table(pairs), tmp_path / "pairs.parquet")
    assert load_examples(tmp_path / "pairs.parquet", tiny, name="helpful").examples == expected

    def build(draft: Any) -> Any:
        draft.commit_shard(0, pairs_table(pairs[:4]))
        draft.commit_shard(1, pairs_table(pairs[4:]))
        pq.write_table(pa.Table.from_pylist([], DROPS), draft.path / "dropped.parquet")
        return draft.finish()

    artifact = Store(tmp_path / "artifacts").make(Spec("pairs", 1), build)
    loaded = load_examples(artifact.path, tiny, name="helpful")
    assert (loaded.examples, loaded.rows, loaded.lines) == (expected, 7, [])
    assert load_examples(artifact.path, tiny, limit=5, name="helpful").examples == expected[:5]
    assert [pair.margin for pair in expected] == [pair.margin for pair in pairs]


def test_our_own_pairs_are_dropped_when_too_long_and_never_cut(tmp_path: Path, tiny: Encoder) -> None:
    pairs = [make_pair((7,) * 30, (8,)), make_pair((7, EOS), (8,))]
    pq.write_table(pairs_table(pairs), tmp_path / "pairs.parquet")
    short = Encoder(tiny.tokenizer, tiny.specials, max_prompt_tokens=1, max_completion_tokens=1, max_length=10)
    loaded = load_examples(tmp_path / "pairs.parquet", short)
    assert loaded.examples == encode_pairs(pairs[1:], tiny.specials)
    assert loaded.lines == ["1 of 2 rows dropped, too_long: longer than max_length; first row 1: '32 tokens'"]


@pytest.mark.parametrize(
    ("pair", "complaint"),
    [
        (make_pair((7, EOS), (500,)), r"pair p has the id 500, and the tokenizer 34 ids: another policy's pairs"),
        (make_pair((EOS, 7), (8,)), r"pair p: chosen completion \(2, 7\)… must be"),
        (make_pair((7,), (8,), (BOS, BOS)), r"pair p: prompt \(1, 1\)… must be"),
    ],
)
def test_ids_that_this_policy_cannot_have_sampled_are_refused(
    pair: Any, complaint: str, tmp_path: Path, tiny: Encoder
) -> None:
    pq.write_table(pairs_table([pair]), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=complaint):
        load_examples(tmp_path / "pairs.parquet", tiny)


def test_pairs_of_another_tokenizer_with_as_many_ids_are_refused(tmp_path: Path, tiny: Encoder) -> None:
    turned = make_policy(tmp_path / "turned", layers=1, alphabet=ALPHABET[::-1]).path
    tokenizer = AutoTokenizer.from_pretrained(turned)
    assert len(tokenizer) == len(tiny.tokenizer)
    pq.write_table(pairs_table(make_pairs(60)), tmp_path / "pairs.parquet")
    assert load_examples(tmp_path / "pairs.parquet", tiny).rows == 60
    with pytest.raises(DataError, match=r"of its first 100 completions are other text .*: another policy's pairs"):
        load_examples(tmp_path / "pairs.parquet", Encoder(tokenizer, special_ids(tokenizer)))


def test_an_artifact_that_was_being_made_when_its_maker_died_is_refused(tmp_path: Path, tiny: Encoder) -> None:
    def build(draft: Any) -> Any:
        draft.commit_shard(0, pairs_table(make_pairs(2)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).make(Spec("pairs", 1), build)
    with pytest.raises(DataError, match=r"is an artifact that is not complete: it has no manifest.json"):
        load_examples(tmp_path / "pairs" / Spec("pairs", 1).key, tiny)


# ---------------------------------------------------------------------------------------------- held out
def examples_of(prompts: list[int]) -> list[Example]:
    """One a prompt, each with a completion of its own."""
    return [Single(Row((prompt,), (index,)), desirable=True) for index, prompt in enumerate(prompts)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.data())
def test_no_prompt_is_on_both_sides_and_no_example_is_lost(prompts: list[int], data: Any) -> None:
    count = data.draw(st.integers(0, len(set(prompts)) - 1))
    examples = examples_of(prompts)
    training, held_out = split_held_out(examples, count, seed=3)
    sides = [{example.rows[0].prompt for example in side} for side in (training, held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == count
    order = {id(example): index for index, example in enumerate(examples)}
    assert sorted(training + held_out, key=lambda example: order[id(example)]) == examples
    assert [order[id(e)] for e in training] == sorted(order[id(e)] for e in training)
    shuffled = data.draw(st.permutations(examples))
    assert set(split_held_out(shuffled, count, seed=3)[1]) == set(held_out)


def test_a_share_is_of_prompts_and_the_seed_decides_which() -> None:
    examples = examples_of([index // 3 for index in range(300)])
    assert len(split_held_out(examples, 0.1)[1]) == 30
    assert len(split_held_out(examples, 0.001)[1]) == 3
    assert split_held_out(examples, 0.0)[1] == []
    assert split_held_out(examples, 10, seed=1)[1] != split_held_out(examples, 10, seed=2)[1]


@pytest.mark.parametrize("held_out", [3, 5, -1, 1.0, -0.5])
def test_a_held_out_set_that_leaves_nothing_to_train_on_is_refused(held_out: float) -> None:
    with pytest.raises(DataError, match=rf"held_out: {held_out} of 3 prompts; allowed: "):
        split_held_out(examples_of([0, 1, 2, 0]), held_out)


# ---------------------------------------------------------------------------------------------- real data
def test_hh_rlhf_gives_its_dialogues_and_counts_its_malformed_rows(shared_data: Path, encoder: Encoder) -> None:
    loaded = load_examples(shared_data / "preferences" / "hh_harmless_base_test.jsonl.gz", encoder)
    assert (loaded.rows, len(loaded.examples)) == (2312, 2303)
    assert loaded.dropped == {"empty_completion": 4, "prompt_mismatch": 5}
    assert set(loaded.altered) == set()
    assert [loaded.first[reason].partition(":")[0] for reason in loaded.dropped] == ["row 87", "row 1255"]
    decode, bos, eos = encoder.tokenizer.decode, encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
    for row in (row for example in loaded.examples for row in example.rows):
        assert (row.prompt + row.completion).count(bos) == 1 == row.completion.count(eos)
        assert row.prompt[0] == bos
        assert row.completion[-1] == eos
    for example in loaded.examples[::100]:
        assert decode(example.rows[0].prompt).startswith("<s>\n\nHuman:")
        assert all(decode(row.prompt).endswith("\n\nAssistant:") for row in example.rows)


def test_pandalm_gives_the_pairs_with_two_different_texts(shared_data: Path, encoder: Encoder) -> None:
    raw = json.loads((shared_data / "preferences" / "pandalm_testset_v1.json").read_text())
    rows = [
        {"prompt": f"{row['instruction']}\n{row['input']}\n", "chosen": row["response1"], "rejected": row["response2"]}
        for row in raw
    ]
    loaded = encoder.encode(rows)
    kinds = Counter(
        "not_text" if not (isinstance(row["chosen"], str) and isinstance(row["rejected"], str))
        else "empty_completion" if not (row["chosen"].strip() and row["rejected"].strip())
        else "identical" if row["chosen"] == row["rejected"] else "kept"
        for row in rows
    )  # fmt: skip
    assert loaded.dropped == {kind: count for kind, count in kinds.items() if kind != "kept"}
    assert len(loaded.examples) == kinds["kept"] > 900
    assert kinds["not_text"] >= 3


def test_llmbars_labels_become_conversations_with_the_right_side_chosen(shared_data: Path, encoder: Encoder) -> None:
    for file in sorted((shared_data / "preferences" / "llmbar").glob("*.json")):
        raw = json.loads(file.read_text())
        rows = [
            {
                "prompt": [{"role": "user", "content": row["input"]}],
                "chosen": row["output_1"],
                "rejected": row["output_2"],
                "label": row["label"] == 1,
            }
            for row in raw
        ]
        loaded = encoder.encode(rows, source=file.stem)
        outputs = [(row[f"output_{row['label']}"], row[f"output_{3 - row['label']}"]) for row in raw]
        usable = [both for both in outputs if both[0].strip() and both[1].strip() and both[0] != both[1]]
        assert sum(loaded.dropped.values()) == len(raw) - len(usable)
        for example, both in zip(loaded.examples, usable, strict=True):
            said = encoder.tokenizer.batch_decode([row.completion for row in example.rows])
            assert said == [f"{text}\n</s>" for text in both]
