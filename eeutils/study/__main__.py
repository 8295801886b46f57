"""The command line of the study: see the package's first lines."""

import argparse
import sys
from pathlib import Path

from eeutils.data.sources import SourceError
from eeutils.errors import InputError
from eeutils.files import atomic_write, repository_root
from eeutils.study.entries import SEARCHED, train, train_search
from eeutils.study.explored import explored
from eeutils.study.headline import write_readme
from eeutils.study.plan import announce
from eeutils.study.tables import measure, tables, write
from eeutils.training.settings import Setting


def main(arguments: list[str] | None = None) -> None:
    """The command line: see the module's first lines."""
    parser = argparse.ArgumentParser(prog="python -m eeutils.study", description="The study behind the scoreboard.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, last in (("train", "method"), ("search", "method"), ("time", "file")):
        one = commands.add_parser(name)
        for argument, kind in (("profile", str), ("task", str), ("backbone", str), ("seed", int), (last, str)):
            one.add_argument(argument, type=kind)
    shown = commands.add_parser("explorer")
    for argument, kind in (("profile", str), ("task", str), ("backbone", str), ("seed", int)):
        shown.add_argument(argument, type=kind)
    many = commands.add_parser("tables")
    for argument in ("profile", "backbone", "folder"):
        many.add_argument(argument)
    many.add_argument("--tasks", nargs="+", required=True)
    many.add_argument("--seeds", nargs="+", type=int, required=True)
    many.add_argument("--times", nargs="*", type=Path, default=[])
    commands.add_parser("readme")
    planned = commands.add_parser("plan")
    for argument in ("profile", "backbone"):
        planned.add_argument(argument)
    planned.add_argument("--tasks", nargs="+", required=True)
    planned.add_argument("--seeds", nargs="+", type=int, required=True)
    given = parser.parse_args(arguments)
    try:
        if given.command == "tables":
            write(tables(given.profile, given.backbone, given.tasks, given.seeds, given.times), Path(given.folder))
        elif given.command == "readme":
            write_readme(repository_root() / "README.md")
        elif given.command == "plan":
            told = announce(given.profile, given.backbone, given.tasks, given.seeds)
            sys.stdout.write(f"{told}\n")
        else:
            profile = SEARCHED if given.command == "search" else given.profile
            setting = Setting.from_profile(profile, given.task, given.backbone, given.seed)
            if given.command == "search":
                train_search(setting, given.method)
            elif given.command == "train":
                train(profile, setting, given.method)
            elif given.command == "explorer":
                explored(profile, setting)
            else:
                with atomic_write(given.file) as partial:
                    measure(given.profile, setting).to_csv(partial, index=False)
    except (InputError, SourceError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
