"""What the scoreboard shows of the study's tables: it reads the tables and nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from eeutils.data.specs import TASKS
from eeutils.errors import InputError
from eeutils.exiting import claims, tradeoff
from eeutils.exiting.intervals import Interval
from eeutils.files import repository_root
from eeutils.papers.comparisons import PLAIN

SPEEDUPS = (1.0, 1.5, 2.0, 3.0, 4.0)
_GAPS = tuple(f"over_{other}{end}" for other in ("fixed", "best") for end in ("", "_low", "_high"))
_SPEEDS = ("layer_speedup", "flops_speedup")
AXES = {"layers": "layers", "flops": "FLOPs"}
"""Axis of a speed-up -> what it counts, as in figures."""

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


def without_exiting(scores: pd.DataFrame, method: str) -> pd.DataFrame:
    """The rows of a method at 1x, one a task."""
    return scores[(scores.method == method) & (scores.speedup == 1) & (scores.axis == "layers")]


def learned(scores: pd.DataFrame) -> list[str]:
    """The tasks on which the plain model is shown to know more than a blind answer, the same for everybody. On the
    others nothing was learned, so no exit and no rule can be compared."""
    plain = without_exiting(scores, PLAIN)
    return plain[plain.low > plain.blind].task.tolist()


def crossed(rows: pd.DataFrame, index: str | list[str], columns: str, cells: Iterable[str]) -> pd.DataFrame:
    """One cell for each row, by two of its columns, both in their order of appearance."""
    filled = rows.assign(cell=list(cells))
    table = filled.pivot_table(index=index, columns=columns, values="cell", aggfunc="first", sort=False)
    return table[list(dict.fromkeys(rows[columns]))].rename_axis(columns=None)


def score_table(scores: pd.DataFrame, task: str, axis: str) -> pd.DataFrame:
    """Methods by speed-up, each cell a score, its interval and the share of the plain model's score that is kept; what
    a curve does not reach is empty."""
    rows = scores[(scores.task == task) & (scores.axis == axis)]
    cells = [
        f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}]" + (f" {row.kept:.0%}" if math.isfinite(row.kept) else "")
        for row in rows.itertuples()
    ]
    return crossed(rows, "method", "speedup", cells).fillna("").rename(columns="{:g}x".format)


def in_short(scores: pd.DataFrame, costs: pd.DataFrame, axis: str) -> pd.DataFrame:
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
                rows.append({"if you need": f"a {kind} at {speedup:g}x in {AXES[axis]}", **_take(here, ranks, costs)})
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
    table = crossed(rows, "speedup", "task", cells).rename(index="{:g}x".format, columns=title_of)
    return table.rename_axis("layer speed-up")


def arrow(row: Any) -> str:
    """An arrow where a row of the scores is above or below the fixed exits by more than an interval, else nothing."""
    return " ↑" if row.over_fixed_low > 0 else " ↓" if row.over_fixed_high < 0 else ""


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


def mean_curves(curves: pd.DataFrame, task: str, axis: str, points: int = 25) -> dict[str, pd.DataFrame]:
    """Method -> its curve, the mean over seeds at equal cost, over the costs that all seeds reach."""
    column, means = tradeoff.SPEEDUPS[axis], {}
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
        means[method] = pd.DataFrame({column: 1 / grid, "score": mean})
    return means


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


def ledger_table(folder: Path | None = None) -> pd.DataFrame:
    """Every claim with the verdict of its notebook (`NN-claims.csv`), our number, its note, and the likely reason
    where it does not hold; "not run" where no notebook has judged it."""
    files = sorted((folder or results_dir()).glob("[0-9][0-9]-claims.csv"))
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in files]
    judged = {row["claim"]: row for table in tables for row in table.to_dict("records")}
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
    lines = [
        f"{row.ours} minus {row.theirs}"
        + ("" if row.axis == "exits" else f"; at {row.speedup:.3g}x ({AXES[row.axis]})")
        for row in rows.itertuples()
    ]
    table = crossed(rows.assign(comparison=lines), ["claim", "comparison"], "task", cells).fillna("")
    order = [claim for claim in claims.ledger() if claim in set(rows.claim)]
    table = pd.concat([table.loc[[claim]] for claim in order]).rename(columns=title_of).reset_index("comparison")
    verdicts = table.index.map({claim: across_verdict(rows, claim) for claim in order})
    return table.assign(verdict=verdicts.where(~table.index.duplicated(), ""))


def across_verdict(rows: pd.DataFrame, claim: str) -> str:
    """A claim's verdict by the intervals of all tasks and speed-ups together: all of them must clear its bar."""
    own = rows[rows.claim == claim]
    return claims.judge(claim, [Interval(row.difference, row.low, row.high) for row in own.itertuples()]).outcome


def markdown_table(table: pd.DataFrame) -> str:
    """A table of texts in Markdown, its index as the first column; a third of the size that a notebook's HTML takes."""
    rows = [[table.index.name or "", *table.columns], *(list(row) for row in table.itertuples())]
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
