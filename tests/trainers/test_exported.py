"""``ratchet train FOLDER`` on an exported data set: the very tokens of the run's own pairs."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from flows.sources import find_source
from pipeline.export.dataset import export_data
from pipeline.runs import Run
from tests.exported import Making, Writing, make_run
from tests.tiny_chat import chat_policy
from trainers.checkpoints import load_specials, load_tokenizer
from trainers.data import load_examples
from trainers.encoding import Encoder
from trainers.examples import Pair

Exported = tuple[Run, Path, Encoder]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "chat"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A run whose ids are the policy's, and its data set."""
    place = tmp_path_factory.mktemp("exported")
    policy = chat_policy(place / "policy", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(policy)

    def rendered(text: str) -> list[int]:
        turns = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return list(tokenizer.encode(text, add_special_tokens=False))

    def answer(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    prompt: Callable[[str], list[int]] = rendered if request.param else tokenizer.encode
    run = make_run(place / "workspace", Making(chat=request.param, writing=Writing(prompt, answer)))
    export_data(run, place / "folder")
    return run, place / "folder", Encoder(load_tokenizer(policy), load_specials(policy))


def examples(exported: Exported, given: str) -> list[Pair]:
    """As ``ratchet train GIVEN`` reads it."""
    run, _, encoder = exported
    source = find_source(given, run.workspace)
    found = [load_examples(place, encoder, name="demo") for place in source.places]
    assert all(not part.dropped and not part.altered for part in found), [part.lines for part in found]
    return [example for part in found for example in part.examples if isinstance(example, Pair)]


def test_the_pairs_read_back_are_the_runs_own_token_for_token(exported: Exported) -> None:
    own, back = examples(exported, "demo"), examples(exported, str(exported[1]))
    assert back == own
    completions = [row.completion for pair in own for row in pair.rows]
    assert (2,) in completions  # an empty answer
    assert any(completion[-1] != 2 for completion in completions)  # one that was cut, and never ended


def test_another_tokenizer_encodes_the_text_and_says_so(exported: Exported, tmp_path: Path) -> None:
    _, folder, encoder = exported
    table = pa.concat_tables(pq.read_table(file) for file in sorted((folder / "data" / "default").iterdir()))
    shifted = pa.array([[each + 1 for each in ids] for ids in table["chosen_token_ids"].to_pylist()])
    at = table.schema.get_field_index("chosen_token_ids")
    pq.write_table(table.set_column(at, "chosen_token_ids", shifted), tmp_path / "shifted.parquet")
    found = load_examples(tmp_path / "shifted.parquet", encoder)
    empty = sum(text in ("", [{"role": "assistant", "content": ""}]) for text in table["rejected"].to_pylist())
    assert found.dropped == {"empty_completion": empty}
    assert found.altered["other_ids"] == table.num_rows - empty
    text = next(pair for pair in found.examples if isinstance(pair, Pair))
    assert all(row.completion[-1] == 2 for row in text.rows)


def test_labelled_completions_of_an_export_are_read_by_their_folder(exported: Exported) -> None:
    _, folder, encoder = exported
    rows = sum(pq.read_metadata(file).num_rows for file in (folder / "data" / "kto").iterdir())
    found = load_examples(folder / "data" / "kto", encoder)
    assert len(found.examples) + sum(found.dropped.values()) == rows
    assert set(found.dropped) == {"empty_completion"}
