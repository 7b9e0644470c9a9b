"""The import rules, read from the source with ``ast``; and what the command line may load before it has to work.

A rule is a function from the project's modules to its violations. Each is shown to fail on a planted one.
"""

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "judges": {"judges", "pipeline"},
    "trainers": {"trainers", "pipeline"},
    "flows": {"flows", "judges", "trainers", "pipeline"},
}
FIRST_PARTY = {*MAY_IMPORT, "tests"}
MODEL_LIBRARIES = {"torch", "transformers", "vllm"}
HEAVY = {*MODEL_LIBRARIES, "prefect", "datasets", "matplotlib"}
SHAPELESS = {"utils", "util", "helpers", "common", "misc"}

Modules = Mapping[str, "Module"]


@dataclass(frozen=True)
class Import:
    target: str
    """Dotted, as far as it names a module or a name in one: ``pipeline.store.Draft``."""
    line: int
    at_import: bool
    """Runs when the module is imported: not in a function, not for type checkers alone."""


@dataclass(frozen=True)
class Module:
    name: str
    is_package: bool
    imports: tuple[Import, ...]


def parse(name: str, source: str, is_package: bool = False) -> Module:
    return Module(name, is_package, tuple(_imports(ast.parse(source), name, is_package, at_import=True)))


def _imports(node: ast.AST, module: str, is_package: bool, at_import: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, at_import) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
        base = ".".join([*(parts if node.level else []), *([node.module] if node.module else [])])
        yield from (Import(f"{base}.{alias.name}", node.lineno, at_import) for alias in node.names)
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and child in node.body
        yield from _imports(child, module, is_package, at_import and not deferred and not typing_only)


def project() -> Modules:
    modules = {}
    for package in MAY_IMPORT:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            modules[name] = parse(name, file.read_text(), is_package)
    return modules


def top(dotted: str) -> str:
    return dotted.partition(".")[0]


def resolve(target: str, modules: Modules) -> str | None:
    """The project's module that ``target`` names, or is a name in."""
    return next((name for name in (target, target.rpartition(".")[0]) if name in modules), None)


# ---------------------------------------------------------------------------------------------- the rules
def imports_point_right(modules: Modules) -> list[str]:
    return [
        f"{module.name}:{each.line} imports {each.target}"
        for module in modules.values()
        for each in module.imports
        if top(each.target) in FIRST_PARTY - MAY_IMPORT[top(module.name)]
    ]


def prefect_only_in_flows(modules: Modules) -> list[str]:
    return _imported_outside("prefect", "flows", modules)


def vllm_only_in_sampling(modules: Modules) -> list[str]:
    return _imported_outside("vllm", "pipeline.sampling", modules)


def _imported_outside(library: str, home: str, modules: Modules) -> list[str]:
    return [
        f"{module.name}:{each.line} imports {each.target}"
        for module in modules.values()
        for each in module.imports
        if top(each.target) == library and not f"{module.name}.".startswith(f"{home}.")
    ]


def pipeline_defers_model_libraries(modules: Modules) -> list[str]:
    """Only an engine, a module in pipeline/sampling, may load torch and the like when it is imported."""
    return [
        f"{module.name}:{each.line} imports {each.target}"
        for module in modules.values()
        for each in module.imports
        if top(module.name) == "pipeline" and each.at_import and top(each.target) in MODEL_LIBRARIES
        if module.is_package or not module.name.startswith("pipeline.sampling.")
    ]


def light_modules_load_nothing_heavy(modules: Modules) -> list[str]:
    """Whatever a package's ``__init__``, the config or the command line loads, directly or not, is light."""
    light = [name for name, module in modules.items() if module.is_package]
    light += [name for name in ("pipeline.config", "pipeline.recipe", "flows.cli", "flows.__main__") if name in modules]
    return [
        f"{start} loads {target} through {' → '.join(path)}"
        for start in light
        for target, path in _loaded_by(start, modules).items()
        if top(target) in HEAVY
    ]


def training_without_rounds_needs_no_prefect(modules: Modules) -> list[str]:
    ways = _loaded_by("flows.offline", modules) if "flows.offline" in modules else {}
    return [f"{target} through {' → '.join(path)}" for target, path in ways.items() if top(target) == "prefect"]


def _loaded_by(start: str, modules: Modules) -> dict[str, list[str]]:
    """Every module that importing ``start`` loads, with the way there."""
    ways, queue = {start: [start]}, [start]
    while queue:
        name = queue.pop()
        parents = [name[:end] for end, letter in enumerate(name) if letter == "."]
        imported = [each.target for each in modules[name].imports if each.at_import]
        for target in [*(parent for parent in parents if parent in modules), *imported]:
            found = resolve(target, modules) or target
            if found not in ways:
                ways[found] = [*ways[name], found]
                if found in modules:
                    queue.append(found)
    return ways


def no_cycles(modules: Modules) -> list[str]:
    graph = {
        name: {
            found
            for each in module.imports
            if each.at_import and (found := resolve(each.target, modules)) not in (None, name)
        }
        for name, module in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" → ".join(error.args[1])]
    return []


def modules_are_named_for_a_noun(modules: Modules) -> list[str]:
    return [name for name in modules if SHAPELESS & set(name.split("."))]


Rule = Callable[[Modules], list[str]]
PLANTED: dict[Rule, dict[str, str]] = {
    imports_point_right: {"judges.rules": "def f():\n    from trainers.dpo import train"},
    prefect_only_in_flows: {"trainers.dpo": "from prefect import task"},
    vllm_only_in_sampling: {"judges.reward_model": "def f():\n    import vllm.config"},
    pipeline_defers_model_libraries: {"pipeline.policy": "try:\n    import torch.nn\nexcept ImportError:\n    pass"},
    light_modules_load_nothing_heavy: {
        "pipeline.config": "from pipeline import metrics",
        "pipeline.metrics": "import pipeline.sampling.vllm",
        "pipeline.sampling.vllm": "class Engine:\n    import torch",
    },
    training_without_rounds_needs_no_prefect: {
        "flows.offline": "from flows.training import learn",
        "flows.training": "from prefect import task",
    },
    no_cycles: {
        "pipeline.store": "from pipeline.policy import digest",
        "pipeline.policy": "if True:\n    from .store import Store",
    },
    modules_are_named_for_a_noun: {"flows.utils": ""},
}


@pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__)
def test_import_rule_holds(rule: Rule) -> None:
    assert rule(project()) == []


@pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__)
def test_import_rule_catches_a_planted_violation(rule: Rule) -> None:
    planted = {name: parse(name, source) for name, source in PLANTED[rule].items()}
    assert len(rule(planted)) == 1


def test_what_only_a_function_or_a_type_checker_imports_is_not_loaded() -> None:
    source = "if TYPE_CHECKING:\n    import torch\nelse:\n    import json\nasync def f():\n    import vllm\nimport re"
    loaded = {each.target: each.at_import for each in parse("pipeline.store", source).imports}
    assert loaded == {"torch": False, "json": True, "vllm": False, "re": True}


@pytest.mark.parametrize(
    ("module", "is_package", "source", "target"),
    [
        ("pipeline.store", False, "from .errors import StoreError", "pipeline.errors.StoreError"),
        ("pipeline.sampling.vllm", False, "from .. import types", "pipeline.types"),
        ("pipeline.sampling", True, "from .vllm import Engine", "pipeline.sampling.vllm.Engine"),
        ("pipeline.sampling", True, "from ..types import Group", "pipeline.types.Group"),
    ],
)
def test_relative_imports_are_resolved(module: str, is_package: bool, source: str, target: str) -> None:
    assert [each.target for each in parse(module, source, is_package).imports] == [target]


# ---------------------------------------------------------------------------------------------- what really loads
def loaded_when(code: str, *arguments: str) -> tuple[int, set[str], str]:
    """Exit code of ``code`` in a fresh interpreter, the heavy libraries loaded by then, and all it printed."""
    report = "import atexit, sys\natexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n"
    done = subprocess.run(
        [sys.executable, "-c", report + code, *arguments],
        cwd=ROOT, env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}, capture_output=True, text=True,
    )  # fmt: skip
    printed, _, loaded = done.stderr.rpartition("LOADED")
    return done.returncode, HEAVY & set(loaded.split()), done.stdout + printed


COMMAND = "from flows.__main__ import main\nmain()"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    status, heavy, printed = loaded_when(COMMAND, *arguments)
    assert (status, heavy) == (0, set()), printed
    assert "Usage" in printed


def test_a_wrong_recipe_is_refused_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text("rounds = 3\ncolour = 'red'\n")
    status, heavy, printed = loaded_when(COMMAND, "run", str(tmp_path / "wrong.toml"), "--workspace", str(tmp_path))
    assert (status, heavy) == (2, set()), printed
    assert "colour" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("module", ["pipeline", "pipeline.config", "judges", "trainers", "flows"])
def test_importing_a_light_module_loads_nothing_heavy(module: str) -> None:
    status, heavy, printed = loaded_when(f"import {module}")
    assert (status, heavy) == (0, set()), printed


def test_a_heavy_library_would_be_noticed() -> None:
    assert loaded_when("import matplotlib")[1] == {"matplotlib"}
