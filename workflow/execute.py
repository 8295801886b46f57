"""Notebooks without a reader: checked parameters, one run, many runs, one table of what they found.

`make reproduce` (through the Snakefile) and `make notebooks` stand on this. By hand:

    python -m workflow.execute run notebooks/01_deebert_pabee.ipynb out.ipynb -p task movie -p seed 1
    python -m workflow.execute in-place notebooks/01_deebert_pabee.ipynb
    python -m workflow.execute collect reproduced/quick

A notebook gets its settings as parameters and writes what should outlast it to the folder `save_to`:
`figures/*.png`, and `results/*.csv` in long form.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pandas as pd
import papermill
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from eeutils.errors import InputError, unknown
from eeutils.files import atomic_write
from workflow.file_size import LIMITS

DEFAULTS = {"profile": "quick", "tasks": "movie", "seeds": "0", "backbone": "minilm-l6", "jobs": "0"}

FAILED = ".failed.ipynb"
"""What the executed copy of a notebook ends in that did not run to its end."""


class NotebookError(RuntimeError):
    """A notebook that did not run to its end: which, where, why, and where its executed copy lies."""


@dataclass(frozen=True)
class Batch:
    """What a batch runs: every notebook, for every task and seed.

    Attributes:
        profile: how much is run: a name from `eeutils.training.settings.PROFILES`.
        tasks: names from `eeutils.data.specs.TASKS`, or folders of one's own.
        seeds: one run each.
        backbone: a backbone's name, as a notebook takes it.
        jobs: notebooks at a time; 0 leaves it to the number of cores.
    """

    profile: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    backbone: str
    jobs: int

    @property
    def folder(self) -> str:
        """Where the outputs go; `{task}` and `{seed}` are left open."""
        return f"reproduced/{self.profile}/{{task}}/{to_folder(self.backbone)}/seed{{seed}}"


def validate(config: Mapping[str, object]) -> Batch:
    """Read the settings of a batch, each given as text, a number or a list; missing ones take `DEFAULTS`.

    Raises:
        InputError: a setting, profile, task or backbone that does not exist, or a seed or job count that is no number.
    """
    for name in config:
        if name not in DEFAULTS:
            raise unknown("setting", name, DEFAULTS)
    texts = {name: _words(config.get(name, default)) for name, default in DEFAULTS.items()}
    for name in ("profile", "backbone", "jobs"):
        if len(texts[name]) != 1:
            raise InputError(f"{name} takes one value, not {len(texts[name])}: {' '.join(texts[name])!r}")
    for name in ("tasks", "seeds"):
        if not texts[name]:
            raise InputError(f"{name} is empty; give at least one, separated by spaces")
    batch = Batch(
        profile=texts["profile"][0],
        tasks=texts["tasks"],
        seeds=tuple(_whole_number("seeds", seed) for seed in texts["seeds"]),
        backbone=texts["backbone"][0],
        jobs=_whole_number("jobs", texts["jobs"][0]),
    )
    for task in batch.tasks:
        if from_folder(to_folder(task)) != task:
            raise InputError(f"the folder of task {task!r} has two hyphens in a row; rename it")
        _check_setting({"profile": batch.profile, "task": task, "backbone": batch.backbone})
    return batch


def run_notebook(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, object],
    *,
    check: bool = True,
    for_commit: bool = False,
) -> None:
    """Execute a notebook from top to bottom and write the executed copy to `output`, whole or not at all.

    Args:
        notebook: the notebook to run.
        output: where the executed copy goes; may be the notebook itself.
        parameters: values for the names in its parameters cell; text is turned into the type that the cell declares.
        check: whether to look up profile, task and backbone first; a batch has done so for all of its runs.
        for_commit: leave out what differs between machines (see `tidy`) and refuse a copy that is too large for it.

    Raises:
        InputError: no such notebook, or a parameter that the notebook does not have or that has a wrong value.
        NotebookError: a cell failed; the executed copy is kept beside `output` as `*.failed.ipynb`.
    """
    values = read_parameters(notebook, parameters)
    if check:
        _check_setting(values)
    failed = output.with_suffix(FAILED)
    # `disable=None`: a bar in a terminal, silence in a log file.
    bar = {"desc": notebook.stem, "disable": None, "leave": False}
    # papermill saves after every cell, so it needs a place of its own until the last one has run.
    with TemporaryDirectory() as scratch:
        executed = Path(scratch, notebook.name)
        # Sockets that only this user can open, where ports would be open to everybody on a cluster node.
        private = Config(KernelManager={"transport": "ipc", "ip": f"{scratch}/kernel"})
        try:
            papermill.execute_notebook(notebook, executed, values, progress_bar=bar, config=private)
            problem = _make_ready_to_commit(executed) if for_commit else ""
        except PapermillExecutionError as error:
            problem = f"failed in cell [{error.exec_count}]: {error.ename}: {error.evalue}"
        except DeadKernelError:
            problem = "was killed, most often because the memory was used up; try fewer jobs or a smaller profile."
        with atomic_write(failed if problem else output) as partial:
            shutil.copyfile(executed, partial)
    if problem:
        raise NotebookError(f"{notebook} {problem}\nThe executed copy is {failed}.")
    failed.unlink(missing_ok=True)


def read_parameters(notebook: Path, given: Mapping[str, object]) -> dict[str, object]:
    """The given parameters in the types that the notebook's parameters cell declares.

    papermill itself only warns of an unknown name, after which the default would run unnoticed.

    Raises:
        InputError: no such notebook, an unknown parameter, or a value of the wrong type.
    """
    if not notebook.is_file():
        raise InputError(f"there is no notebook {str(notebook)!r}; they are in the folder notebooks/")
    declared = papermill.inspect_notebook(notebook)
    values = {}
    for name, value in given.items():
        if name not in declared:
            raise unknown("parameter", name, declared)
        kind = declared[name]["inferred_type_name"]
        try:
            values[name] = _READERS.get(kind, str)(value) if isinstance(value, str) else value
        except (KeyError, ValueError):
            raise InputError(f"parameter {name!r} takes a value of type {kind}, not {value!r}") from None
    return values


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Take out what differs from run to run or machine to machine: timings, paths, given parameters, progress bars."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    # What papermill adds for `save_to` is no part of the notebook.
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    count = 0
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = [output for output in cell.outputs if not _is_progress_bar(output)]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    return notebook


def collect(folder: Path) -> Path:
    """Write `folder/results.csv`: every table of every finished notebook below, with where each row comes from; and
    beside it `times.csv`, see `times_of`.

    The columns notebook, task, backbone, seed and table come first; one that a table has itself is kept as it is.
    """
    frames = []
    for file in sorted(folder.glob("*/*/seed*/*/results/*.csv")):
        notebook = file.parents[1].with_suffix(".ipynb")
        if not notebook.is_file():
            continue
        frame, origin = pd.read_csv(file), _origin(notebook, folder) | {"table": file.stem}
        frames.append(frame.assign(**{name: value for name, value in origin.items() if name not in frame}))
    origin_columns = ["notebook", "task", "backbone", "seed", "table"]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=origin_columns)
    others = [name for name in table.columns if name not in origin_columns]
    target = folder / "results.csv"
    for path, whole in ((target, table[origin_columns + others]), (folder / "times.csv", times_of(folder))):
        with atomic_write(path) as partial:
            whole.to_csv(partial, index=False)
    return target


def times_of(folder: Path) -> pd.DataFrame:
    """What every finished notebook below took, the slowest first: columns notebook, task, backbone, seed, seconds."""
    rows = []
    for notebook in sorted(folder.glob("*/*/seed*/*.ipynb")):
        if notebook.name.endswith(FAILED):
            continue
        took = nbformat.read(notebook, as_version=4).metadata.papermill.duration
        rows.append(_origin(notebook, folder) | {"seconds": round(took, 1)})
    frame = pd.DataFrame(rows, columns=["notebook", "task", "backbone", "seed", "seconds"])
    return frame.sort_values("seconds", ascending=False, kind="stable", ignore_index=True)


def in_words(times: pd.DataFrame, most: int = 5) -> str:
    """Where the time of a batch went: its sum, and the notebooks that took most of it."""
    minutes = times.groupby("notebook", sort=False).seconds.sum().sort_values(ascending=False) / 60
    named = ", ".join(f"{name} {took:.1f}" for name, took in minutes.head(most).items())
    return f"One after the other the notebooks took {minutes.sum():.0f} minutes; the slowest: {named}."


def _origin(notebook: Path, folder: Path) -> dict[str, str | int]:
    """Where an executed notebook of a batch comes from."""
    task, backbone, seed, _ = notebook.relative_to(folder).parts
    return {
        "notebook": notebook.stem,
        "task": from_folder(task),
        "backbone": from_folder(backbone),
        "seed": int(seed.removeprefix("seed")),
    }


def to_folder(name: str) -> str:
    """A backbone's or a task's name as the name of one folder: `google/bert_uncased` becomes `google--bert_uncased`."""
    return name.replace("/", "--")


def from_folder(folder: str) -> str:
    """The inverse of `to_folder`; a name on the hub cannot hold two hyphens in a row."""
    return folder.replace("--", "/")


def hold(path: Path) -> FileLock:
    """Keep other batches out until the returned lock is released or this process ends, however it ends.

    Raises:
        InputError: another batch holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            "another batch is running in this folder; wait for it or stop it, then run this again"
        ) from None
    return lock


def main(arguments: list[str] | None = None) -> None:
    """The command line: see the module's first lines."""
    parser = argparse.ArgumentParser(prog="python -m workflow.execute", description="Run notebooks headlessly.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run one notebook with parameters")
    run.add_argument("notebook", type=Path)
    run.add_argument("output", type=Path)
    run.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    run.add_argument("--unchecked", action="store_true", help="profile, task and backbone are known to exist")
    in_place = commands.add_parser("in-place", help="run notebooks and keep their outputs, ready to commit")
    in_place.add_argument("notebooks", type=Path, nargs="+")
    gather = commands.add_parser("collect", help="gather the tables of a batch into its results.csv")
    gather.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            run_notebook(options.notebook, options.output, dict(options.parameters), check=not options.unchecked)
        elif options.command == "in-place":
            for notebook in options.notebooks:
                _run_in_place(notebook)
        else:
            collect(options.folder)
            print(in_words(times_of(options.folder)))
    except (InputError, NotebookError, OSError) as error:
        sys.exit(f"error: {error}")


def _run_in_place(notebook: Path) -> None:
    """Execute a notebook where it lies, and put what it keeps where README and readers look for it."""
    root = notebook.resolve().parent.parent
    with TemporaryDirectory() as saved:
        run_notebook(notebook, notebook, {"save_to": saved}, for_commit=True)
        for kept, home in (("figures", root / "figures"), ("results", root / "data" / "results")):
            for file in sorted((Path(saved) / kept).glob("*")):
                with atomic_write(home / file.name) as partial:
                    shutil.copyfile(file, partial)


def _make_ready_to_commit(notebook: Path) -> str:
    """Tidy an executed notebook; what keeps it from being committed, or "" if nothing does."""
    text = nbformat.writes(tidy(nbformat.read(notebook, as_version=4))) + "\n"
    size, limit = len(text.encode()), LIMITS[".ipynb"]
    if size > limit:
        return (
            f"would be {size / 1000:.0f} kB with its outputs, and at most {limit / 1000:.0f} kB are committed: draw "
            "fewer or smaller figures."
        )
    notebook.write_text(text, encoding="utf-8")
    return ""


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(re.findall(r"[^\s,]+", value))
    return tuple(map(str, value)) if isinstance(value, Iterable) else (str(value),)


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{name} takes whole numbers from 0 on, separated by spaces, not {text!r}")
    return int(text)


_READERS: dict[str, Callable[[str], object]] = {
    "int": int,
    "float": float,
    "bool": {"True": True, "False": False}.__getitem__,
}


def _check_setting(values: Mapping[str, object]) -> None:
    # Imported here: it takes seconds, because it reaches the libraries for models, and most commands do without.
    from eeutils.training import settings

    known = {name: values.get(name, DEFAULTS.get(name)) for name in ("profile", "backbone")}
    settings.check(known["profile"], values.get("task", DEFAULTS["tasks"]), known["backbone"])


def _is_progress_bar(output: NotebookNode) -> bool:
    return output.output_type == "stream" and output.name == "stderr" and "\r" in output.text


if __name__ == "__main__":
    main()
