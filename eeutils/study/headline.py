"""The headline of README: a short table out of the study's, and where it stands."""

import re
from pathlib import Path

import pandas as pd

from eeutils.errors import InputError
from eeutils.files import atomic_write
from eeutils.models.backbone import described
from eeutils.papers.comparisons import PLAIN
from eeutils.study import page
from eeutils.study.entries import LINEAR, PABEE_ENTROPY
from eeutils.study.sentences import headlines, left_out

MARKS = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in ("findings", "study")}
"""In README, findings and table stand between theirs."""

BASELINES = (PABEE_ENTROPY, LINEAR)
"""What stands beside the methods."""


def headline_table(scores: pd.DataFrame, speedup: float = 2.0) -> str:
    """The table of README in Markdown: methods and baselines by task at one FLOPs speed-up, beside the best blind
    policy and the plain model.

    The highest of each task is bold, whatever it is; an arrow says that the paired interval of the distance to the best
    blind policy leaves out zero, upwards or downwards.

    Raises:
        InputError: no task that was learned, or nothing of this speed-up in the table.
    """
    known = page.learned(scores)
    flops = scores[(scores.axis == "flops") & scores.task.isin(known) & (scores.kind != "control")]
    rows = flops[flops.speedup == speedup]
    if len(rows) == 0:
        raise InputError(f"study-scores.csv holds no task that was learned, at {speedup:g}x; run `make study` first")
    best = rows.groupby("task").score.transform("max")
    cells = []
    for row, top in zip(rows.itertuples(), best, strict=True):
        score = f"**{row.score:.3f}**" if row.score == top else f"{row.score:.3f}"
        cells.append(score + page.arrow(row))
    shown = rows.assign(cell=cells)
    shown = shown[(shown.kind == "method") | shown.method.isin(BASELINES) | (shown.score == best)]
    # One and the same for every line: what a line has less its distance.
    blind = rows.dropna(subset=["over_blind"]).groupby("task", sort=False).first().reset_index()
    blind = blind.assign(method="best blind policy", cell=(blind.score - blind.over_blind).map("{:.3f}".format))
    plain = page.without_exiting(scores[scores.task.isin(known)], PLAIN).assign(method=f"{PLAIN}, 1x")
    plain = plain.assign(cell=plain.score.map("{:.3f}".format))
    shown = pd.concat([shown, blind, plain])
    table = page.crossed(shown, "method", "task", shown.cell).fillna("").rename_axis(None)
    table.columns = [f"{page.title_of(task)} ({page.metric_name(task)})" for task in table.columns]
    seeds = sorted(rows.groupby("task").seeds.max().unique())
    facts = (
        f"Scores at {speedup:g}x in FLOPs, {' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])}, profile "
        f"{rows.profile.iloc[0]}, {described(rows.backbone.iloc[0])}. Bold: the highest of a task. ↑ ↓: above or below "
        "the best blind policy, which looks at no sample, by more than a 95% interval. Empty: out of reach, or without "
        "a meaning there. "
        + "".join(f"{sentence} " for sentence in left_out(scores))
        + "Intervals, other speed-ups and the cost of each method: [notebook 08](notebooks/08_scoreboard.ipynb)."
    )
    return f"{page.markdown_table(table)}\n\n{facts}"


def write_readme(path: Path) -> None:
    """Put what was found, and `headline_table`, between the marks of a README.

    Raises:
        InputError: a file without the marks.
    """
    text = path.read_text(encoding="utf-8")
    ground = next(iter(page.grounds()), "")
    scores, costs = (page.read_table(name, backbone=ground) for name in ("scores", "costs"))
    found = "\n".join(f"- {sentence}" for sentence in headlines(scores, costs))
    for name, block in (("findings", found), ("study", headline_table(scores))):
        begin, end = MARKS[name]
        if begin not in text or end not in text:
            raise InputError(f"{path.name} has no marks; put {begin} and {end} on lines of their own where {name} go")
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", flags=re.DOTALL)
        text = between.sub(lambda _, whole=f"{begin}\n{block}\n{end}": whole, text)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
