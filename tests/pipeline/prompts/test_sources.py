"""Files, functions and data sets give the same prompts from the same rows, as a stream; a wrong path is refused."""

import csv
import gzip
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import PromptsConfig
from pipeline.errors import ConfigError, DataError
from pipeline.prompts import check_sources, load_prompts, peek, settings_of
from pipeline.recipe import check_calls
from tests.pipeline.prompts.given import FRUIT, Mixture, Source, texts, write_jsonl

ROWS = [{"prompt": f"what is\na {word}, and why?", "answer": word, "id": f"no {word}"} for word in FRUIT]


def prompts_config(source: dict[str, Any], **settings: Any) -> PromptsConfig:
    return PromptsConfig.model_validate({"source": source, **settings})


def function(folder: Path, body: str, **args: Any) -> PromptsConfig:
    """Prompts from a function ``rows`` of this body."""
    (folder / "mine.py").write_text(body)
    return prompts_config({"type": "callable", "call": {"function": f"{folder}/mine.py:rows", "args": args}})


def write(file: Path) -> None:
    plain = file.with_name(file.name.removesuffix(".gz"))
    match plain.suffix:
        case ".jsonl":
            write_jsonl(plain, ROWS)
        case ".json":
            plain.write_text(json.dumps(ROWS))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), plain)
        case ".csv":
            with plain.open("w", newline="") as opened:
                writer = csv.DictWriter(opened, list(ROWS[0]))
                writer.writeheader()
                writer.writerows(ROWS)
    if file != plain:
        file.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()


# ---------------------------------------------------------------------------------------------- kinds
@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_every_format_gives_the_prompts_that_json_lines_give(tmp_path: Path, source: Source, name: str) -> None:
    write(tmp_path / name)
    columns = {"columns": {"answer": "answer"}}
    given = load_prompts(prompts_config({"type": "file", "path": str(tmp_path / name), **columns}), None)
    assert given == load_prompts(source(ROWS, columns), None)
    assert (given.rows, given.rounds[1].answer, given.rounds[1].id) == (8, "pear", "no pear")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_data_set_gives_the_prompts_that_its_file_gives(
    tmp_path: Path, source: Source, name: str, streaming: bool
) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / name)
    hub = {"type": "hub", "path": str(tmp_path / "set"), "streaming": streaming, "columns": {"answer": "answer"}}
    by_directory = load_prompts(prompts_config(hub), None)
    assert by_directory == load_prompts(source(ROWS, {"columns": {"answer": "answer"}}), None)


@pytest.mark.parametrize("kind", ["file", "hub"])
def test_limit_reads_so_many_rows_and_no_more(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "a.jsonl")
    path = tmp_path / ("a.jsonl" if kind == "file" else "")
    found = load_prompts(prompts_config({"type": kind, "path": str(path), "limit": 3}), None)
    assert (found.rows, len(found.rounds)) == (3, 3)


def test_callable_source_gives_ids_answers_and_splits(tmp_path: Path, tokenizer: Any) -> None:
    config = function(
        tmp_path,
        "def rows(n):\n"
        "    for i in range(n):\n"
        "        word = chr(97 + i)\n"
        "        row = {'prompt': word, 'id': i, 'split': 'held_out' if i == 2 else 'train'}\n"
        "        yield {**row, 'answer': word} if i else row\n",
        n=4,
    ).model_copy(update={"held_out": 1})
    found = load_prompts(config, tokenizer)
    assert [(prompt.id, prompt.answer) for prompt in found.rounds] == [("0", None), ("1", "b"), ("3", "d")]
    assert texts(found.held_out) == ["c"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("raise OSError('no corpus')", "OSError"),
        ("return None", "TypeError"),
        ("yield {'prompt': 'a'}\n    raise ValueError('in the middle')", "ValueError.'in the middle'"),
    ],
)
def test_callable_that_fails_is_named(tmp_path: Path, tokenizer: Any, body: str, error: str) -> None:
    with pytest.raises(DataError, match=rf"^prompts.source: function '.*mine\.py:rows' failed: {error}"):
        load_prompts(function(tmp_path, f"def rows():\n    {body}\n"), tokenizer)


# ---------------------------------------------------------------------------------------------- streams
ENDLESS = "def rows():\n    for i in range(10**12):\n        yield {'prompt': f'{i % 100} ' + 5000 * 'x'}\n"


def test_no_more_is_read_than_is_needed(tmp_path: Path) -> None:
    assert len(peek(function(tmp_path, ENDLESS), 5)) == 5


def test_a_column_that_is_not_there_is_said_without_reading_on(tmp_path: Path) -> None:
    config = function(tmp_path, ENDLESS.replace("'prompt'", "'question'"))
    for read in (lambda: load_prompts(config, None), lambda: peek(config, 5)):
        with pytest.raises(DataError, match="1000 of 1000 rows are unusable; .*; row 1: has no 'prompt'"):
            read()
    (tmp_path / "late").mkdir()
    late = function(tmp_path / "late", ENDLESS.replace("'prompt'", "'prompt' if i >= 1000 else 'question'"))
    assert len(peek(late.model_copy(update={"bad_rows": 1.0}), 5)) == 5


@pytest.mark.parametrize(("rows", "length"), [(8_000, 5000), (40_000, 5)])
def test_memory_holds_the_prompts_that_are_kept_and_not_the_rows(tmp_path: Path, rows: int, length: int) -> None:
    config = function(tmp_path, ENDLESS.replace("10**12", str(rows)).replace("5000", str(length)))
    tracemalloc.start()
    found = load_prompts(config, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.rows, len(found.rounds)) == (rows, 100)
    assert peak < 2 * 2**20


# ---------------------------------------------------------------------------------------------- what is wrong
@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("gone.jsonl", None, r"prompts.source.path: '.*gone.jsonl' is not a file"),
        ("a.txt", "a", r"prompts.source.path: '.*a.txt' ends in none of .jsonl, .json, .csv"),
        ("a.parquet", "a", r"prompts.source.path: '.*a.parquet' cannot be read: "),
        ("a.jsonl.gz", "a", r"prompts.source.path: '.*a.jsonl.gz' cannot be read: Not a gzipped file"),
        (
            "a.csv",
            'prompt\n"a',
            r"prompts.source.path: data set '.*a.csv' is no table of comma-separated values: line 2: unexpected end",
        ),
        ("a.jsonl", "\n", r"prompts.source: it has no rows"),
        ("a.csv", "prompt\n", r"prompts.source: it has no rows"),
    ],
)
def test_file_that_gives_nothing_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=complaint) as refused:
        load_prompts(prompts_config({"type": "file", "path": str(tmp_path / name)}), None)
    assert "\n" not in str(refused.value)


def test_file_that_is_torn_in_the_middle_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl.gz")
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    for torn in (whole[:-20], whole[:30] + b"\xff" * 20 + whole[50:]):
        (tmp_path / "a.jsonl.gz").write_bytes(torn)
        with pytest.raises(DataError, match=r"'.*a.jsonl.gz' cannot be read: "):
            load_prompts(prompts_config({"type": "file", "path": str(tmp_path / "a.jsonl.gz")}), None)


def test_row_of_a_table_with_a_field_too_many_or_too_few_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,answer\n" + "".join(f"{word},NA\n" for word in FRUIT) + "x,y,z\nx\n")
    config = prompts_config({"type": "file", "path": str(tmp_path / "a.csv")}, bad_rows=0.2)
    found = load_prompts(config, None)
    assert (len(found.rounds), found.dropped) == (8, {"bad": 2})
    assert found.bad == tuple(f"row {number}: is a list, not an object with keys" for number in (9, 10))


def test_line_of_a_table_that_is_broken_is_one_bad_row(tmp_path: Path) -> None:
    lines = ["prompt", *FRUIT, "caf\udce9", '"b" c']
    (tmp_path / "a.csv").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    found = load_prompts(prompts_config({"type": "file", "path": str(tmp_path / "a.csv")}, bad_rows=0.2), None)
    assert texts(found.rounds) == FRUIT
    assert found.bad == ("row 9: is no UTF-8", "row 10: is no line of a table: ',' expected after '\"'")


@pytest.mark.parametrize("streaming", [False, True])
def test_data_set_that_is_not_there_is_named(tmp_path: Path, streaming: bool) -> None:
    config = prompts_config({"type": "hub", "path": "nobody/nothing", "streaming": streaming})
    check_sources(config)
    with pytest.raises(DataError, match="prompts.source: data set 'nobody/nothing' cannot be loaded") as refused:
        load_prompts(config, None)
    assert "\n" not in str(refused.value)


def test_data_set_in_the_home_folder_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train.jsonl", ROWS)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = prompts_config({"type": "hub", "path": "~/set"})
    check_sources(config)
    assert len(load_prompts(config, None).rounds) == len(ROWS)


def bad_paths(folder: Path, good: str) -> Iterator[tuple[dict[str, Any], str]]:
    gone = str(folder / "gone.jsonl")
    members = {"first": {"source": {"type": "file", "path": good}}}
    yield {"source": {"type": "file", "path": gone}}, rf"prompts.source.path: '{gone}' is not a file"
    yield (
        {"source": {"type": "hub", "path": f"{folder}/gone"}},
        rf"prompts.source.path: '{folder}/gone' is not a directory; allowed: a directory, or a name on the Hub",
    )
    yield (
        {"source": {"type": "mixture", "members": {**members, "second": {"source": {"type": "file", "path": gone}}}}},
        rf"prompts.source.members.second.source.path: '{gone}' is not a file",
    )
    yield (
        {"source": members["first"]["source"], "decontaminate": {"against": [{"type": "file", "path": gone}]}},
        rf"prompts.decontaminate.against.0.path: '{gone}' is not a file",
    )


def test_path_that_leads_nowhere_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "good.jsonl", ROWS)
    for settings, complaint in bad_paths(tmp_path, good):
        with pytest.raises(DataError, match=f"^{complaint}$"):
            check_sources(PromptsConfig.model_validate(settings))
    check_sources(prompts_config({"type": "file", "path": good}))
    check_sources(prompts_config({"type": "hub", "path": str(tmp_path)}))


def test_function_that_is_not_there_is_refused_wherever_it_is_named(tmp_path: Path, source: Source) -> None:
    absent = {"type": "callable", "call": {"function": f"{tmp_path}/gone.py:rows"}}
    mixed = prompts_config({"type": "mixture", "members": {"first": {"source": absent}}})
    for config, key in (
        (mixed, "source.members.first.source.call"),
        (source(ROWS, decontaminate={"against": [absent]}), "decontaminate.against.0.call"),
    ):
        with pytest.raises(ConfigError, match=f"^{key}: function '.*gone.py:rows': there is no"):
            check_calls(config)


# ---------------------------------------------------------------------------------------------- what it is known by
def test_moved_file_is_the_same_and_an_edited_one_is_not(tmp_path: Path, source: Source) -> None:
    before = settings_of(source(ROWS))
    moved = source.file.rename(tmp_path / "moved.jsonl")
    assert settings_of(prompts_config({"type": "file", "path": str(moved)})) == before
    assert settings_of(source([*ROWS, {"prompt": "new"}])) != before


def test_directory_and_function_are_known_by_what_they_hold(tmp_path: Path) -> None:
    config = prompts_config({"type": "hub", "path": str(tmp_path)})
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    before = settings_of(config)
    write_jsonl(tmp_path / "a.jsonl", ROWS[1:])
    assert settings_of(config) != before
    made = settings_of(function(tmp_path, "def rows():\n    return []\n"))
    assert settings_of(function(tmp_path, "def rows():\n    return [1]\n")) != made


def test_every_file_of_a_mixture_counts_and_its_order_but_not_what_only_windows_need(mixture: Mixture) -> None:
    members = {"a": [{"prompt": "apple"}], "b": [{"prompt": "pear"}]}
    before = settings_of(mixture(members))
    assert settings_of(mixture(members, {"a": 3.0}, per_round=2)) == before
    assert settings_of(mixture(dict(reversed(members.items())))) != before  # the first of two alike is kept
    assert settings_of(mixture({**members, "b": [{"prompt": "plum"}]})) != before


def test_what_decides_no_prompt_is_no_part_of_it(source: Source) -> None:
    before = settings_of(source(ROWS))
    assert settings_of(source(ROWS, bad_rows=0.5)) == before
    near = settings_of(source(ROWS, deduplicate="near"))
    assert settings_of(source(ROWS, deduplicate="near", near_threshold=0.5)) != near != before


def test_evaluation_set_that_is_edited_makes_other_prompts(tmp_path: Path, source: Source) -> None:
    against = {"against": [{"type": "file", "path": write_jsonl(tmp_path / "test.jsonl", ROWS)}]}
    before = settings_of(source(ROWS, decontaminate=against))
    write_jsonl(tmp_path / "test.jsonl", ROWS[1:])
    assert settings_of(source(ROWS, decontaminate=against)) != before
    assert settings_of(source(ROWS)) != before
