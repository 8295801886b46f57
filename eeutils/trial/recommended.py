"""The one method that a trial takes, and why: as the committed tables of the study have it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from eeutils.exiting.rules import Rule, divergence, entropy
from eeutils.papers import pabee
from eeutils.study.entries import PABEE_ENTROPY
from eeutils.study.page import grounds, learned, one_of_each_corpus, read_table, title_of

METHOD = pabee.METHOD
"""PABEE's exits: one joint training of all exits in as many steps as the plain model takes."""


def rule_for(regression: bool) -> Rule:
    """When to leave: by entropy; a number has none, so it leaves when it moves no more from exit to exit."""
    return divergence() if regression else entropy()


def why(regression: bool, folder: Path | None = None) -> list[str]:
    """Why this method, in sentences computed from the study's tables; also what speaks against it.

    Args:
        regression: whether the answer is a number.
        folder: of the tables; those of the repository by default.
    """
    told = ["Taken are PABEE's exits: every layer gets one, and all are trained together."]
    if regression:
        return [
            *told,
            "They leave when the answer moves no more from exit to exit. The study has no recommendation for answers "
            "that are numbers: see how they compare with fixed exits before you use a rule.",
        ]
    ground = next(iter(grounds(folder)), "")
    scores, costs = (read_table(name, folder, ground) for name in ("scores", "costs"))
    for task in one_of_each_corpus(learned(scores)):
        here = scores[(scores.task == task) & (scores.axis == "flops") & (scores.speedup == 2.0)]
        if PABEE_ENTROPY not in set(here.method):
            continue
        own = here[here.method == PABEE_ENTROPY].iloc[0]
        told.append(
            f"They leave by entropy. {title_of(task)}, {ground}, 2x in FLOPs, {own.seeds} seed(s): {_told(own)}."
        )
        told += _price(costs[costs.task == task])
    return told


def _told(row: pd.Series) -> str:
    kept = f"{row.kept:.1%} of the plain model's score are kept"
    best = "the highest of all" if pd.isna(row.over_best) else _gap(row, "best", "the highest")
    return f"{kept}, {best}, {_gap(row, 'blind', 'the best blind policy, which looks at no sample')}"


def _gap(row: pd.Series, other: str, name: str) -> str:
    estimate, low, high = (row[f"over_{other}{end}"] for end in ("", "_low", "_high"))
    word = "above" if low > 0 else "below" if high < 0 else "not told apart from"
    return f"{word} {name} ({estimate:+.3f} [{low:+.3f}, {high:+.3f}])"


def _price(costs: pd.DataFrame) -> list[str]:
    rows = costs[costs.method == PABEE_ENTROPY]
    return [f"To train it takes {rows.times_plain.iloc[0]:.1f} times what the plain model takes."] if len(rows) else []
