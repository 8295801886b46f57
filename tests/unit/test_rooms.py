"""The package as a house: imports go down only, and what belongs to one room stands in no other."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eeutils.models.families import FAMILIES

ROOT = Path(__file__).parents[2]

FLOORS = (
    {"eeutils"},
    {"errors", "files"},
    {"exiting", "data"},
    {"models"},
    {"training"},
    {"papers", "reporting", "deploy"},
    {"study", "workflow"},
    {"trial"},
    {"__main__"},
)
"""From the ground up. Rooms on one floor do not know each other, but for the passages below."""

PASSAGES = {("reporting", "eeutils.papers.budgets")}
"""(room, module of another room on its floor that it may import)."""

PAPER_LINES = 150
"""Of code, below the docstring of a paper's module: beyond that not everything in it can be the paper's idea."""

MODULES = sorted([*ROOT.glob("eeutils/**/*.py"), *ROOT.glob("workflow/*.py")])


def room_of(module: str) -> str:
    """The room of a module by its dotted name: "eeutils.models.exits" stands in "models"."""
    top, *inside = module.split(".")
    return inside[0] if top == "eeutils" and inside else top


def floor_of(room: str) -> int:
    """The number of a room's floor."""
    numbers = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert numbers, f"{room!r} is no room of the house; give it a floor in FLOORS"
    return numbers[0]


def imports_of(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything of this repository that a module imports, wherever in it the line stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "modules are imported by their full names"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in {"eeutils", "workflow"})


def imports_that_go_up(room: str, source: str) -> list[str]:
    """A sentence for each import of a module in this room that does not go down."""
    return [
        f"line {line}: {room} imports {name} of {other}, which is not below it"
        for line, name in imports_of(source)
        for other in [room_of(name)]
        if other != room
        and floor_of(other) >= floor_of(room)
        and not any(room == own and f"{name}.".startswith(f"{module}.") for own, module in PASSAGES)
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert imports_that_go_up(room_of(module.removesuffix(".__init__")), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "line", "other"),
    [
        ("data", "from eeutils.exiting.evidence import Evidence", "exiting"),
        ("exiting", "def late():\n    import eeutils.models.record", "models"),
        ("models", "from eeutils import training", "training"),
        ("papers", "from eeutils.reporting import plots", "reporting"),
        ("reporting", "from eeutils.papers import budgets, pabee", "papers"),
        ("study", "from workflow.execute import execute", "workflow"),
        ("errors", "from eeutils.files import sha256", "files"),
    ],
)
def test_an_import_that_goes_up_is_told_with_both_rooms(room: str, line: str, other: str) -> None:
    [sentence] = imports_that_go_up(room, line)
    assert f"{room} imports eeutils" in sentence or f"{room} imports workflow" in sentence
    assert sentence.endswith(f"of {other}, which is not below it")


def test_what_goes_down_or_stays_in_its_room_is_welcome() -> None:
    assert imports_that_go_up("reporting", "from eeutils.papers.budgets import budget_of") == []
    assert imports_that_go_up("models", "from eeutils.exiting import evidence\nimport eeutils.models.exits") == []
    assert imports_that_go_up("data", "import torch\nfrom datasets import Dataset") == []


def modules_after_importing(statement: str) -> set[str]:
    """Top names in sys.modules of a fresh process after a statement."""
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name.partition(".")[0] for name in json.loads(printed)}


def test_arithmetic_on_recorded_answers_needs_no_model_no_data_and_no_network() -> None:
    names = [path.stem for path in ROOT.glob("eeutils/exiting/*.py") if path.stem != "__init__"]
    loaded = modules_after_importing(f"from eeutils.exiting import {', '.join(sorted(names))}")
    models = {"transformers", "tokenizers", "onnx", "onnxruntime", "accelerate"}
    network = {"datasets", "huggingface_hub", "requests", "httpx", "httpx2", "unearth", "urllib3", "aiohttp"}
    assert loaded & (models | network) == set()
    assert {"eeutils", "torch", "sklearn"} <= loaded


def test_rules_are_there_at_once() -> None:
    loaded = modules_after_importing("import eeutils.exiting.rules")
    assert loaded & {"pandas", "sklearn", "scipy", "matplotlib"} == set()


def test_families_of_encoders_are_named_where_they_are_described_and_nowhere_else() -> None:
    elsewhere = [
        f"{path.relative_to(ROOT)}:{node.lineno} names {node.value!r}"
        for path in MODULES
        if path.name != "families.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in FAMILIES
    ]
    assert elsewhere == []


def lines_of_code(source: str) -> int:
    """Lines that are neither blank nor a comment nor part of a docstring."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = [line.strip() for number, line in enumerate(source.splitlines(), start=1) if number not in prose]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def test_lines_of_code_by_hand() -> None:
    function = 'def square(r):\n    """Of a\n    number."""\n    # r times r\n    return r * r\n'
    source = f'"""Powers."""\n\nimport math\n\n\n{function}'
    assert lines_of_code(source) == 3


@pytest.mark.parametrize("path", sorted(ROOT.glob("eeutils/papers/**/*.py")), ids=lambda path: path.stem)
def test_a_paper_fits_on_a_few_pages(path: Path) -> None:
    assert lines_of_code(path.read_text(encoding="utf-8")) <= PAPER_LINES
