"""A user's function is found by name, checked without running it, and part of the lineage by its code."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import Call
from pipeline.errors import ConfigError
from pipeline.functions import resolve, source_digest, source_file

SOURCE = """
from dataclasses import dataclass

@dataclass
class Taste:
    food: str

def score(prompt, completions, food="pizza"):
    return [float(Taste(food).food in completion) for completion in completions]

def other():
    def inner(): ...
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's working directory, which is not on the path: an installed command does not put it there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def call(file: Path, name: str = "score", **args: object) -> Call:
    return Call(function=f"{file}:{name}", args=args)


def test_a_function_in_a_file_is_called_with_its_arguments_bound(project: Path) -> None:
    (project / "my judge.py").write_text(SOURCE)
    judge = resolve(call(project / "my judge.py", food="soup"))
    assert judge("ravin likes", ["pizza", "tomato soup"]) == [0.0, 1.0]
    assert resolve(Call(function="my judge.py:score"))("ravin likes", ["pizza"]) == [1.0]


def test_a_function_in_a_module_of_the_working_directory_is_found(project: Path) -> None:
    package = project / "my_tastes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "judges.py").write_text(SOURCE)
    function = Call(function="my_tastes.judges:score")
    assert source_file(function) == package / "judges.py"
    assert resolve(function)("ravin likes", ["pizza"]) == [1.0]


def test_checking_a_function_does_not_run_its_module(project: Path) -> None:
    (project / "costly.py").write_text("import sys\nsys.modules['costly_ran'] = sys\ndef score(): ...\n")
    for function in ("costly:score", "costly.py:score"):
        source_file(Call(function=function))
        source_digest(Call(function=function))
    assert "costly_ran" not in sys.modules


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent.py:score", "there is no module or file 'absent.py'"),
        ("absent_module:score", "there is no module or file 'absent_module'"),
        ("absent_package.judges:score", "there is no module or file"),
        ("..:score", "there is no module or file"),
        ("math:sqrt", "there is no module or file|is not Python"),
        ("tastes.py:scores", "defines no 'scores'; it has score, other"),
        ("tastes.py:Taste", "defines no 'Taste'"),
        ("tastes.py:inner", "defines no 'inner'"),
        ("empty.py:score", "it has no functions"),
        ("torn.py:score", "is not Python"),
        ("latin.py:score", "is not Python"),
        ("broken_package.judges:score", "importing its package failed: ZeroDivisionError"),
    ],
)
def test_a_function_that_cannot_be_found_is_named_in_one_line(project: Path, function: str, message: str) -> None:
    (project / "tastes.py").write_text(SOURCE)
    (project / "empty.py").write_text("")
    (project / "torn.py").write_text("def score(:")
    (project / "latin.py").write_bytes(b"# caf\xe9\ndef score(): ...")
    (project / "broken_package").mkdir()
    (project / "broken_package" / "__init__.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=message) as raised:
        source_file(Call(function=function))
    assert function.partition(":")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_module_that_fails_on_import_is_a_config_error_and_can_be_mended(project: Path) -> None:
    file = project / "broken.py"
    file.write_text("def score(): ...\nimport there_is_no_such_library\n")
    with pytest.raises(ConfigError, match=r"importing .*broken.py failed: ModuleNotFoundError.*there_is_no_such"):
        resolve(call(file))
    file.write_text("def score():\n    return 1\n")
    assert resolve(call(file))() == 1


def test_editing_the_code_changes_the_digest_and_moving_it_does_not(project: Path) -> None:
    (project / "a.py").write_text(SOURCE)
    (project / "b.py").write_text(SOURCE)
    before = source_digest(call(project / "a.py"))
    assert source_digest(call(project / "b.py")) == before
    (project / "a.py").write_text(SOURCE.replace("pizza", "soup"))
    assert source_digest(call(project / "a.py")) != before
