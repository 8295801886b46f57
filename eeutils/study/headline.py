"""The headline of README: a short table out of the study's, and where it stands."""

import re
from pathlib import Path

import pandas as pd

from eeutils.errors import InputError
from eeutils.files import atomic_write
from eeutils.papers.comparisons import PLAIN
from eeutils.study import page
from eeutils.study.entries import FIXED
from eeutils.study.sentences import blind_exits

MARKS = ("<!-- study: begin -->", "<!-- study: end -->")
"""In README, the table stands between them."""

BASELINES = ("PABEE's exits, entropy", FIXED)
"""What stands beside the methods."""


def headline_table(scores: pd.DataFrame, speedup: float = 2.0) -> str:
    """The table of README in Markdown: methods by task at one layer speed-up, beside two baselines and the plain model.

    The best of each task is bold; an arrow says that the paired interval of the distance to the fixed exits leaves out
    zero, upwards or downwards.

    Raises:
        InputError: no task that was learned, or nothing of this speed-up in the table.
    """
    known = page.learned(scores)
    layers = scores[(scores.axis == "layers") & scores.task.isin(known)]
    rows = layers[(layers.speedup == speedup) & ((layers.kind == "method") | layers.method.isin(BASELINES))]
    if len(rows) == 0:
        raise InputError(f"study-scores.csv holds no task that was learned, at {speedup:g}x; run `make study` first")
    best = rows.groupby("task").score.transform("max")
    cells = []
    for row, top in zip(rows.itertuples(), best, strict=True):
        score = f"**{row.score:.3f}**" if row.score == top else f"{row.score:.3f}"
        cells.append(score + page.arrow(row))
    plain = page.without_exiting(layers, PLAIN).assign(method=f"{PLAIN}, 1x")
    shown = pd.concat([rows.assign(cell=cells), plain.assign(cell=plain.score.map("{:.3f}".format))])
    table = page.crossed(shown, "method", "task", shown.cell).fillna("").rename_axis(None)
    table.columns = [f"{page.title_of(task)} ({page.metric_name(task)})" for task in table.columns]
    seeds = sorted(rows.groupby("task").seeds.max().unique())
    left_out = [page.title_of(task) for task in dict.fromkeys(scores.task) if task not in known]
    facts = (
        f"Scores at {speedup:g}x by layers, mean over {' or '.join(map(str, seeds))} seeds, profile "
        f"{rows.profile.iloc[0]}, {rows.backbone.iloc[0]}. Bold: the highest of a task. ↑ ↓: above or below the fixed "
        "exits, which cost nothing, by more than a 95% interval. Empty: out of reach, or without a meaning there. "
        + (f"Left out, as the plain model did not learn it at this size: {', '.join(left_out)}. " if left_out else "")
        + "".join(f"{sentence} " for sentence in blind_exits(scores))
        + "Intervals, other speed-ups and the cost of each method: [notebook 08](notebooks/08_scoreboard.ipynb)."
    )
    return f"{page.markdown_table(table)}\n\n{facts}"


def write_readme(path: Path) -> None:
    """Put `headline_table` between the marks of a README.

    Raises:
        InputError: a file without the marks.
    """
    begin, end = MARKS
    text = path.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise InputError(f"{path.name} has no marks; put {begin} and {end} on lines of their own where the table goes")
    table = headline_table(page.read_table("scores"))
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", flags=re.DOTALL)
    with atomic_write(path) as partial:
        partial.write_text(between.sub(lambda _: f"{begin}\n{table}\n{end}", text), encoding="utf-8")
