"""The headline of README: a short table out of the study's, and where it stands."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from eeutils.errors import InputError
from eeutils.files import atomic_write
from eeutils.models.backbone import described
from eeutils.papers.comparisons import PLAIN
from eeutils.study import page, writing
from eeutils.study.entries import LINEAR, PABEE_ENTROPY
from eeutils.study.sentences import headlines, left_out

MARKS = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in ("findings", "study", "writing")}
"""In README, findings and tables stand between theirs."""

BASELINES = (PABEE_ENTROPY, LINEAR)
"""What stands beside the methods."""
BLIND = "best blind policy"


def headline_table(*grounds: pd.DataFrame, speedup: float = 2.0) -> str:
    """The table of README in Markdown: methods and baselines by task at one FLOPs speed-up, beside the best blind
    policy and the plain model; the scores of several encoders side by side.

    The highest of each task is bold, whatever it is; an arrow says that the paired interval of the distance to the best
    blind policy leaves out zero, upwards or downwards.

    Raises:
        InputError: no task that was learned, or nothing of this speed-up in a table.
    """
    tables, facts, reasons = [], [], []
    found = [_at(scores, speedup) for scores in grounds]
    # Who is the highest of one task is shown on all of them.
    highest = {name for rows in found for name in rows.loc[rows.groupby("task").score.idxmax(), "method"]}
    for scores, rows in zip(grounds, found, strict=True):
        name = rows.backbone.iloc[0]
        table = _columns(scores, rows, {*BASELINES, *highest})
        if len(grounds) > 1:
            table.columns = [f"{title}, {name}" for title in table.columns]
        tables.append(table)
        seeds = sorted(rows.groupby("task").seeds.max().unique())
        told = f"{' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])}"
        facts.append(f"{told}, profile {rows.profile.iloc[0]}, {described(name)}")
        with_it = "" if scores is grounds[0] else f"With {name}: "
        reasons += [f"{with_it}{sentence} " for sentence in left_out(scores)]
    whole = pd.concat(tables, axis=1).fillna("")
    last = [name for name in (BLIND, f"{PLAIN}, 1x") if name in whole.index]
    whole = whole.loc[[*(name for name in whole.index if name not in last), *last]].rename_axis(None)
    legend = (
        f"Scores at {speedup:g}x in FLOPs, {'; '.join(facts)}. Bold: the highest of a task. ↑ ↓: above or below "
        "the best blind policy, which looks at no sample, by more than a 95% interval. Empty: out of reach, not run, "
        f"or without a meaning there. {''.join(reasons)}Intervals, other speed-ups and the cost of each method: "
        "[notebook 08](notebooks/08_scoreboard.ipynb)."
    )
    return f"{page.markdown_table(whole)}\n\n{legend}"


def _at(scores: pd.DataFrame, speedup: float) -> pd.DataFrame:
    """The rows of the tasks that were learned at that speed-up in FLOPs, controls left out."""
    flops = scores[(scores.axis == "flops") & scores.task.isin(page.learned(scores)) & (scores.kind != "control")]
    rows = flops[flops.speedup == speedup]
    if len(rows) == 0:
        raise InputError(f"study-scores.csv holds no task that was learned, at {speedup:g}x; run `make study` first")
    return rows


def _columns(scores: pd.DataFrame, rows: pd.DataFrame, beside: Collection[str]) -> pd.DataFrame:
    """A column a task, of one encoder: what stands in each cell of the table, for methods and for what stands beside
    them."""
    best = rows.groupby("task").score.transform("max")
    cells = []
    for row, top in zip(rows.itertuples(), best, strict=True):
        score = f"**{row.score:.3f}**" if row.score == top else f"{row.score:.3f}"
        cells.append(score + page.arrow(row))
    shown = rows.assign(cell=cells)
    shown = shown[(shown.kind == "method") | shown.method.isin(beside)]
    # One and the same for every line: what a line has less its distance.
    blind = rows.dropna(subset=["over_blind"]).groupby("task", sort=False).first().reset_index()
    blind = blind.assign(method=BLIND, cell=(blind.score - blind.over_blind).map("{:.3f}".format))
    plain = page.without_exiting(scores[scores.task.isin(page.learned(scores))], PLAIN).assign(method=f"{PLAIN}, 1x")
    plain = plain.assign(cell=plain.score.map("{:.3f}".format))
    shown = pd.concat([shown, blind, plain])
    table = page.crossed(shown, "method", "task", shown.cell).fillna("")
    table.columns = [f"{page.title_of(task)} ({page.metric_name(task)})" for task in table.columns]
    return table


def findings(grounds: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> list[str]:
    """What came out: `headlines` of the first encoder, and of each other one who beats the best blind policy at 2x.

    Args:
        grounds: encoder -> its scores and its costs.
    """
    (_, first), *others = grounds.items()
    told = headlines(*first)
    for name, tables in others:
        told += [
            f"With {described(name)}: {sentence[0].lower()}{sentence[1:]}"
            for sentence in headlines(*tables)
            if "at 2x" in sentence.lower() and "blind policy" in sentence
        ]
    return told


def writing_table(folder: Path | None = None) -> str:
    """README's table of a decoder that writes, and what it shows; a sentence where no notebook has written."""
    rows = writing.table(folder)
    if rows.empty:
        return "Not run: notebooks 09 and 10 keep the tables."
    legend = (
        f"Descriptions of Wikipedia's first paragraphs, smollm2-135m, one seed: each way at its point nearest to "
        f"{writing.NEAR:g}x. Intervals and claims: notebooks [09](notebooks/09_generation.ipynb) and "
        "[10](notebooks/10_generation_methods.ipynb)."
    )
    return f"{page.markdown_table(rows)}\n\n{legend}"


def by_ground(folder: Path | None = None) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Encoder -> its scores and its costs, of all that the study has been run with and that learned a task."""
    tables = {
        name: tuple(page.read_table(kind, folder, name) for kind in ("scores", "costs"))
        for name in page.grounds(folder)
    }
    return {name: found for name, found in tables.items() if page.learned(found[0])}


def blocks(folder: Path | None = None) -> dict[str, str]:
    """What stands between the marks.

    Raises:
        InputError: no task that was learned.
    """
    grounds = by_ground(folder)
    if not grounds:
        raise InputError("study-scores.csv holds no task that was learned; run `make study` first")
    told = "\n".join(f"- {sentence}" for sentence in [*findings(grounds), *writing.found(folder)])
    study = headline_table(*(scores for scores, _ in grounds.values()))
    return {"findings": told, "study": study, "writing": writing_table(folder)}


def write_readme(path: Path) -> None:
    """Put what was found, and `headline_table`, between the marks of a README.

    Raises:
        InputError: a file without the marks, or no task that was learned.
    """
    text = path.read_text(encoding="utf-8")
    for name, block in blocks().items():
        begin, end = MARKS[name]
        if begin not in text or end not in text:
            raise InputError(f"{path.name} has no marks; put {begin} and {end} on lines of their own where {name} go")
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", flags=re.DOTALL)
        text = between.sub(lambda _, whole=f"{begin}\n{block}\n{end}": whole, text)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
