"""What the scoreboard reads out of the study's tables: it needs the tables and nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from eeutils import claims
from eeutils.errors import InputError
from eeutils.files import repository_root
from eeutils.specs import TASKS
from eeutils.statistics import Interval

SPEEDUPS = (1.0, 1.5, 2.0, 3.0, 4.0)
_GAPS = tuple(f"over_{other}{end}" for other in ("fixed", "best") for end in ("", "_low", "_high"))
_SPEEDS = ("layer_speedup", "flops_speedup")
_AXES = {"layers": "layers", "flops": "FLOPs"}
"""Axis -> what is counted."""

COLUMNS = {
    "scores": ("task", "method", "kind", "axis", "speedup", "score", "low", "high", "kept", "blind", "seeds", *_GAPS),
    "curves": ("task", "seed", "method", "kind", "score", *_SPEEDS),
    "areas": ("task", "seed", "method", "kind", "axis", "area"),
    "points": ("task", "seed", "method", "threshold", "score", *_SPEEDS),
    "costs": ("task", "method", "parameters", "trainings", "training_seconds", "times_plain", "seeds"),
    "times": (
        *("task", "seed", "method", "batch", *_SPEEDS, "wall_speedup", "wall_low", "wall_high"),
        *("device", "threads"),
    ),
    "calibration": ("task", "seed", "method", "layer", "ece", "overconfidence", "accuracy"),
    "agreement": ("task", "method", "layer", "agreement", "seeds"),
    "claims": ("task", "claim", "ours", "theirs", "axis", "speedup", "difference", "low", "high", "seeds"),
    "search": ("task", "seed", "method", "learning_rate", "dev_area", "dev_samples", "in_use"),
    "runs": (
        *("task", "seed", "run", "options", "key", "data", "train_size", "epochs", "learning_rate", "seconds", "torch"),
        *("run_commit", "run_device", "run_precision", "run_threads", "run_time"),
    ),
}
"""Table `study-NAME.csv` -> its columns; profile, backbone and commit of the study stand behind them."""

MADE_WITH = ("profile", "backbone", "commit")

STUDY_TASKS = ("movie", "sst2", "mrpc", "rte", "cola", "movie-valence", "stsb")
"""The tasks that a complete study has; the page says which of them are missing."""

NOT_RUN = "not run"

BLOCKS = 10
"""With fewer blocks than that the ranks of ten methods hardly differ by more than chance (Demsar, JMLR 2006)."""


def results_dir() -> Path:
    """Where the tables are: `$EEUTILS_RESULTS`, or `data/results` in the repository."""
    return Path(os.environ.get("EEUTILS_RESULTS") or repository_root() / "data" / "results")


def read_table(name: str, folder: Path | None = None) -> pd.DataFrame:
    """A table of the study; without rows where it has not been made."""
    path = (folder or results_dir()) / f"study-{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*COLUMNS[name], *MADE_WITH])


def short_name(task: str) -> str:
    """A task's name, that of its folder for a task of one's own."""
    return Path(task).name


def title_of(task: str) -> str:
    """As in figures; a task of one's own goes by its short name."""
    return TASKS[task].title if task in TASKS else short_name(task)


def metric_name(task: str) -> str:
    """The headline metric's name."""
    return TASKS[task].metrics[0] if task in TASKS else "score"


def is_regression(task: str) -> bool:
    """Whether the answer is a number. What a task of one's own answers is not in the tables: it counts as a class."""
    return task in TASKS and TASKS[task].kind == "regression"


def trained_on(runs: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """A sentence for each task: seeds, samples, epochs and learning rate of its runs; tasks trained alike share one."""
    alike: dict[str, list[str]] = {}
    for task in tasks:
        rows = runs[runs.task == task]
        if len(rows) == 0:
            continue
        one = rows.iloc[0]
        size = f"{one.train_size:,.0f}" if math.isfinite(one.train_size) else "all"
        said = (
            f"{rows.seed.nunique()} seed(s), {size} samples for train and dev together, {one.epochs} epoch(s) a phase, "
            f"learning rate {one.learning_rate:g}"
        )
        alike.setdefault(said, []).append(title_of(task))
    return [f"{', '.join(titles)}: {said}." for said, titles in alike.items()]


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


def learned(scores: pd.DataFrame) -> list[str]:
    """The tasks on which the plain model is shown to know more than a blind answer, the same for everybody. On the
    others nothing was learned, so no exit and no rule can be compared."""
    plain = plain_model(scores)
    return plain[plain.low > plain.blind].task.tolist()


def not_learned(scores: pd.DataFrame) -> list[str]:
    """A sentence for each task on which the plain model is not shown to know more than a blind answer."""
    plain, known = plain_model(scores), learned(scores)
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
    exits = _without_exiting(scores, "fixed exits")
    return [
        f"{title_of(row.task)}: exits trained together (the checkpoint of PABEE and of the fixed exits) are not shown "
        f"to have learned anything at this size: even their last one has {metric_name(row.task)} {row.score:.3f} "
        f"[{row.low:.3f}, {row.high:.3f}], a blind answer {row.blind:.3f}. To beat them there means little."
        for row in exits[exits.task.isin(known) & (exits.low <= exits.blind)].itertuples()
    ]


def plain_model(scores: pd.DataFrame) -> pd.DataFrame:
    """The plain model at 1x, one row a task."""
    return _without_exiting(scores, "plain model")


def _without_exiting(scores: pd.DataFrame, method: str) -> pd.DataFrame:
    """The rows of a method at 1x, one a task."""
    return scores[(scores.method == method) & (scores.speedup == 1) & (scores.axis == "layers")]


def score_table(scores: pd.DataFrame, task: str, axis: str = "layers") -> pd.DataFrame:
    """Methods by speed-up, each cell a score, its interval and the share of the plain model's score that is kept; what
    a curve does not reach is empty."""
    rows = scores[(scores.task == task) & (scores.axis == axis)]
    cells = [
        f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}]" + (f" {row.kept:.0%}" if math.isfinite(row.kept) else "")
        for row in rows.itertuples()
    ]
    return _by_speedup(rows.assign(cell=cells), "cell").fillna("")


def _by_speedup(rows: pd.DataFrame, values: str) -> pd.DataFrame:
    order = list(dict.fromkeys(rows.method))
    table = rows.pivot_table(index="method", columns="speedup", values=values, aggfunc="first").reindex(order)
    return table.rename(columns="{:g}x".format).rename_axis(columns=None)


def in_short(scores: pd.DataFrame, costs: pd.DataFrame, axis: str = "layers") -> pd.DataFrame:
    """If you need ..., take ...: for each speed-up, and apart for classifications and regressions, the method with the
    best mean rank over all tasks, how sure that is, and how long it trains.

    Returns:
        One row a need; empty where nothing reaches any of the speed-ups on all tasks.
    """
    rows, regression = [], scores.task.map(is_regression).astype(bool)
    for kind, of_kind in (("class", scores[~regression]), ("number", scores[regression])):
        for speedup in SPEEDUPS[1:]:
            here = of_kind[(of_kind.axis == axis) & (of_kind.speedup == speedup)]
            ranks, _ = mean_ranks(here.assign(seed=0), "score")
            if len(ranks):
                rows.append({"if you need": f"a {kind} at {speedup:g}x in {_AXES[axis]}", **_take(here, ranks, costs)})
    return pd.DataFrame(rows).set_index("if you need") if rows else pd.DataFrame()


def _take(here: pd.DataFrame, ranks: pd.Series, costs: pd.DataFrame) -> dict[str, str]:
    """A row of `in_short`: from the scores at one speed-up, the ranks of those who reach it on all tasks, and costs."""
    best, tasks = ranks.index[0], here.task.nunique()
    own = here[here.method == best]
    top = here.groupby("task").score.max()
    longer = costs[(costs.method == best) & costs.task.isin(here.task)].times_plain.median()
    counts = {
        "highest on": (own.score == own.task.map(top)).sum(),
        "told apart from the highest on": (own.over_best_high < 0).sum(),
        "shown to beat the fixed exits on": (own.over_fixed_low > 0).sum(),
    }
    return {
        "take": f"**{best}**",
        "mean rank": f"{ranks.iloc[0]:.1f} of {len(ranks)}",
        **{name: f"{count} of {tasks}" for name, count in counts.items()},
        "training time": f"{longer:.1f} times plain" if math.isfinite(longer) else "",
        "next by mean rank": "; ".join(f"{method} {rank:.1f}" for method, rank in ranks.iloc[1:4].items()),
    }


def leaders(scores: pd.DataFrame) -> pd.DataFrame:
    """Layer speed-ups by task: who is highest, its score, and its `arrow`."""
    rows = scores[(scores.axis == "layers") & (scores.speedup > 1)]
    rows = rows.loc[rows.groupby(["task", "speedup"], sort=False).score.idxmax()]
    cells = [f"{row.method} {row.score:.3f}{arrow(row)}" for row in rows.itertuples()]
    table = rows.assign(cell=cells).pivot_table(index="speedup", columns="task", values="cell", aggfunc="first")
    table = table[list(dict.fromkeys(rows.task))].rename(index="{:g}x".format, columns=title_of)
    return table.rename_axis(index="layer speed-up", columns=None)


def arrow(row: Any) -> str:
    """An arrow where a row of the scores is above or below the fixed exits by more than an interval, else nothing."""
    return " ↑" if row.over_fixed_low > 0 else " ↓" if row.over_fixed_high < 0 else ""


def operating_points(points: pd.DataFrame) -> list[str]:
    """A sentence for each method that is trained for one speed: where that is on each task, means over seeds."""
    sentences = []
    for (method, threshold), rows in points.groupby(["method", "threshold"], sort=False):
        said = []
        for task, of_task in rows.groupby("task", sort=False):
            speedup = 1 / (1 / of_task.layer_speedup).mean()
            said.append(f"{title_of(task)} {speedup:.2f}x ({metric_name(task)} {of_task.score.mean():.3f})")
        sentences.append(
            f"**{method}** is trained for one speed. At its own threshold, {threshold:g}, it has by layers: "
            f"{', '.join(said)}. The rest of its curve asks exits for which it was not trained."
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


def search_table(search: pd.DataFrame) -> pd.DataFrame:
    """Methods by learning rate: the area under the curve on dev, and the mean over the methods that have one at every
    rate; the rate in use is marked. Empty where no search has been run."""
    if len(search) == 0:
        return pd.DataFrame()
    table = search.pivot_table(index="method", columns="learning_rate", values="dev_area", sort=False)
    if len(table) > 1:
        table.loc["mean over methods"] = table.dropna().mean()
    used = set(search[search.in_use].learning_rate)
    named = {rate: f"{rate:g} (in use)" if rate in used else f"{rate:g}" for rate in table.columns}
    shown = table.sort_index(axis="columns").rename(columns=named).rename_axis(columns=None)
    return shown.map(lambda area: f"{area:.3f}" if math.isfinite(area) else "")


def mean_curves(curves: pd.DataFrame, task: str, axis: str = "layers", points: int = 25) -> dict[str, pd.DataFrame]:
    """Method -> its curve, the mean over seeds at equal cost, over the costs that all seeds reach."""
    column, found = _SPEEDS[axis == "flops"], {}
    for method, rows in curves[curves.task == task].groupby("method", sort=False):
        lines = []
        for _, line in rows.groupby("seed"):
            cost = (1 / line[column]).round(9)
            lines.append(line.score.groupby(cost).mean())
        low, high = max(line.index.min() for line in lines), min(line.index.max() for line in lines)
        # A plain model or an oracle is a single point, which costs each seed something else.
        single = [np.mean([np.mean(line.index) for line in lines])]
        grid = np.linspace(low, high, points) if low < high else np.array(single)
        mean = np.mean([np.interp(grid, line.index, line.to_numpy()) for line in lines], axis=0)
        found[method] = pd.DataFrame({column: 1 / grid, "score": mean})
    return found


def mean_ranks(values: pd.DataFrame, value: str) -> tuple[pd.Series, int]:
    """The mean rank of each method, 1 the best, over blocks of the same task and seed; ties share their ranks.

    Returns:
        Ranks of the methods that stand in every block, best first, and the number of blocks.
    """
    blocks = values.pivot_table(index=["task", "seed"], columns="method", values=value).dropna(axis="columns")
    return blocks.rank(axis="columns", ascending=False).mean().sort_values(), len(blocks)


def ranked_tasks(values: pd.DataFrame) -> list[str]:
    """The tasks on which the most methods have a meaning: where some are missing, ranks are those of the others."""
    methods = values.groupby("task", sort=False).method.nunique()
    return methods[methods == methods.max()].index.tolist()


def critical_difference(methods: int, blocks: int, level: float = 0.05) -> float:
    """Nemenyi's critical difference of mean ranks: q sqrt(k (k + 1) / (6 N)), q the studentized range over sqrt(2).

    Raises:
        InputError: fewer than two methods, or no block.
    """
    if methods < 2 or blocks < 1:
        raise InputError(f"ranks need 2 methods and 1 block or more; got {methods} and {blocks}")
    q = stats.studentized_range.ppf(1 - level, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * blocks)))


def worth_of_ranks(tasks: int, blocks: int) -> str:
    """What may be read into mean ranks over so many blocks."""
    said = f"{blocks} block{'s' * (blocks != 1)} (task and seed) of {tasks} task{'s' * (tasks != 1)}."
    if tasks < 2 or blocks < BLOCKS:
        return f"{said} Too few to mean much: read the ranks as a summary of this page, not as a test."
    return f"{said} Seeds of one task are no independent data sets, so the true critical difference is larger."


def ledger_table(folder: Path | None = None) -> pd.DataFrame:
    """Every claim with the verdict of its notebook (`NN-claims.csv`), our number, its note, and the likely reason
    where it does not hold; "not run" where no notebook has judged it."""
    files = sorted((folder or results_dir()).glob("[0-9][0-9]-claims.csv"))
    judged = {row["claim"]: row for path in files for row in _as_text(path)}
    verdicts = []
    for claim in claims.ledger().values():
        row = judged.get(claim.id, {"verdict": NOT_RUN, "ours": "", "note": ""})
        verdicts.append(claims.Verdict(claim, row["verdict"], row["ours"], row["note"]))
    failed = (claims.NOT_REPRODUCED, claims.PARTLY)
    table = claims.table(verdicts)
    table["why"] = [verdict.claim.why if verdict.outcome in failed else "" for verdict in verdicts]
    table.insert(0, "of", [verdict.claim.paper for verdict in verdicts])
    return table


def across_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Claims over tasks: one line a comparison and speed-up, one column a task, each cell a difference and
    its interval; the verdict over all tasks stands on the first line of each claim."""
    cells = [f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]" for row in rows.itertuples()]
    said = [
        f"{row.ours} minus {row.theirs}"
        + ("" if row.axis == "exits" else f"; at {row.speedup:.3g}x ({_AXES[row.axis]})")
        for row in rows.itertuples()
    ]
    order, tasks = [name for name in claims.ledger() if name in set(rows.claim)], list(dict.fromkeys(rows.task))
    lines = rows.assign(cell=cells, comparison=said, place=rows.claim.map(order.index)).sort_values(
        "place", kind="stable"
    )
    table = lines.pivot_table(index=["claim", "comparison"], columns="task", values="cell", aggfunc="first", sort=False)
    table = table[tasks].fillna("").rename(columns=title_of).reset_index().rename_axis(columns=None)
    verdicts = {claim: across_verdict(rows, claim) for claim in order}
    table["verdict"] = table.claim.map(verdicts).where(~table.claim.duplicated(), "")
    return table.set_index("claim")


def across_verdict(rows: pd.DataFrame, claim: str) -> str:
    """A claim's verdict by the intervals of all tasks and speed-ups together: all of them must clear its bar."""
    own = rows[rows.claim == claim]
    return claims.judge(claim, [Interval(row.difference, row.low, row.high) for row in own.itertuples()]).outcome


def _as_text(path: Path) -> list[dict[str, str]]:
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")


def markdown_table(table: pd.DataFrame) -> str:
    """A table of texts in Markdown, its index as the first column; a third of the size that a notebook's HTML takes."""
    rows = [[table.index.name or "", *table.columns], *(list(row) for row in table.itertuples())]
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
