"""Rows come as they are written, one after another."""

import gzip
from itertools import islice
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.rows import Broken, read_rows


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_no_value_of_a_table_is_guessed(tmp_path: Path, name: str) -> None:
    text = '\ufeffprompt,answer\r\n\r\n"a ""b"",\nc",NA\r\n001,\r\n' + f"{'x' * 200_000},True\r\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert list(read_rows(tmp_path / name)) == [
        {"prompt": 'a "b",\nc', "answer": "NA"},
        {"prompt": "001", "answer": ""},
        {"prompt": "x" * 200_000, "answer": "True"},
    ]


def test_line_of_a_table_that_does_not_fit_its_columns_is_its_fields(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,answer\na\nb,c,d\ne,f\n")
    assert list(read_rows(tmp_path / "a.csv")) == [["a"], ["b", "c", "d"], {"prompt": "e", "answer": "f"}]


def test_table_is_read_as_far_as_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\n" + "a\n" * 100_000 + '"torn')
    assert list(islice(read_rows(tmp_path / "a.csv"), 2)) == [{"prompt": "a"}] * 2
    with pytest.raises(DataError, match="is no table of comma-separated values: line 100002: unexpected end of data"):
        list(read_rows(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_line_of_a_table_that_is_broken_breaks_no_other(tmp_path: Path, name: str) -> None:
    lines = [b"prompt,answer", b"a,1", b"caf\xe9,2", b'"b" c,3', "d\u00e9,4".encode(), b'"e\nf",5', b'g "h",6']
    text = b"\n".join(lines)
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert list(read_rows(tmp_path / name)) == [
        {"prompt": "a", "answer": "1"},
        Broken("is no UTF-8"),
        Broken("is no line of a table: ',' expected after '\"'"),
        {"prompt": "d\u00e9", "answer": "4"},
        {"prompt": "e\nf", "answer": "5"},
        {"prompt": 'g "h"', "answer": "6"},
    ]


def test_a_table_whose_columns_cannot_be_read_is_none(tmp_path: Path) -> None:
    for text in ("prompt\na\n".encode("utf-16"), b'"a" b,c\nd,e\n'):
        (tmp_path / "a.csv").write_bytes(text)
        with pytest.raises(DataError, match="is no table of comma-separated values: line 1: is no"):
            list(read_rows(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_line_that_is_nested_too_deep_is_no_json(tmp_path: Path, name: str) -> None:
    deep = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (tmp_path / name).write_bytes(deep + b'\n{"prompt": "a"}\n')
    first, second = read_rows(tmp_path / name)
    assert (first.strip(), second) == (deep, {"prompt": "a"})
