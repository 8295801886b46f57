"""Every notebook runs from top to bottom, and is committed in a state worth reading."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

HERE = Path(__file__).parent
NOTEBOOKS = sorted((HERE.parent.parent / "notebooks").glob("*.ipynb"))

# Where somebody's files lie: outputs may name paths, but none that exists on one machine only.
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|work|mnt|private|var|opt)/|\b[A-Z]:\\\\")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def texts(output: NotebookNode) -> list[str]:
    """Everything in an output that a reader sees as text."""
    data = output.get("data", {})
    return [output.get("text", ""), *(value for kind, value in data.items() if kind.startswith("text/"))]


def test_runs_and_shows_what_it_says(path: Path, tmp_path: Path) -> None:
    """Run at the smoke profile; outputs of cells marked NBVAL_CHECK_OUTPUT must come out as committed."""
    parameters = {"profile": "smoke", "save_to": str(tmp_path / "saved")}
    copy = tmp_path / path.name
    nbformat.write(parameterize_notebook(load_notebook_node(str(path)), parameters), copy)
    nbval = ["-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "600"]
    sanitizer = ["--nbval-sanitize-with", str(HERE / "sanitize.cfg")]
    run = subprocess.run(
        [sys.executable, *nbval, *sanitizer, "-p", "no:cacheprovider", str(copy)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_is_small(path: Path) -> None:
    assert path.stat().st_size < 300_000


def test_was_executed_in_order(notebook: NotebookNode) -> None:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_holds_no_errors_warnings_or_progress_bars(notebook: NotebookNode) -> None:
    for output in outputs(notebook):
        assert output.output_type != "error", f"{output.ename}: {output.evalue}"
        assert output.get("name") != "stderr", output.text


def test_names_no_path_of_one_machine(notebook: NotebookNode) -> None:
    found = [text for output in outputs(notebook) for text in texts(output) if MACHINE_PATH.search(text)]
    assert found == []


def test_figures_have_alternative_text(notebook: NotebookNode) -> None:
    for output in outputs(notebook):
        if "image/png" in output.get("data", {}):
            assert output.metadata.get("image/png", {}).get("alt", "").strip(), "a figure without alternative text"


def test_begins_with_its_parameters(notebook: NotebookNode) -> None:
    """papermill finds the defaults by the tag; every notebook takes the same settings."""
    first = code_cells(notebook)[0]
    assert "parameters" in first.metadata.get("tags", [])
    namespace: dict[str, object] = {}
    exec(first.source, namespace)
    settings = ("profile", "task", "backbone", "seed", "save_to")
    assert [namespace[name] for name in settings] == ["quick", "movie", "minilm-l6", 0, ""]
