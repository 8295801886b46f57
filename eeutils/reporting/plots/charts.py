"""Figures from the columns of tidy frames: lines, points, bars, boxes and intervals.

Groups stand in the order in which a frame names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eeutils.reporting.plots.theme import DASHES, GREY, WIDTH, legend_beside, looks_of, panels_of


def lines(
    frame: pd.DataFrame, x: str, y: str, *, hue: str, levels: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
    """Lines of one column over another, one per value of `hue`; `levels` are named horizontal lines.

    Where several rows have the same `x`, such as one a seed, the line is their mean, in its 95% interval.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    look = {"style": hue, "markers": True, "dashes": False, "palette": "colorblind"}
    sns.lineplot(frame, x=x, y=y, hue=hue, seed=0, ax=axes, **look)
    for line in axes.lines:
        if len(line.get_xdata()) == 1:  # a lone point must be seen where lines pass over it
            line.set(markersize=13, zorder=1.5)
    _named_levels(axes.axhline, levels)
    axes.set_title(title)
    legend_beside(axes, hue)
    return figure


def against(
    frame: pd.DataFrame, x: str, y: str, *, hue: str | None = None, diagonal: bool = False, title: str = ""
) -> Figure:
    """One column against another as points; `diagonal` draws the line on which they are equal."""
    figure, axes = plt.subplots(figsize=(WIDTH * 0.7, 3.6))
    sns.scatterplot(frame, x=x, y=y, hue=hue, style=hue, palette="colorblind" if hue else None, s=50, ax=axes)
    if diagonal:
        ends = [frame[[x, y]].min(axis=None), frame[[x, y]].max(axis=None)]
        axes.plot(ends, ends, "--", color=GREY, linewidth=1, label="equal")
        axes.legend(fontsize="small")
    axes.set_title(title)
    return figure


def scatter(
    frame: pd.DataFrame, x: str, y: str, *, hue: str, panel: str, stars: pd.DataFrame | None = None, title: str = ""
) -> Figure:
    """Points, one panel per value of `panel`, each on a scale of its own; `stars`, in the same columns, stand out."""
    panels = frame[panel].unique()
    colours = {name: look["color"] for name, look in looks_of(frame[hue].unique()).items()}
    look = {"hue_order": list(colours), "palette": colours, "style": hue, "style_order": list(colours)}
    figure, row = panels_of((0.5 + 3.6 * len(panels), 3.6), len(panels), title=title)
    for axes, name in zip(row, panels, strict=True):
        points, last = frame[frame[panel] == name], axes is row[-1]
        sns.scatterplot(points, x=x, y=y, hue=hue, s=16, alpha=0.55, linewidth=0, legend=last, ax=axes, **look)
        # The same length for one unit on both axes: distances are what such a figure is read for.
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.12)
        if stars is not None:
            chosen = stars[stars[panel] == name]
            colour = chosen[hue].map(colours).tolist()
            axes.scatter(chosen[x], chosen[y], marker="*", s=260, c=colour, edgecolors="black", zorder=3)
        axes.set_title(str(name), fontsize="small")
    legend_beside(row[-1], hue)
    return figure


def bars(frame: pd.DataFrame, x: str, y: str, *, hue: str, low: str = "", high: str = "", title: str = "") -> Figure:
    """Grouped bars, one group per value of `x` and one bar in it per value of `hue`.

    `low` and `high` name the columns of an interval around `y`, drawn as a whisker.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    width = 0.8 / frame[hue].nunique()
    for name, look, rows, places in _side_by_side(frame, x, hue, width):
        whiskers = {"yerr": _whiskers(rows, y, low, high), "error_kw": {"elinewidth": 1}}
        axes.bar(places, rows[y], width * 0.92, color=look["color"], label=name, **whiskers)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.grid(visible=False, axis="x")
    axes.set_xticks(range(frame[x].nunique()), frame[x].unique())
    axes.set(xlabel=x, ylabel=y, title=title)
    legend_beside(axes, hue)
    return figure


def intervals(
    frame: pd.DataFrame,
    y: str,
    x: str,
    *,
    low: str = "",
    high: str = "",
    hue: str = "",
    levels: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Points in rows, one row per value of `y` from the top down, with whiskers from `low` to `high`.

    With `hue` each row has a point per value of it; `levels` are named vertical lines.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, _height(frame, y, hue)))
    _draw_intervals(axes, frame, frame, y, x, low, high, hue)
    _named_levels(axes.axvline, levels)
    axes.set(xlabel=x, title=title)
    if hue or levels:
        legend_beside(axes)
    return figure


def intervals_beside(
    frame: pd.DataFrame, y: str, x: str, *, low: str, high: str, hue: str, panel: str, level: float, title: str = ""
) -> Figure:
    """As `intervals`, a panel for each value of `panel` side by side on the same rows: what a panel does not have is
    empty there. `level` is a vertical line in all of them."""
    parts = dict(tuple(frame.groupby(panel, sort=False)))
    figure, row = panels_of((WIDTH, _height(frame, y, hue) + 0.5), len(parts), title=title)
    for axes, (name, rows) in zip(row, parts.items(), strict=True):
        _draw_intervals(axes, rows, frame, y, x, low, high, hue)
        axes.axvline(level, color=GREY, linestyle=DASHES[0], linewidth=1.2)
        axes.set_title(name, fontsize="small")
        axes.grid(axis="y", linewidth=0.5)  # the eye must get from a name to the last panel
        if axes is not row[0]:
            axes.set_yticklabels([])
    figure.supxlabel(x, fontsize="medium")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside upper right", ncols=4, fontsize="small")
    return figure


def _height(frame: pd.DataFrame, y: str, hue: str) -> float:
    return 1.1 + 0.22 * frame[y].nunique() * max(1.4, (frame[hue].nunique() if hue else 1) * 0.8)


def _draw_intervals(
    axes: Axes, rows: pd.DataFrame, whole: pd.DataFrame, y: str, x: str, low: str, high: str, hue: str
) -> None:
    """Rows of a frame, where the whole frame's groups stand, in the looks of its series."""
    count, series = whole[y].nunique(), whole[hue].nunique() if hue else 1
    for name, look, own, places in _side_by_side(rows, y, hue, 0.7 / series, whole):
        whiskers = {"xerr": _whiskers(own, x, low, high), "elinewidth": 1.3}
        axes.errorbar(own[x], places, label=name, linestyle="none", markersize=5, **look, **whiskers)
    axes.set_yticks(range(count), whole[y].unique())
    axes.set_ylim(-0.6, count - 0.4)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def distribution(frame: pd.DataFrame, x: str, values: Sequence[str], *, title: str = "") -> Figure:
    """Box plots of several columns over the sorted groups of one, side by side; whiskers: 5th to 95th percentile."""
    figure, row = panels_of((0.5 + 3.6 * len(values), 3.2), len(values), title=title)
    look = {"widths": 0.8, "patch_artist": True, "boxprops": {"facecolor": "0.8"}, "medianprops": {"color": GREY}}
    for axes, value in zip(row, values, strict=True):
        groups = {str(group): rows.dropna() for group, rows in frame.groupby(x)[value]}
        axes.boxplot(list(groups.values()), tick_labels=list(groups), whis=(5, 95), showfliers=False, **look)
        axes.set(xlabel=x, ylabel=value)
    return figure


def _side_by_side(
    frame: pd.DataFrame, group: str, hue: str, room: float, whole: pd.DataFrame | None = None
) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame, np.ndarray]]:
    """Of each value of `hue` its name, look and rows, and where they stand: around the ticks of their groups, those of
    the whole frame where the rows are a part of it."""
    whole = frame if whole is None else whole
    groups, names = pd.Index(whole[group].unique()), whole[hue].unique() if hue else [""]
    for number, (name, look) in enumerate(looks_of(names).items()):
        rows = frame[frame[hue] == name] if hue else frame
        yield name, look, rows, groups.get_indexer(rows[group]) + (number - (len(names) - 1) / 2) * room


def _whiskers(rows: pd.DataFrame, value: str, low: str, high: str) -> np.ndarray | None:
    return np.stack([rows[value] - rows[low], rows[high] - rows[value]]) if low and high else None


def _named_levels(draw: Callable[..., Line2D], levels: Mapping[str, float] | None) -> None:
    for (name, level), style in zip((levels or {}).items(), cycle(DASHES), strict=False):
        draw(level, color=GREY, linestyle=style, linewidth=1.2, label=name)
