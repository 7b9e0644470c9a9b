"""Rows come as they are written, one after another."""

import gzip
from itertools import islice
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.rows import read_rows


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
