"""What the scoreboard shows of the study's tables: it reads the tables and nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eeutils.data.specs import TASKS
from eeutils.exiting import claims, tradeoff
from eeutils.exiting.intervals import Interval
from eeutils.files import repository_root
from eeutils.papers.comparisons import FIXED, PLAIN

SPEEDUPS = (1.0, 1.5, 2.0, 3.0, 4.0)
_GAPS = tuple(f"over_{other}{end}" for other in ("blind", "own", "best") for end in ("", "_low", "_high"))
_SPEEDS = ("layer_speedup", "flops_speedup")
AXES = {"flops": "FLOPs", "layers": "layers"}
"""Axis of a speed-up -> what it counts, as in figures."""

COLUMNS = {
    "scores": ("task", "method", "kind", "axis", "speedup", "score", "low", "high", "kept", "blind", "seeds", *_GAPS),
    "curves": ("task", "seed", "method", "kind", "score", *_SPEEDS),
    "points": ("task", "seed", "method", "threshold", "score", *_SPEEDS),
    "gate": ("task", "method", "layer", "exit", "probe", "gap", "low", "high", "learned", "seeds"),
    "treatments": ("task", "seed", "method", "found", "took"),
    "costs": (
        "task",
        "method",
        "kind",
        "parameters",
        "trainings",
        "training_seconds",
        "times_plain",
        "point_times_plain",
        "seeds",
    ),
    "times": (
        *("task", "seed", "method", "batch", *_SPEEDS, "wall_speedup", "wall_low", "wall_high"),
        *("device", "threads"),
    ),
    "claims": (
        *("task", "claim", "ours", "theirs", "axis", "speedup", "difference", "low", "high", "seeds", "units", "unfit"),
    ),
    "search": (
        *("task", "seed", "method", "what", "value", "dev_area", "over_default", "over_default_low"),
        *("over_default_high", "dev_samples", "in_use"),
    ),
    "runs": (
        *("task", "seed", "run", "options", "key", "data", "train_size", "epochs", "steps", "learning_rate", "seconds"),
        *("torch", "run_commit", "run_device", "run_precision", "run_threads", "run_time"),
    ),
}
"""Table `study-NAME.csv` -> its columns; profile, backbone and commit of the study stand behind them."""

MADE_WITH = ("profile", "backbone", "commit")

STUDY_TASKS = ("movie", "movie-3", "wiki", "mrpc", "cola", "movie-valence", "stsb")
"""The tasks that a complete study has; the page says which of them are missing."""

NOT_RUN = "not run"


def results_dir() -> Path:
    """Where the tables are: `$EEUTILS_RESULTS`, or `data/results` in the repository."""
    return Path(os.environ.get("EEUTILS_RESULTS") or repository_root() / "data" / "results")


def read_table(name: str, folder: Path | None = None, backbone: str | None = None) -> pd.DataFrame:
    """A table of the study, of one encoder where it is named; without rows where it has not been made."""
    path = (folder or results_dir()) / f"study-{name}.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*COLUMNS[name], *MADE_WITH])
    return table if backbone is None else table[table.backbone == backbone].reset_index(drop=True)


def grounds(folder: Path | None = None) -> list[str]:
    """The encoders that the study has been run with, in the order of the tables."""
    return list(dict.fromkeys(read_table("scores", folder).backbone))


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


PUBLISHED = {"sst2": 0.91, "mrpc": 0.87, "rte": 0.69, "cola": 0.54, "stsb": 0.89, "qnli": 0.91, "qqp": 0.91}
"""BERT-base on GLUE's public dev splits, roughly, by the headline metrics of `TASKS`."""

SHARE = 0.9
"""A task counts where the plain model reaches that share of the published score."""


def not_counted(scores: pd.DataFrame) -> dict[str, str]:
    """Task -> why it is left out of every comparison: the plain model is not shown to know more than the same answer
    for everybody or is far from what a larger one reaches, or exits from the middle up are as good as blind."""
    plain, reasons = without_exiting(scores, PLAIN).set_index("task"), {}
    middle = scores[(scores.method == FIXED) & (scores.axis == "layers") & scores.speedup.between(1, 2)]
    for task in dict.fromkeys(scores.task):
        if task not in plain.index:
            reasons[task] = "the plain model was not run"
            continue
        row, exits = plain.loc[task], middle[middle.task == task]
        said = f"the plain model has {metric_name(task)} {row.score:.3f} [{row.low:.3f}, {row.high:.3f}]"
        if row.low <= row.blind:
            reasons[task] = f"{said} and the same answer for everybody {row.blind:.3f}"
        elif task in PUBLISHED and row.score < SHARE * PUBLISHED[task]:
            reasons[task] = f"{said}, less than {SHARE:.0%} of BERT-base's {PUBLISHED[task]:.2f}"
        elif (exits.low <= exits.blind).any():
            reasons[task] = "exits from the middle up are not shown to know more than the same answer for everybody"
    return reasons


def learned(scores: pd.DataFrame) -> list[str]:
    """The tasks that count: all but those of `not_counted`."""
    left_out = not_counted(scores)
    return [task for task in dict.fromkeys(scores.task) if task not in left_out]


OVERLAPPING = {"sst2": "movie", "stsb": "mrpc"}
"""Task -> the corpus in which sentences of it stand, too: 732 of SST-2's 872 dev sentences are movie sentences, and one
in seven of MRPC's dev pairs stands in STS-B."""


def one_of_each_corpus(tasks: Iterable[str]) -> list[str]:
    """The first task of each corpus and kind: the same sentences must not be counted twice."""
    firsts = {}
    for task in tasks:
        corpus = OVERLAPPING.get(task) or (TASKS[task].corpus if task in TASKS else "") or task
        firsts.setdefault((corpus, is_regression(task)), task)
    return list(firsts.values())


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


def what_to_use(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """If you need ..., take ...: for each FLOPs speed-up, and apart for classes and numbers, the methods and baselines
    that cannot be told apart from the highest on any counted task that they reach, and the cheapest of them to train.

    Returns:
        One row a need; empty where nothing reaches any of the speed-ups.
    """
    rows, counted = [], one_of_each_corpus(learned(scores))
    rankable = scores[scores.task.isin(counted) & (scores.axis == "flops") & (scores.kind != "control")]
    for kind, of_kind in rankable.groupby(rankable.task.map(is_regression), sort=True):
        for speedup in SPEEDUPS[1:]:
            here = of_kind[of_kind.speedup == speedup]
            tasks = here.task.nunique()
            behind = here[here.over_best_high < 0].method.unique()
            everywhere = here.groupby("method", sort=False).task.nunique()
            tied = [name for name in everywhere.index[everywhere == tasks] if name not in behind]
            if not tied:
                continue
            needed = costs[costs.method.isin(tied) & costs.task.isin(here.task)]
            price = needed.groupby("method").times_plain.median().reindex(tied)
            cheapest = price.idxmin() if price.notna().any() else tied[0]
            own = here[here.method == cheapest]
            gains = "; ".join(
                f"{short_name(row.task)} {row.over_blind:+.3f} [{row.over_blind_low:+.3f}, {row.over_blind_high:+.3f}]"
                for row in own.itertuples()
            )
            rows.append(
                {
                    "if you need": f"a {'number' if kind else 'class'} at {speedup:g}x",
                    "take": f"**{cheapest}**",
                    "to train": f"{price[cheapest]:.1f} times plain" if math.isfinite(price[cheapest]) else "",
                    "above the best blind policy by": gains,
                    "not told apart from the highest": "; ".join(tied),
                }
            )
    return pd.DataFrame(rows).set_index("if you need") if rows else pd.DataFrame()


def gains(scores: pd.DataFrame, task: str, speedups: Iterable[float] = (1.5, 2.0, 3.0)) -> pd.DataFrame:
    """How far methods and baselines are above the best blind policy at equal FLOPs on a task, best first at 2x: columns
    method, at (the speed-up), gain, low, high."""
    rows = scores[(scores.task == task) & (scores.axis == "flops") & scores.speedup.isin(list(speedups))]
    rows = rows[(rows.kind != "control") & rows.over_blind.notna()]
    order = rows[rows.speedup == 2].sort_values("over_blind", ascending=False).method.tolist()
    rows = rows.assign(place=rows.method.map({name: place for place, name in enumerate(order)}))
    rows = rows.sort_values(["place", "speedup"], na_position="last")
    names = {"over_blind": "gain", "over_blind_low": "low", "over_blind_high": "high"}
    shown = rows.drop(columns=["low", "high"]).rename(columns=names)
    return shown.assign(at=shown.speedup.map("{:g}x".format))[["method", "at", "gain", "low", "high"]]


def gains_by_ground(scores: Iterable[pd.DataFrame], speedups: Iterable[float] = (2.0, 3.0)) -> pd.DataFrame:
    """`gains` of all tasks that count, of several encoders: with a column ground, which names both. Methods stand in
    the order of their mean gain at the first of the speed-ups."""
    speedups, parts = list(speedups), []
    for table in scores:
        for task in one_of_each_corpus(learned(table)):
            rows = gains(table, task, speedups)
            parts.append(rows.assign(ground=f"{title_of(task)}\n{table.backbone.iloc[0]}"))
    if not parts:
        return pd.DataFrame(columns=["method", "at", "gain", "low", "high", "ground"])
    rows = pd.concat(parts, ignore_index=True)
    means = rows[rows["at"] == f"{speedups[0]:g}x"].groupby("method").gain.mean()
    return rows.sort_values("method", key=lambda names: -names.map(means), kind="stable", na_position="last")


def arrow(row: Any) -> str:
    """An arrow where a row of the scores is above or below the best blind policy by more than an interval."""
    return " ↑" if row.over_blind_low > 0 else " ↓" if row.over_blind_high < 0 else ""


def cost_table(costs: pd.DataFrame, times: pd.DataFrame, task: str) -> pd.DataFrame:
    """One line a method: parameters, what one operating point and the whole curve take to train (times the plain
    model's training), and the speed-ups on the clock where FLOPs are to be halved."""
    rows = costs[(costs.task == task) & (costs.kind != "control")].set_index("method")
    shown = pd.DataFrame(
        {
            "parameters": rows.parameters.map("{:,.0f}".format),
            "trainings": rows.trainings.astype(str),
            "one point, times plain": rows.point_times_plain.map("{:.1f}".format),
            "the curve, times plain": rows.times_plain.map("{:.1f}".format),
        }
    )
    for batch, timed in times[times.task == task].groupby("batch"):
        clock = timed.set_index("method")
        shown[f"FLOPs, batch {batch}"] = clock.flops_speedup.map("{:.2f}x".format)
        shown[f"clock, batch {batch}"] = clock.wall_speedup.map("{:.2f}x".format)
    return shown.replace("nan", "").fillna("")


def gate_table(gate: pd.DataFrame, task: str) -> pd.DataFrame:
    """One line a checkpoint, one column an exit: its score on dev, with a mark and its probe's score where it has not
    learned."""
    rows = gate[gate.task == task]
    cells = [f"{row.exit:.3f}" + ("" if row.learned else f" ✗ (probe {row.probe:.3f})") for row in rows.itertuples()]
    return crossed(rows.assign(layer=rows.layer.map("layer {}".format)), "method", "layer", cells).fillna("")


def treatment_table(checks: pd.DataFrame, task: str) -> pd.DataFrame:
    """One line a method: on how many seeds its treatment took, and what was found on the first."""
    by_method = checks[checks.task == task].groupby("method", sort=False)
    return pd.DataFrame(
        {
            name: {"took on": f"{rows.took.sum()} of {len(rows)} seeds", "found": rows.found.iloc[0]}
            for name, rows in by_method
        }
    ).T


def search_table(search: pd.DataFrame) -> pd.DataFrame:
    """One line a method and what was varied: each value with its number on dev, the default in bold, an arrow where the
    paired interval of the difference to the default leaves out 0. Empty where no search has been run."""
    lines = {}
    for (method, what), rows in search.groupby(["method", "what"], sort=False):
        cells = []
        for row in rows.itertuples():
            told = " ↑" if row.over_default_low > 0 else " ↓" if row.over_default_high < 0 else ""
            cell = f"{row.value}: {row.dev_area:.3f}"
            cells.append(f"**{cell}**" if row.in_use else cell + told)
        lines[method, what] = ", ".join(cells)
    rows = [{"method": method, "what": what, "value: on dev": cells} for (method, what), cells in lines.items()]
    return pd.DataFrame(rows, columns=["method", "what", "value: on dev"]).set_index("method")


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


def ledger_table(folder: Path | None = None) -> pd.DataFrame:
    """Every claim with the verdict of its notebook (`NN-claims.csv`), our number, its note, and a guess why it does not
    hold where it does not; "not run" where no notebook has judged it."""
    files = sorted((folder or results_dir()).glob("[0-9][0-9]-claims.csv"))
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in files]
    judged = {row["claim"]: row for table in tables for row in table.to_dict("records")}
    verdicts = []
    for claim in claims.ledger().values():
        row = judged.get(claim.id, {"verdict": NOT_RUN, "ours": "", "note": ""})
        verdicts.append(claims.Verdict(claim, row["verdict"], row["ours"], row["note"]))
    table = claims.table(verdicts)
    table["guess"] = [each.claim.guess if each.outcome == claims.NOT_REPRODUCED else "" for each in verdicts]
    table.insert(0, "of", [each.claim.paper for each in verdicts])
    return table


def verdict_counts(verdicts: pd.Series) -> pd.DataFrame:
    """How often each verdict stands, of claims with a source and of those that are recalled and unverified, apart.

    Args:
        verdicts: by claim.
    """
    ledger = claims.ledger()
    kinds = {claims.RECALLED: "recalled, unverified [M]", claims.OURS: "our own controls [O]"}
    kind = [kinds.get(ledger[claim].source, "from a source") for claim in verdicts.index]
    counts = pd.crosstab(pd.Index(kind), verdicts.to_numpy()).rename_axis(index="claims", columns=None)
    order = [*claims.VERDICTS, NOT_RUN]
    return counts.reindex(columns=[name for name in order if name in counts])


def verdicts_by_paper(ledger: pd.DataFrame) -> pd.DataFrame:
    """Papers (rows) by verdicts (columns): the names of the claims that came to each; recalled ones in brackets, our
    own controls in italics.

    Args:
        ledger: as `ledger_table` gives it.
    """
    marks = {claims.RECALLED: "({})", claims.OURS: "*{}*"}
    named = [marks.get(row.source, "{}").format(row.claim) for row in ledger.itertuples()]
    cells = ledger.assign(claim=named).pivot_table(
        index="of", columns="verdict", values="claim", aggfunc=", ".join, sort=False, fill_value=""
    )
    order = [name for name in (*claims.VERDICTS, NOT_RUN) if name in cells]
    return cells[order].rename_axis(index="paper", columns=None)


def across_verdict(rows: pd.DataFrame, claim: str) -> claims.Verdict:
    """A claim's verdict by the intervals of all tasks and speed-ups together; those of lines whose exits have not
    learned or whose treatment did not take do not count."""
    own = rows[rows.claim == claim]
    reasons = own.unfit.astype(object).fillna("")  # a file without any reason is read as numbers
    if (reasons != "").all():
        return claims.not_testable(claim, reasons.iloc[0])
    counted = own[reasons == ""]
    intervals = [
        Interval(row.difference, row.low, row.high, units=int(row.units), seeds=int(row.seeds))
        for row in counted.itertuples()
    ]
    return claims.judge(claim, intervals)


def verdicts_by_ground(folder: Path | None = None) -> pd.DataFrame:
    """Each claim that the study compares (rows) with its verdict over all counted tasks and seeds of each encoder that
    was studied (columns): which claims depend on depth and size."""
    columns = {}
    for ground in grounds(folder):
        scores, rows = (read_table(name, folder, ground) for name in ("scores", "claims"))
        counted = rows[rows.task.isin(one_of_each_corpus(learned(scores)))]
        columns[ground] = {claim: across_verdict(counted, claim).outcome for claim in dict.fromkeys(counted.claim)}
    return pd.DataFrame(columns).rename_axis("claim")


def markdown_table(table: pd.DataFrame) -> str:
    """A table of texts in Markdown, its index as the first column; a third of the size that a notebook's HTML takes."""
    rows = [[table.index.name or "", *table.columns], *(list(row) for row in table.itertuples())]
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
