"""A measurement with a table and a page of its own: its command line, and the writing of both."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eeutils.files import atomic_write


@dataclass(frozen=True)
class Measurement:
    """What is measured by `python -m workflow.<name>`.

    Attributes:
        name: of the module.
        about: in a sentence, for the command's help.
        measure: (profile, task, encoder, size) -> the table.
        page: the table -> Markdown.
        full, quick: sizes; the quick one shows that it runs.
        table, told: where the committed table and its page are.
    """

    name: str
    about: str
    measure: Callable[[str, str, str, Any], pd.DataFrame]
    page: Callable[[pd.DataFrame], str]
    full: Any
    quick: Any
    table: Path
    told: Path

    def write_page(self) -> None:
        """The page of the committed table, where docs have it."""
        with atomic_write(self.told) as partial_file:
            partial_file.write_text(self.page(pd.read_csv(self.table)), encoding="utf-8")

    def run(self, arguments: list[str] | None = None) -> None:
        """The command line: print the table and write it, whole or not at all."""
        parser = argparse.ArgumentParser(prog=f"python -m workflow.{self.name}", description=self.about)
        parser.add_argument("--quick", action="store_true", help="in a minute or two: the figures mean nothing")
        parser.add_argument("--task", default="movie")
        parser.add_argument("--backbone", default="minilm-l6")
        parser.add_argument(
            "--output", type=Path, help=f"the table as CSV (default: {self.table.name} in data/results/)"
        )
        options = parser.parse_args(arguments)
        profile, size = ("smoke", self.quick) if options.quick else ("quick", self.full)
        table = self.measure(profile, options.task, options.backbone, size)
        output = options.output or (None if options.quick else self.table)
        if output is not None:
            with atomic_write(output) as partial_file:
                table.to_csv(partial_file, index=False, float_format="%.4g")
        if output == self.table:
            self.write_page()
        with pd.option_context("display.width", None, "display.max_rows", None):
            sys.stdout.write(table.drop(columns=["threads", "commit"]).round(3).to_string(index=False) + "\n")
