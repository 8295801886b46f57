"""What a trial found, in words and one table that decides."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from eeutils.exiting.intervals import Interval
from eeutils.reporting.wording import better, worse
from eeutils.trial.measured import PLAIN, TIMED, Trial

LEGEND = (
    "asked: in FLOPs, the threshold chosen on dev; all scores are measured on test. score kept: of the plain model's. "
    "over fixed exits: the score minus that of the best policy that looks at no text, at exactly the cost asked for. "
    "Intervals are 95%, paired over the test texts. ms and seconds saved: all rows took turns in one run."
)
"""What the columns are."""

FEW = 400
"""With fewer test texts than that intervals are so wide that a table decides little."""

PER = 1000
"""Texts that saved seconds are told for."""


def about(trial: Trial) -> list[str]:
    """What is learned, from what, for how long."""
    task, setting = trial.task, trial.setting
    sizes = f"{len(task.train):,} training, {len(task.dev):,} dev and {len(task.test):,} test texts"
    steps = int(trial.early.history.steps.sum())
    told = [f"{trial.spec.title}: {sizes}; {setting.backbone}, {setting.epochs} epoch(s), {steps:,} steps."]
    if len(task.train) == setting.train_size:
        told.append("The profile takes that many; a larger one takes more of what is there.")
    told += [f"{note[0].upper()}{note[1:]}." for note in task.notes]
    told += [f"Left out: {count:,} of {of:,} rows ({reason})." for reason, (count, of) in task.dropped.items()]
    return told


def decisive_table(trial: Trial, points: pd.DataFrame, clock: pd.DataFrame) -> pd.DataFrame:
    """The table as it is printed: one row a speed-up, each cell with its interval."""
    name = trial.spec.metrics[0]
    shown = pd.DataFrame(index=[PLAIN, *(f"asked {asked:g}x" for asked in points.asked[1:])])
    shown["FLOPs on test"] = [f"{speedup:.2f}x" for speedup in points.flops_speedup]
    shown[name] = [_cell(row, "score") for row in points.itertuples()]
    shown["score kept"] = ["", *(_percent(row) for row in points.iloc[1:].itertuples())]
    shown["over fixed exits"] = ["", *(_cell(row, "over_blind", "+") for row in points.iloc[1:].itertuples())]
    for batch in TIMED:
        ms = clock[clock.batch == batch].set_index("asked").ms
        shown[f"ms, batch {batch}"] = [f"{ms[asked]:.2f}" for asked in points.asked]
        saved = [f"{(ms[1.0] - ms[asked]) * PER / 1000:.2f} s" for asked in points.asked[1:]]
        shown[f"saved per {PER:,} texts, batch {batch}"] = ["", *saved]
    return shown


def judged(trial: Trial, points: pd.DataFrame, clock: pd.DataFrame) -> list[str]:
    """What the table says, no stronger than its intervals, and what speaks against believing it."""
    name, plain, told = trial.spec.metrics[0], points.iloc[0], []
    same = trial.same_answer
    if plain.score_low <= same:
        told.append(
            f"The plain model has {name} {_cell(plain, 'score')} and the same answer for everybody {same:.3f}: it is "
            "not shown to have learned, so the rest means nothing yet. Give it more rows, or a larger profile."
        )
    learned = trial.early.learned
    if not learned.learned.all():
        layers = ", ".join(map(str, learned.layer[~learned.learned]))
        told.append(
            f"The exit at layer {layers} has not learned what its own vector can tell: train longer (--profile)."
        )
    for row in points.iloc[1:].itertuples():
        ms = clock[clock.asked == row.asked].set_index("batch")
        speeds = " and ".join(f"{ms.speedup[batch]:.2f}x at batch {batch}" for batch in TIMED)
        kept = "a score that cannot be compared" if math.isnan(row.kept) else f"{_percent(row)} of the score"
        told.append(f"At {row.asked:g}x in FLOPs it keeps {kept}, and the clock says {speeds}; {_against_blind(row)}.")
    if len(trial.task.test) < FEW:
        told.append(
            f"The test split has {len(trial.task.test):,} texts, so the intervals are wide; {FEW:,} or more tell more."
        )
    return told


def line_of_code(folder: Path, pairs: bool, speedup: float = 2.0) -> str:
    """One line that answers texts, or pairs of them, leaving early."""
    texts = '["A first text."], ["A second text."]' if pairs else '["A text of yours."]'
    return f'from eeutils import deploy; print(deploy.from_pretrained("{folder}", {speedup:g})({texts}))'


def _against_blind(row: Any) -> str:
    interval = Interval(row.over_blind, row.over_blind_low, row.over_blind_high)
    if math.isnan(row.over_blind):
        return "with fixed exits it cannot be compared at exactly that speed-up"
    if better(interval):
        return "that beats sending every text through the same exits"
    if worse(interval):
        return "sending every text through the same exits keeps more: cut the model to fewer layers instead"
    return "it is not told apart from sending every text through the same exits, which needs no rule"


def _cell(row: Any, name: str, sign: str = "") -> str:
    numbers = [getattr(row, f"{name}{end}") for end in ("", "_low", "_high")]
    if not all(map(math.isfinite, numbers)):
        return "not comparable"
    estimate, low, high = (f"{number:{sign}.3f}" for number in numbers)
    return f"{estimate} [{low}, {high}]"


def _percent(row: Any) -> str:
    if not math.isfinite(row.kept):
        return "nothing to keep"
    return f"{100 * row.kept:.1f}% [{100 * row.kept_low:.1f}, {100 * row.kept_high:.1f}]"
