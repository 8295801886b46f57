"""One trial from a path to the table that decides, told line by line."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from eeutils.models.backbone import described
from eeutils.training.runs import runs_dir
from eeutils.trial import measured, report
from eeutils.trial.recommended import why


def run(path: str, profile: str, backbone: str, seed: int, save_to: Path | None = None) -> Path:
    """Train, measure, tell, and keep tables and model; the folder that holds them.

    Raises:
        InputError: whatever the data, a parameter or training refuse.
    """
    _say(f"reading {path}")
    setting = measured.setting_of(profile, path, backbone, seed)
    trial = measured.train(setting, lambda sentence: _say(f"{sentence} ({described(backbone)})"))
    for line in report.about(trial):
        _tell(line)
    _tell("")
    for line in why(trial.early.test.regression):
        _tell(line)
    _say("measuring scores on test, thresholds from dev")
    points = measured.table(trial)
    _say("measuring time, all speed-ups taking turns")
    clock = measured.times(trial)
    folder = save_to or runs_dir() / "tried" / f"{Path(path).stem}-{Path(backbone).name}-{profile}-seed{seed}"
    measured.save(trial, points, clock, folder)
    _tell("")
    sys.stdout.write(report.decisive_table(trial, points, clock).T.to_string() + "\n\n")
    _tell(report.LEGEND)
    _tell("")
    for line in report.judged(trial, points, clock):
        _tell(line)
    if profile == "smoke":
        _tell("The profile smoke shows that everything runs; its numbers mean nothing.")
    _tell("")
    _tell(f"Tables and model are in {folder}. To use the model:")
    sys.stdout.write(f"\n    {report.line_of_code(folder / 'model', len(trial.spec.text_columns) == 2)}\n")
    return folder


def _say(what: str) -> None:
    """Progress, apart from what was found."""
    sys.stderr.write(f"... {what}\n")


def _tell(line: str) -> None:
    sys.stdout.write(f"{textwrap.fill(line, 100)}\n")
