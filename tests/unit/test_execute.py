"""Running notebooks without a reader: settings, parameters, failures, results."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from eeutils.errors import InputError
from workflow import execute

PARAMETERS = """\
profile: str = "quick"
task: str = "movie"
backbone: str = "minilm-l6"
seed: int = 0
save_to: str = ""
ratio: float = 0.5
fast: bool = False"""


@pytest.fixture
def make_notebook(tmp_path: Path) -> Callable[..., Path]:
    def make(*sources: str) -> Path:
        cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *map(new_code_cell, sources)]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        path = tmp_path / "notebooks" / "05_example.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
        return path

    return make


def printed(path: Path) -> str:
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


# Settings of a batch


def test_a_batch_without_settings_takes_the_defaults() -> None:
    assert execute.validate({}) == execute.Batch("quick", ("movie",), (0,), "minilm-l6", 0)


@pytest.mark.parametrize("tasks", ["movie amazon", "movie, amazon", ["movie", "amazon"]])
@pytest.mark.parametrize("seeds", ["3 4", [3, 4], ["3", "4"]])
def test_lists_may_be_text_or_lists(tasks: object, seeds: object) -> None:
    settings = execute.validate({"profile": "smoke", "tasks": tasks, "seeds": seeds, "jobs": 2})
    assert settings == execute.Batch("smoke", ("movie", "amazon"), (3, 4), "minilm-l6", 2)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"task": "movie"}, r"unknown setting 'task' \(did you mean 'tasks'\?\); choose one of: .*profile.*tasks"),
        ({"profile": "quik"}, "unknown profile 'quik'.*full, quick, smoke"),
        ({"tasks": "movie moive"}, "unknown task 'moive'.*movie"),
        ({"backbone": "minilm"}, "minilm-l6"),
        ({"seeds": "one"}, "seeds takes whole numbers.*'one'"),
        ({"seeds": "-1"}, "seeds takes whole numbers.*'-1'"),
        ({"seeds": ""}, "seeds is empty"),
        ({"profile": "quick full"}, "profile takes one value, not 2"),
    ],
)
def test_a_wrong_setting_is_a_sentence_with_the_valid_names(config: dict[str, str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        execute.validate(config)


def test_a_backbone_becomes_one_folder_and_back() -> None:
    assert execute.to_folder("google/bert_uncased_L-4") == "google--bert_uncased_L-4"
    assert execute.from_folder("google--bert_uncased_L-4") == "google/bert_uncased_L-4"


# Parameters of a notebook


def test_text_takes_the_type_that_the_notebook_declares(make_notebook: Callable[..., Path]) -> None:
    given = {"task": "amazon", "seed": "3", "ratio": "1", "fast": "True", "save_to": "7"}
    values = execute.read_parameters(make_notebook(), given)
    assert values == {"task": "amazon", "seed": 3, "ratio": 1.0, "fast": True, "save_to": "7"}
    assert [type(value) for value in values.values()] == [str, int, float, bool, str]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"sed": "1"}, r"unknown parameter 'sed' \(did you mean 'seed'\?\); choose one of: .*profile"),
        ({"seed": "one"}, "parameter 'seed' takes a value of type int, not 'one'"),
        ({"fast": "yes"}, "parameter 'fast' takes a value of type bool, not 'yes'"),
        ({"task": "moive"}, "unknown task 'moive'"),
    ],
)
def test_a_wrong_parameter_stops_before_anything_runs(
    make_notebook: Callable[..., Path], tmp_path: Path, given: dict[str, str], sentence: str
) -> None:
    notebook = make_notebook("open('ran', 'w')")
    with pytest.raises(InputError, match=sentence):
        execute.run_notebook(notebook, tmp_path / "out" / "example.ipynb", given)
    assert not (tmp_path / "out").exists()


def test_a_missing_notebook_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no notebook"):
        execute.run_notebook(tmp_path / "nothing.ipynb", tmp_path / "out.ipynb", {})


# Running


def test_a_notebook_runs_with_its_parameters(make_notebook: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "out" / "example.ipynb"
    execute.run_notebook(make_notebook("print(task, seed + 1)"), output, {"task": "amazon", "seed": "3"})
    assert printed(output) == "amazon 4\n"
    assert list(output.parent.iterdir()) == [output]


def test_a_failing_notebook_leaves_only_its_failed_copy(make_notebook: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "out" / "example.ipynb"
    failed = tmp_path / "out" / "example.failed.ipynb"
    notebook = make_notebook("print('before')", "1 / 0", "print('after')")
    with pytest.raises(execute.NotebookError, match=r"cell \[3\]: ZeroDivisionError: (.|\n)*example.failed.ipynb"):
        execute.run_notebook(notebook, output, {})
    assert list(output.parent.iterdir()) == [failed]
    assert printed(failed) == "before\n"

    execute.run_notebook(make_notebook("print('repaired')"), output, {})
    assert list(output.parent.iterdir()) == [output]


def test_a_killed_notebook_is_a_sentence(make_notebook: Callable[..., Path], tmp_path: Path) -> None:
    notebook = make_notebook("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(execute.NotebookError, match="was killed, most often because the memory was used up"):
        execute.run_notebook(notebook, tmp_path / "out.ipynb", {})
    assert not (tmp_path / "out.ipynb").exists()


def test_in_place_keeps_outputs_and_nothing_of_the_machine(make_notebook: Callable[..., Path]) -> None:
    notebook = make_notebook("import sys\nprint('kept')\nprint('\\r 10%|#   ', file=sys.stderr)")
    execute.run_notebook(notebook, notebook, {}, for_commit=True)
    first = notebook.read_bytes()
    assert printed(notebook) == "kept\n"
    assert str(notebook.parent).encode() not in first
    executed = nbformat.read(notebook, as_version=4)
    assert [cell.execution_count for cell in executed.cells] == [1, 2]
    assert [dict(cell.metadata) for cell in executed.cells] == [{"tags": ["parameters"]}, {}]
    assert [output.name for output in executed.cells[1].outputs] == ["stdout"]

    execute.run_notebook(notebook, notebook, {}, for_commit=True)
    assert notebook.read_bytes() == first


def test_in_place_refuses_outputs_too_large_to_commit(make_notebook: Callable[..., Path]) -> None:
    notebook = make_notebook("print('x' * 300_000)")
    before = notebook.read_bytes()
    with pytest.raises(execute.NotebookError, match="at most 300 kB are committed"):
        execute.run_notebook(notebook, notebook, {}, for_commit=True)
    assert notebook.read_bytes() == before


def test_the_command_line_ends_with_a_sentence_not_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workflow.execute", "run", str(tmp_path / "nothing.ipynb"), "out.ipynb"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert run.stderr.startswith("error: there is no notebook")
    assert "Traceback" not in run.stderr


def test_one_batch_at_a_time(tmp_path: Path) -> None:
    lock = execute.hold(tmp_path / "folder" / ".lock")
    with pytest.raises(InputError, match="another batch is running"):
        execute.hold(tmp_path / "folder" / ".lock")
    lock.release()
    execute.hold(tmp_path / "folder" / ".lock").release()


def test_a_batch_that_was_killed_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    code = "import sys, time; from pathlib import Path; from workflow.execute import hold; "
    code += "lock = hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another batch is running"):
            execute.hold(path)
        other.kill()
    execute.hold(path).release()


# Results


def write_result(folder: Path, run: str, table: str, frame: pd.DataFrame, *, finished: bool = True) -> None:
    saved = folder / run
    (saved / "results").mkdir(parents=True, exist_ok=True)
    frame.to_csv(saved / "results" / f"{table}.csv", index=False)
    if finished:
        write_executed(saved.with_suffix(".ipynb"), 1.0)


def write_executed(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(metadata={"papermill": {"duration": seconds}}), path)


def test_collect_joins_all_tables_and_says_where_rows_come_from(tmp_path: Path) -> None:
    write_result(tmp_path, "movie/minilm-l6/seed0/01_a", "curve", pd.DataFrame({"layer": [1, 2], "score": [0.5, 0.6]}))
    write_result(tmp_path, "movie/google--bert/seed12/02_b", "claims", pd.DataFrame({"verdict": ["partly"]}))
    write_result(tmp_path, "movie/minilm-l6/seed1/01_a", "curve", pd.DataFrame({"layer": [9]}), finished=False)
    table = pd.read_csv(execute.collect(tmp_path))
    assert table.columns.tolist() == ["notebook", "task", "backbone", "seed", "table", "verdict", "layer", "score"]
    assert table[["notebook", "backbone", "seed", "table"]].to_numpy().tolist() == [
        ["02_b", "google/bert", 12, "claims"],
        ["01_a", "minilm-l6", 0, "curve"],
        ["01_a", "minilm-l6", 0, "curve"],
    ]
    assert table.score.tolist()[1:] == [0.5, 0.6]


def test_collect_keeps_what_a_table_says_itself(tmp_path: Path) -> None:
    shift = pd.DataFrame({"task": ["amazon", "tweet"], "score": [0.7, 0.6]})
    write_result(tmp_path, "movie/minilm-l6/seed0/01_a", "shift", shift)
    assert pd.read_csv(execute.collect(tmp_path)).task.tolist() == ["amazon", "tweet"]


def test_collect_without_tables_writes_the_columns(tmp_path: Path) -> None:
    assert execute.collect(tmp_path).read_text() == "notebook,task,backbone,seed,table\n"
    assert (tmp_path / "times.csv").read_text() == "notebook,task,backbone,seed,seconds\n"


def test_the_times_say_which_notebooks_are_slow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for notebook, seconds in (("movie/minilm-l6/seed0/01_a", 30.04), ("movie/google--bert/seed12/02_b", 90.0)):
        write_executed(tmp_path / f"{notebook}.ipynb", seconds)
    write_executed(tmp_path / "movie/minilm-l6/seed0/03_c.failed.ipynb", 999.0)
    execute.main(["collect", str(tmp_path)])
    assert (tmp_path / "times.csv").read_text().splitlines() == [
        "notebook,task,backbone,seed,seconds",
        "02_b,movie,google/bert,12,90.0",
        "01_a,movie,minilm-l6,0,30.0",
    ]
    assert capsys.readouterr().out == (
        "One after the other the notebooks took 2 minutes; the slowest: 02_b 1.5, 01_a 0.5.\n"
    )


def test_an_executed_notebook_says_how_long_it_took(make_notebook: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "movie/minilm-l6/seed0/05_example.ipynb"
    execute.run_notebook(make_notebook("import time; time.sleep(0.2)"), output, {})
    assert 0.2 < execute.times_of(tmp_path).seconds.item() < 60
