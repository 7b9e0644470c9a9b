"""A user's own functions: found by name, checked before anything expensive, and part of the lineage by their code."""

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import Call
from pipeline.errors import ConfigError


def source_file(call: Call) -> Path:
    """The file that holds the function. Imports nothing but the parent packages of a dotted module.

    Raises:
        ConfigError: there is no such file or module, or it has no such function at its top level.
    """
    module, _, name = call.function.rpartition(":")
    file = Path(module) if module.endswith(".py") else _module_file(module)
    if file is None or not file.is_file():
        raise ConfigError(f"function {call.function!r}: there is no module or file {module!r}")
    try:
        defined = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"function {call.function!r}: {file} is not Python: {error}") from None
    if name not in defined:
        has = ", ".join(defined) or "no functions"
        raise ConfigError(f"function {call.function!r}: {file} defines no {name!r}; it has {has}")
    return file


def source_digest(call: Call) -> str:
    """SHA-256 of the function's file: editing the code makes new artifacts."""
    return hashlib.sha256(source_file(call).read_bytes()).hexdigest()


def resolve(call: Call) -> Callable[..., Any]:
    """The function with its ``args`` bound. Raises ConfigError where it cannot be found or imported."""
    file = source_file(call)
    module, _, name = call.function.rpartition(":")
    try:
        loaded = _load_file(file) if module.endswith(".py") else importlib.import_module(module)
    except Exception as error:
        raise ConfigError(f"function {call.function!r}: importing {file} failed: {error!r}") from error
    return partial(getattr(loaded, name), **call.args)


def _module_file(module: str) -> Path | None:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # an installed command does not look in the working directory by itself
    if not all(part.isidentifier() for part in module.split(".")):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # a dotted name imports its parents, and they may fail in any way
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            return None
        raise ConfigError(f"function {module}: importing its package failed: {error!r}") from error
    return Path(spec.origin) if spec is not None and spec.origin else None


def _load_file(file: Path) -> Any:
    name = f"ratchet_user_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before execution, so that dataclasses inside it can find their module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
