"""What the study's tables say, in sentences no stronger than their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from eeutils.study.page import (
    OVERLAPPING,
    learned,
    metric_name,
    not_counted,
    one_of_each_corpus,
    title_of,
    what_to_use,
)


def trained_on(runs: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """A sentence for each task: seeds, samples, epochs, steps and learning rate of its runs; tasks trained alike share
    one."""
    alike: dict[str, list[str]] = {}
    for task in tasks:
        rows = runs[(runs.task == task) & (runs.run == "finetuned")]
        if len(rows) == 0:
            continue
        one = rows.iloc[0]
        size = f"{one.train_size:,.0f}" if math.isfinite(one.train_size) else "all"
        facts = (
            f"{rows.seed.nunique()} seed(s), {size} training samples, {one.epochs} epoch(s) or {one.steps:,} steps a "
            f"phase, learning rate {one.learning_rate:g}"
        )
        alike.setdefault(facts, []).append(title_of(task))
    return [f"{', '.join(titles)}: {facts}." for facts, titles in alike.items()]


def not_run(scores: pd.DataFrame, tasks: Sequence[str], methods: Sequence[str]) -> list[str]:
    """What the tables lack, in sentences."""
    missing = [title_of(task) for task in tasks if task not in set(scores.task)]
    sentences = [f"Not run: {', '.join(missing)}."] if missing else []
    for task, rows in scores.groupby("task", sort=False):
        absent = [method for method in methods if method not in set(rows.method)]
        if absent:
            sentences.append(f"{title_of(task)}: not run, or without a meaning there: {', '.join(absent)}.")
        if rows.seeds.min() < rows.seeds.max():
            fewer = rows[rows.seeds < rows.seeds.max()].method.unique()
            sentences.append(f"{title_of(task)}: fewer seeds than the others: {', '.join(fewer)}.")
    return sentences


def left_out(scores: pd.DataFrame) -> list[str]:
    """A sentence for each task that is left out of comparisons, and for those whose sentences are another's."""
    sentences = [
        f"{title_of(task)} is not counted: {reason}. Its numbers are kept."
        for task, reason in not_counted(scores).items()
    ]
    counted = learned(scores)
    for task in counted:
        if task not in one_of_each_corpus(counted):
            sentences.append(f"{title_of(task)} holds sentences of another task, so it is not counted a second time.")
    for task, corpus in OVERLAPPING.items():
        if task in set(scores.task):
            sentences.append(f"{title_of(task)} shares sentences with the {corpus} corpus.")
    return sentences


def unlearned(gate: pd.DataFrame) -> list[str]:
    """A sentence for each checkpoint with exits that have not learned what their own vectors can tell."""
    failed = gate[~gate.learned.astype(bool)]
    return [
        f"{title_of(task)}: **{method}** has not learned at layer {', '.join(map(str, rows.layer))}, so no verdict "
        "counts it."
        for (task, method), rows in failed.groupby(["task", "method"], sort=False)
    ]


def operating_points(points: pd.DataFrame) -> list[str]:
    """A sentence for each method whose models are trained for one speed each: where these are on each task, means over
    seeds."""
    sentences = []
    for method, rows in points.groupby("method", sort=False):
        places = []
        for task, of_task in rows.groupby("task", sort=False):
            number = of_task.groupby("seed").cumcount()
            each = of_task.assign(cost=1 / of_task.flops_speedup).groupby(number)[["cost", "score"]].mean()
            told = ", ".join(f"{1 / point.cost:.2f}x ({point.score:.3f})" for point in each.itertuples())
            places.append(f"{title_of(task)} {told}")
        sentences.append(
            f"**{method}** is trained for one speed a model, in FLOPs: {'; '.join(places)}. Between them a share of "
            "the samples goes to each of two models, and to the plain one at the slow end."
        )
    return sentences


def headlines(scores: pd.DataFrame, costs: pd.DataFrame) -> list[str]:
    """What came out, in three sentences: what to take at 2x, and who beats the best blind policy at 2x and at 3x."""
    counted = one_of_each_corpus(learned(scores))
    flops = scores[(scores.axis == "flops") & scores.task.isin(counted)]
    if len(flops) == 0:
        return ["The study has not been run: `make study` writes its tables."]
    sentences, use = [], what_to_use(scores, costs)
    if "a class at 2x" in use.index:
        row = use.loc["a class at 2x"]
        others = [name for name in row.iloc[-1].split("; ") if f"**{name}**" != row["take"]]
        told = f"; not told apart from it: {'; '.join(others)}" if others else ""
        sentences.append(f"At 2x in FLOPs take {row['take']} for classes, the cheapest to train of the best{told}.")
    methods = flops[(flops.kind == "method") & flops.over_blind.notna()]
    for speedup in (2.0, 3.0):
        here = methods[methods.speedup == speedup]
        above, below = here[here.over_blind_low > 0], here[here.over_blind_high < 0]
        if len(here):
            tasks = here.task.nunique()
            ground = f"{_counted(here.method.nunique(), 'method')} on {_counted(tasks, 'task')}"
            sentences.append(
                f"At {speedup:g}x in FLOPs, of {ground}, shown to beat the best blind policy, which looks at no sample"
                f": {_names(above, tasks)}; shown to lose to it: {_names(below, tasks)}."
            )
    return sentences


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _names(rows: pd.DataFrame, tasks: int) -> str:
    """Whose rows they are, each method once; of several tasks, on how many."""
    names = rows.groupby("method", sort=False).size()
    told = [name if tasks == 1 else f"{name} (on {count} of {tasks})" for name, count in names.items()]
    return ", ".join(told) or "none"


def against_the_simplest(scores: pd.DataFrame, simplest: str, speedups: Sequence[float] = (2.0, 3.0)) -> list[str]:
    """How a baseline that nearly nothing is needed for stands among the methods: a sentence a task."""
    sentences = []
    for task in one_of_each_corpus(learned(scores)):
        places = []
        for speedup in speedups:
            here = scores[(scores.task == task) & (scores.axis == "flops") & (scores.speedup == speedup)]
            here = here[here.kind.isin(["method"]) | (here.method == simplest)]
            if simplest not in set(here.method):
                continue
            own = here[here.method == simplest].iloc[0]
            better = (here.score > own.score).sum()
            places.append(f"{own.score:.3f} at {speedup:g}x, below {better} of {len(here) - 1} methods")
        if places:
            sentences.append(f"{title_of(task)} ({metric_name(task)}): {simplest} have {'; '.join(places)}.")
    return sentences


def gained(rows: pd.DataFrame) -> list[str]:
    """How many lines of `page.gains_by_ground` are above and below the best blind policy, a sentence for each ground
    and its slowest speed-up."""
    sentences = []
    for ground, own in rows.groupby("ground", sort=False):
        slowest = own[own["at"] == own["at"].iloc[0]]
        best, above, below = slowest.gain.idxmax(), (slowest.low > 0).sum(), (slowest.high < 0).sum()
        sentences.append(
            f"{' with '.join(ground.splitlines())}, at {slowest['at'].iloc[0]}: {above} of {len(slowest)} lines are "
            f"above the blind policy by more than their interval and {below} below it; the widest gain is "
            f"{slowest.gain[best]:+.3f} ({slowest.method[best]})."
        )
    return sentences
