"""README and docs keep their word: each of their commands is run here, or shown to be one that the repository has."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from eeutils.data.specs import spec_of
from eeutils.data.tasks import load_task
from eeutils.files import repository_root
from tests.helpers import untyped
from workflow import rivals, serving

ROOT = repository_root()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_COMMANDS = [
    ROOT / "README.md",
    *(ROOT / f"docs/{name}.md" for name in ("clusters", "measuring", "own", "package")),
]
"""What a reader copies from these is run here; other pages have tests of their own."""


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", "\n".join(map(read, WITH_COMMANDS)), flags=re.MULTILINE | re.DOTALL
    )


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def calls_make(command: str) -> bool:
    """Whether a command is `make ...`, environment variables before it or not."""
    return re.match(r"(\w+=\S+ )*make ", command) is not None


@pytest.mark.parametrize("command", list(filter(calls_make, commands())))
def test_a_make_command_names_a_target_and_variables_that_exist(command: str) -> None:
    # -n: the Makefile reads everything and refuses what it does not know, and runs nothing.
    planned = run(["bash", "-c", command.replace("make ", "make -n ", 1)])
    assert planned.returncode == 0, planned.stderr


def test_the_papermill_command_runs(tmp_path: Path) -> None:
    (command,) = [line for line in commands() if "papermill" in line]
    tool, notebook, out, *parameters = command.split()
    assert tool.endswith("/papermill")
    assert out == "out.ipynb"
    papermill = [sys.executable, "-m", "papermill", "--no-progress-bar", notebook, str(tmp_path / out)]
    done = run([*papermill, *parameters, "-p", "profile", "smoke"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / out).exists()


@pytest.mark.parametrize("command", [line for line in commands() if "eeutils try" in line])
def test_a_trial_of_ones_own_table_ends_in_a_line_of_code(command: str, tmp_path: Path) -> None:
    tool, *words, _ = command.split()
    assert tool.endswith("/python")
    assert words == ["-m", "eeutils", "try"]
    table = tmp_path / "tickets.csv"
    rows = [f"ticket {row} is {('late', 'fine')[row % 2]},{('urgent', 'routine')[row % 2]}" for row in range(120)]
    table.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    done = run([sys.executable, *words, str(table), "--profile", "smoke", "--save-to", str(tmp_path / "tried")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "from eeutils import deploy; print(deploy.from_pretrained(" in done.stdout
    assert (tmp_path / "tried" / "model").is_dir()


def test_every_command_is_one_that_is_tested_here() -> None:
    assert all(calls_make(line) or "papermill" in line or "eeutils try" in line for line in commands())


def test_the_python_examples_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, exported = blocks("python")
    assert '"quick"' in code
    names: dict[str, object] = {}
    exec(compile(code.replace('"quick"', '"smoke"'), "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "layer_speedup" in printed
    assert printed.count("tensor(") == 2
    monkeypatch.chdir(tmp_path)
    with untyped():
        exec(compile(exported, "README.md", "exec"), names)
    assert {"negative", "positive"} >= set(names["answered"].answers)
    assert (tmp_path / "reviews" / "README.md").exists()


def test_the_own_task_example_loads(tmp_path: Path) -> None:
    (card,) = blocks("toml")
    folder = tmp_path / "tickets"
    folder.mkdir()
    (folder / "task.toml").write_text(card, encoding="utf-8")
    for split in ("train", "test"):
        rows = [f"{split} ticket {row}\t{('routine', 'urgent')[row % 2]}" for row in range(120)]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    assert spec_of(str(folder)).class_names == ("routine", "urgent")
    assert len(load_task(str(folder)).test) == 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_figures_exist(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", read(page))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("measured", [rivals, serving], ids=["rivals", "serving"])
def test_a_page_on_what_was_measured_is_what_its_table_says(measured: ModuleType) -> None:
    assert read(measured.PAGE) == measured.page(pd.read_csv(measured.OUTPUT))


def rooms_of_the_map() -> dict[str, set[str]]:
    """Folder -> the modules that docs/package.md names in it, in its order."""
    page = read(ROOT / "docs" / "package.md")
    lines = re.findall(r"^\| `((?:eeutils|workflow)/[a-z/]*)`[^|]*\|(.*)\|$", page, flags=re.MULTILINE)
    return {room.rstrip("/"): set(re.findall(r"`(\w+)`", text)) for room, text in lines}


def modules() -> list[Path]:
    paths = [*ROOT.glob("eeutils/**/*.py"), *ROOT.glob("workflow/*.py")]
    return [path.relative_to(ROOT) for path in paths]


def test_the_map_names_every_module_and_no_other() -> None:
    rooms: dict[str, set[str]] = {}
    for path in modules():
        if not path.stem.startswith("__"):
            rooms.setdefault(str(path.parent), set()).add(path.stem)
    assert rooms_of_the_map() == rooms


def test_a_module_imports_from_its_own_room_and_from_those_below_it() -> None:
    order = list(rooms_of_the_map())
    for path in modules():
        if path == Path("eeutils/__main__.py"):  # the front door stands above all rooms
            continue
        source = (ROOT / path).read_text(encoding="utf-8")
        for module in re.findall(r"^\s*from ((?:eeutils|workflow)[\w.]*) import", source, flags=re.MULTILINE):
            place = module.replace(".", "/")
            room = max((room for room in order if f"{place}/".startswith(f"{room}/")), key=len)
            assert order.index(room) >= order.index(str(path.parent)), f"{path} imports from {module}"
