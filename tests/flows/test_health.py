import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from rich.console import Console as Terminal
from rich.console import RenderableType

from flows.health import check_judge, health_table, reading_table
from judges.labels.reading import read_labels
from pipeline.config import JudgeConfig
from pipeline.errors import DataError


def judge(tmp_path: Path, expression: str) -> JudgeConfig:
    (tmp_path / "mine.py").write_text(
        f"def score(prompt, completions):\n    return [{expression} for c in completions]\n"
    )
    config = {"type": "callable", "call": {"function": f"{tmp_path}/mine.py:score"}}
    made: JudgeConfig = TypeAdapter(JudgeConfig).validate_python(config)
    return made


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.jsonl"
    rows = [
        {"prompt": f"[q{i}]", "a": "fine " * (i + 1), "b": "bad", "label": "a", "category": "[chat]"} for i in range(12)
    ]
    path.write_text("\n".join(json.dumps(row) for row in [*rows, {**rows[0], "a": True}, rows[0]]))
    return path


def printed(shown: RenderableType) -> str:
    terminal = Terminal(width=160, force_terminal=False, highlight=False)
    with terminal.capture() as capture:
        terminal.print(shown)
    return capture.get()


def test_a_users_function_is_checked_on_a_file_of_labels(tmp_path: Path, labels: Path) -> None:
    health = check_judge(judge(tmp_path, "float(len(c))"), labels, name="mine")
    assert (health.judge, health.pairs, health.agreement.value) == ("mine", 12, 1.0)
    text = printed(health_table(health))
    assert "agreement      1.000 (1.000 to 1.000) of labels" in text
    assert "12, each in both orders" in text
    assert "padding 4" in text
    assert "[chat]" in text  # not taken for rich's markup


def test_a_limit_is_kept(tmp_path: Path, labels: Path) -> None:
    assert check_judge(judge(tmp_path, "1.0"), labels, limit=5).pairs == 5


def test_without_labels_only_canaries_are_shown(tmp_path: Path) -> None:
    text = printed(health_table(check_judge(judge(tmp_path, "float('fine' in c)"))))
    assert "canaries" in text
    assert "agreement" not in text
    assert "quarantined" not in text
    assert "64 tied" in text


def test_what_could_not_be_measured_is_shown_as_unknown(tmp_path: Path, labels: Path) -> None:
    text = printed(health_table(check_judge(judge(tmp_path, "None"), labels)))
    assert "kappa          ?" in text
    assert "abstentions    1.000 (1.000 to 1.000); no reason given 12" in text
    assert "? of 64 not preferred to a decent answer; 64 not judged" in text


def test_every_row_that_was_left_out_is_shown(labels: Path) -> None:
    text = printed(reading_table(read_labels(labels), labels.name))
    assert "labels.jsonl: 12 pairs of 14 rows" in text
    assert "1 dropped: boolean, a response that is JSON's true or false: its text was lost (row 13)" in text
    assert "1 dropped: duplicate, as an earlier row (row 14)" in text


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl.* cannot be read: .*No such file"):
        check_judge(judge(tmp_path, "1.0"), tmp_path / "nothing.jsonl")
