"""What decides a run's result, as one key, and what a result was made with.

A run is found again by everything that decides its result: method, options, setting, data, pre-trained weights, metric,
precision, the code that trains it, and the run it started from. Of the code counts what it computes: not its prose, not
its import lines (the modules that they name are read themselves), not where a file lies, and of the families of
encoders only the one at hand. So a moved file, a new family or a new reader of data retrains nothing. Of what is
written in a notebook counts the source of the functions that the method is made of.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from eeutils.data import samples
from eeutils.data.specs import spec_of
from eeutils.data.tasks import task_of
from eeutils.files import repository_root, sha256
from eeutils.models import families, record
from eeutils.models.backbone import config_of
from eeutils.training import loop
from eeutils.training.method import Method, Options
from eeutils.training.settings import Setting

_CODE = (samples, record, loop)
"""Where reading begins, beside the paper's file; whatever these import of this package is read, too."""

# What these decide is in a run's configuration already, or is asked only after training. Families are read one by one.
_DECIDE_NOTHING = {
    *("eeutils.errors", "eeutils.files"),
    *(f"eeutils.data.{name}" for name in ("readers", "sources", "specs", "tasks", "texts")),
    *(f"eeutils.training.{name}" for name in ("fingerprint", "method", "runs", "settings")),
    *("eeutils.exiting.rules", "eeutils.exiting.tradeoff", "eeutils.models.families"),
}


def run_key(method: Method, setting: Setting, options: Options) -> str:
    """What tells runs apart: a hash of all that decides their result."""
    return key_of(run_config(method, setting, options))


def key_of(config: dict[str, Any]) -> str:
    """The key of a run with that `run_config`."""
    return _hash(config)


def run_config(method: Method, setting: Setting, options: Options) -> dict[str, Any]:
    """All that decides a run's result."""
    parent, spec, encoders = method.starts_from, spec_of(setting.task), method.encoders(setting, options)
    return {
        "method": method.name,
        "options": options.to_dict(),
        "setting": setting.to_dict(),
        "weights": [_weights_fingerprint(name) for name in encoders],
        "families": sorted({_family_fingerprint(name) for name in encoders}),
        "metrics": spec.metrics,
        "data": task_of(setting.task, setting.train_size, setting.test_size).fingerprint,
        "code": _code_fingerprint(method),
        "starts_from": run_key(parent, setting, parent.options) if parent else None,
        "precision": loop.precision(),
    }


def environment() -> dict[str, Any]:
    """What a result was made with: versions, processor, threads, device, commit, time."""
    state = loop.processes()
    packages = ("torch", "transformers", "datasets", "accelerate", "numpy", "scipy", "scikit-learn", "eeutils")
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else loop.best_device().type,
        "processes": state.num_processes,
        "precision": loop.precision(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The git commit of the repository, with "+changes" when files differ from it; "unknown" outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repository_root()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD")[:12] + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@lru_cache
def _weights_fingerprint(name: str) -> str:
    """What a backbone's name stands for: a folder may get other weights under the same name."""
    files = sorted(path for path in Path(name).glob("*") if path.is_file())
    return _hash([[path.name, sha256(path)] for path in files]) if files else name


def _family_fingerprint(backbone: str) -> str:
    """How the encoder's own family is run, and no other."""
    return _hash(reachable(inspect.getsource(families), "FAMILIES", _family_of(backbone)))


@lru_cache
def _family_of(backbone: str) -> str:
    return config_of(backbone).model_type


def _code_fingerprint(method: Method) -> str:
    """The code of the paper, and of whatever it and training import of this package."""
    read: dict[str, ModuleType] = {}
    parts = (method.build, method.phases, method.annotate, method.encoders)
    homes = {part: sys.modules[part.__module__] for part in parts}
    waiting = [*_CODE, *(home for home in homes.values() if hasattr(home, "__file__"))]
    while waiting:
        module = waiting.pop()
        if module.__name__ not in read and module.__name__ not in _DECIDE_NOTHING:
            read[module.__name__] = module
            waiting += _imports_of(module)
    # A package's own file computes nothing, and an import may name it or not.
    modules = [module for module in read.values() if not hasattr(module, "__path__")]
    loose = [text for part, home in homes.items() if not hasattr(home, "__file__") for text in _in_a_notebook(part)]
    return _hash(sorted([*(what_it_computes(inspect.getsource(module)) for module in modules), *loose]))


def _in_a_notebook(part: Callable[..., Any]) -> list[str]:
    """The source of a function that was written in a notebook, which has no file, and of what it calls there."""
    sources: dict[str, str] = {}
    waiting = [part]
    while waiting:
        function = waiting.pop()
        if function.__qualname__ not in sources:
            sources[function.__qualname__] = inspect.getsource(function)
            codes = [function.__code__, *filter(inspect.iscode, function.__code__.co_consts)]
            named = [function.__globals__.get(name) for code in codes for name in code.co_names]
            own = [one for one in named if getattr(one, "__module__", None) == part.__module__]
            classes = [member for one in own if inspect.isclass(one) for member in vars(one).values()]
            waiting += filter(inspect.isfunction, [*own, *classes])
    return list(sources.values())


def _imports_of(module: ModuleType) -> list[ModuleType]:
    return [sys.modules[name] for name in _imported_names(inspect.getsource(module)) if name in sys.modules]


# The syntax of a module is read once for each text that it has had: a study asks for hundreds of runs.
@lru_cache
def _imported_names(source: str) -> list[str]:
    names = []
    for line in ast.walk(ast.parse(source)):
        if isinstance(line, ast.Import):
            names += [alias.name for alias in line.names]
        elif isinstance(line, ast.ImportFrom) and line.module:
            names += [line.module, *(f"{line.module}.{alias.name}" for alias in line.names)]
    return [name for name in names if name.startswith("eeutils.")]


@lru_cache
def what_it_computes(source: str) -> str:
    """A module's syntax tree without import lines and docstrings, those of constants included."""
    return ast.dump(ast.Module(_without_prose(ast.parse(source)).body, []))


@lru_cache
def reachable(source: str, table: str, entry: str) -> list[str]:
    """What one entry of a module's table is made of: its syntax, and that of every definition that it leads to.

    Raises:
        KeyError: no such entry.
    """
    tree = _without_prose(ast.parse(source))
    definitions = {name: node for node in tree.body for name in _defines(node)}
    entries = definitions[table].value
    values = {key.value: value for key, value in zip(entries.keys, entries.values, strict=True)}
    used: dict[str, ast.AST] = {}
    waiting: list[ast.AST] = [values[entry]]
    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Name) and node.id in definitions and node.id not in {*used, table}:
                used[node.id] = definitions[node.id]
                waiting.append(definitions[node.id])
    return sorted(map(ast.dump, [values[entry], *used.values()]))


def _defines(node: ast.AST) -> Iterable[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _without_prose(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        for block in ("body", "orelse", "finalbody"):
            lines = getattr(node, block, None)
            if isinstance(lines, list):
                setattr(node, block, [line for line in lines if not _is_prose(line)])
                if lines and block == "body" and not node.body:
                    node.body = [ast.Pass()]
    return tree


def _is_prose(line: ast.AST) -> bool:
    if isinstance(line, ast.Import | ast.ImportFrom):
        return True
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
