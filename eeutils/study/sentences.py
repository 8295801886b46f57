"""What the study's tables say, in sentences no stronger than their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from eeutils.papers.comparisons import PLAIN
from eeutils.study.entries import FIXED
from eeutils.study.page import SPEEDUPS, learned, metric_name, title_of, without_exiting

BLOCKS = 10
"""With fewer blocks than that the ranks of ten methods hardly differ by more than chance (Demsar, JMLR 2006)."""


def trained_on(runs: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """A sentence for each task: seeds, samples, epochs and learning rate of its runs; tasks trained alike share one."""
    alike: dict[str, list[str]] = {}
    for task in tasks:
        rows = runs[runs.task == task]
        if len(rows) == 0:
            continue
        one = rows.iloc[0]
        size = f"{one.train_size:,.0f}" if math.isfinite(one.train_size) else "all"
        facts = (
            f"{rows.seed.nunique()} seed(s), {size} samples for train and dev together, {one.epochs} epoch(s) a phase, "
            f"learning rate {one.learning_rate:g}"
        )
        alike.setdefault(facts, []).append(title_of(task))
    return [f"{', '.join(titles)}: {facts}." for facts, titles in alike.items()]


def not_run(scores: pd.DataFrame, tasks: Sequence[str], methods: Sequence[str]) -> list[str]:
    """What the tables lack, in sentences."""
    missing = [task for task in tasks if task not in set(scores.task)]
    sentences = [f"Not run: {', '.join(missing)}."] if missing else []
    for task, rows in scores.groupby("task", sort=False):
        absent = [method for method in methods if method not in set(rows.method)]
        if absent:
            sentences.append(f"{title_of(task)}: not run, or without a meaning there: {', '.join(absent)}.")
        if rows.seeds.min() < rows.seeds.max():
            fewer = rows[rows.seeds < rows.seeds.max()].method.unique()
            sentences.append(f"{title_of(task)}: fewer seeds than the others: {', '.join(fewer)}.")
    return sentences


def not_learned(scores: pd.DataFrame) -> list[str]:
    """A sentence for each task on which the plain model is not shown to know more than a blind answer."""
    plain, known = without_exiting(scores, PLAIN), learned(scores)
    return [
        f"{title_of(row.task)} was not learned at this size: the plain model has {metric_name(row.task)} "
        f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}] and the same answer for everybody {row.blind:.3f}. Its "
        "numbers are kept, and left out of every comparison."
        for row in plain[~plain.task.isin(known)].itertuples()
    ]


def blind_exits(scores: pd.DataFrame) -> list[str]:
    """A sentence for each learned task on which the exits that were trained together are not shown to know more than a
    blind answer: to beat them says nothing there."""
    known = learned(scores)
    exits = without_exiting(scores, FIXED)
    return [
        f"{title_of(row.task)}: exits trained together (the checkpoint of PABEE and of the fixed exits) are not shown "
        f"to have learned anything at this size: even their last one has {metric_name(row.task)} {row.score:.3f} "
        f"[{row.low:.3f}, {row.high:.3f}], a blind answer {row.blind:.3f}. To beat them there means little."
        for row in exits[exits.task.isin(known) & (exits.low <= exits.blind)].itertuples()
    ]


def operating_points(points: pd.DataFrame) -> list[str]:
    """A sentence for each method that is trained for one speed: where that is on each task, means over seeds."""
    sentences = []
    for (method, threshold), rows in points.groupby(["method", "threshold"], sort=False):
        places = []
        for task, of_task in rows.groupby("task", sort=False):
            speedup = 1 / (1 / of_task.layer_speedup).mean()
            places.append(f"{title_of(task)} {speedup:.2f}x ({metric_name(task)} {of_task.score.mean():.3f})")
        sentences.append(
            f"**{method}** is trained for one speed. At its own threshold, {threshold:g}, it has by layers: "
            f"{', '.join(places)}. The rest of its curve asks exits for which it was not trained."
        )
    return sentences


def advice(scores: pd.DataFrame, task: str) -> list[str]:
    """One sentence per layer speed-up: if you need ..., take ..., in words no stronger than the intervals allow."""
    rows, sentences = scores[(scores.task == task) & (scores.axis == "layers")], []
    for speedup in SPEEDUPS[1:]:
        here = rows[rows.speedup == speedup].sort_values("score", ascending=False)
        if len(here) == 0:
            sentences.append(f"**{speedup:g}x** (layer speed-up): nothing here reaches it.")
            continue
        best, others = here.iloc[0], here.iloc[1:]
        # The best has no distance to itself; whoever's interval reaches 0 may be as good.
        close = others[~(others.over_best_high < 0)].method.tolist()
        lead = f"**{speedup:g}x** (layer speed-up): **{best.method}** has the highest score, {best.score:.3f}"
        lead += f", {best.kept:.1%} of the plain model's" if math.isfinite(best.kept) else ""
        if len(others) == 0:
            lead += "; nothing else reaches this speed-up."
        elif close:
            lead += f"; not told apart from it: {', '.join(close)}."
        else:
            lead += ", above all others by more than the intervals allow for."
        sentences.append(f"{lead} {_against_fixed(best)}".strip())
    return sentences


def _against_fixed(best: pd.Series) -> str:
    if not math.isfinite(best.over_fixed):
        return ""
    gap = f"{best.over_fixed:+.3f} [{best.over_fixed_low:+.3f}, {best.over_fixed_high:+.3f}]"
    if best.over_fixed_low > 0:
        return f"It beats leaving at a fixed exit of PABEE's checkpoint by {gap}."
    return f"That it beats leaving at a fixed exit of PABEE's checkpoint is not shown ({gap})."


def worth_of_ranks(tasks: int, blocks: int) -> str:
    """What may be read into mean ranks over so many blocks."""
    counted = f"{blocks} block{'s' * (blocks != 1)} (task and seed) of {tasks} task{'s' * (tasks != 1)}."
    if tasks < 2 or blocks < BLOCKS:
        return f"{counted} Too few to mean much: read the ranks as a summary of this page, not as a test."
    return f"{counted} Seeds of one task are no independent data sets, so the true critical difference is larger."
