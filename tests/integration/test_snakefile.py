"""The batch engine, driven as `make reproduce` drives it, over notebooks that only say that they ran."""

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from workflow.execute import hold

ROOT = Path(__file__).parent.parent.parent
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]

FIRST, SECOND = "09_generation", "11_smartbert"
"""The longest notebooks start first."""

PARAMETERS = """\
profile: str = "quick"
task: str = "movie"
backbone: str = "minilm-l6"
seed: int = 0
save_to: str = \"\""""

BODY = """\
import os, time
from pathlib import Path
time.sleep(float(os.environ.get("SLOW", "0")))
results = Path(save_to, "results")
results.mkdir()
results.joinpath("table.csv").write_text(f"threads\\n{os.environ['OMP_NUM_THREADS']}\\n")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a stand-in for every notebook of the repository; its name has a space."""
    folder = tmp_path / "a folder"
    (folder / "notebooks").mkdir(parents=True)
    for name in NAMES:
        cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(BODY)]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / f"notebooks/{name}.ipynb")
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    return [*snakemake, "--cores", "2", "--nolock", "--rerun-incomplete", "--config", "profile=smoke", *arguments]


def reproduce(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *arguments), capture_output=True, text=True, check=False)


def test_runs_everything_once_and_collects_it(folder: Path) -> None:
    run = reproduce(folder, "jobs=2")
    assert run.returncode == 0, run.stderr
    table = pd.read_csv(folder / "reproduced/smoke/results.csv")
    # Every notebook in notebooks/ is in the Snakefile's list, and two jobs share the two cores.
    assert table.notebook.tolist() == NAMES
    assert table.threads.unique().tolist() == [1]
    assert sorted(pd.read_csv(folder / "reproduced/smoke/times.csv").notebook) == NAMES
    assert "One after the other the notebooks took" in run.stdout

    assert "Nothing to be done" in reproduce(folder, "jobs=2").stderr

    changed = folder / f"notebooks/{NAMES[-1]}.ipynb"
    changed.write_text(changed.read_text().replace("import os, time", "import time, os"))
    # Looking at the plan needs no lock: a batch may be running.
    lock = hold(folder / "reproduced/.lock")
    plan = reproduce(folder, "jobs=2", "--dry-run").stdout
    lock.release()
    assert f"notebook_{NAMES[-1]}" in plan
    assert f"notebook_{NAMES[0]}" not in plan


def test_a_wrong_setting_stops_before_anything_runs(folder: Path) -> None:
    run = reproduce(folder, "tasks=moive")
    assert run.returncode != 0
    assert "unknown task 'moive'" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (folder / "reproduced").exists()


def test_goes_on_after_being_killed(folder: Path) -> None:
    killed = subprocess.Popen(
        command(folder, "jobs=1"),
        env=os.environ | {"SLOW": "4"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    runs = folder / "reproduced/smoke/movie/minilm-l6/seed0"
    deadline = time.monotonic() + 120
    while not (runs / SECOND).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(killed.pid, 9)
    killed.wait()
    first = runs / f"{FIRST}.ipynb"
    assert first.exists()
    assert not (runs / f"{SECOND}.ipynb").exists()
    written = first.stat().st_mtime_ns

    run = reproduce(folder, "jobs=1")
    assert run.returncode == 0, run.stderr
    assert first.stat().st_mtime_ns == written
    assert pd.read_csv(folder / "reproduced/smoke/results.csv").notebook.tolist() == NAMES
