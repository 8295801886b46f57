"""Each page of solutions answers every exercise of its notebook, and is committed as it ran; one of them runs here."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from workflow.execute import run_notebook

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))

RUN_HERE = ("00_early_exit_from_scratch",)
"""The suite's time is scarce: the others are held to their committed outputs."""


@pytest.fixture(params=SOLUTIONS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def exercises(notebook: NotebookNode) -> list[str]:
    """The numbers of the exercises that a notebook asks for."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    asked = prose.partition("## Exercises")[2]
    return re.findall(r"^(\d+)\. ", asked, flags=re.MULTILINE)


def answered(solutions: NotebookNode) -> dict[str, str]:
    """Number -> the text and code that answer it."""
    whole = "\n".join(cell.source for cell in solutions.cells)
    parts = re.split(r"^## Exercise (\d+)\n", whole, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_exercise_is_answered_in_its_order_with_what_it_costs(path: Path) -> None:
    asked = exercises(nbformat.read(NOTEBOOKS / path.name, as_version=4))
    found = answered(nbformat.read(path, as_version=4))
    assert asked
    assert list(found) == asked
    for number, text in found.items():
        first = text.strip().splitlines()[0]
        assert re.search("[Ss]econds|minute|training", first), f"exercise {number} does not say what it costs: {first}"


def test_is_small_and_was_executed_in_order_without_errors(path: Path) -> None:
    assert path.stat().st_size < 300_000
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert all(figure.metadata["image/png"]["alt"] for figure in figures)


@pytest.mark.parametrize("name", RUN_HERE)
def test_runs_at_the_smallest_profile(name: str, tmp_path: Path) -> None:
    run_notebook(NOTEBOOKS / "solutions" / f"{name}.ipynb", tmp_path / "out.ipynb", {"profile": "smoke"})
    assert (tmp_path / "out.ipynb").is_file()
