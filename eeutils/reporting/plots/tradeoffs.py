"""Figures of exits and rules: what they score at which speed-up, where samples leave, how sure each exit is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eeutils.errors import unknown
from eeutils.exiting.tradeoff import SPEEDUPS
from eeutils.reporting.plots.theme import DASHES, GREY, WIDTH, legend_beside, looks_of, panels_of

SPEEDUP_NAMES = {"flops": "FLOPs speed-up", "layers": "layer speed-up"}
"""Axis -> what it is called in figures and tables."""

STEPS = 50
"""From one point of a curve to the next, of what is drawn straight over cost on an axis of speed-ups."""


def tradeoff(
    curves: Mapping[str, pd.DataFrame],
    *,
    metric: str,
    points: Mapping[str, pd.DataFrame] | None = None,
    fixed: Mapping[str, pd.DataFrame] | None = None,
    blind: pd.DataFrame | None = None,
    separate: pd.DataFrame | None = None,
    oracle: pd.DataFrame | None = None,
    axis: str = "flops",
    dashed: Sequence[str] = (),
    grey: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Score against speed-up.

    Lines between few points are those of a coin that sends a share of the samples to each neighbour: straight over
    cost, so bent over the speed-up. An oracle far above the curves stands at the edge, with its score written beside
    it, so that it does not squeeze them.

    Args:
        curves: name -> a curve of `tradeoff.sweep`; with columns low and high (`intervals.with_band`) in its band;
            names in `dashed` are drawn dashed and without one, those in `grey` step back (more than two of them as
            "others").
        metric: name of the score.
        points: name -> operating points that nothing connects, such as one model each.
        fixed: name of the checkpoint -> its `tradeoff.fixed_exits`, the first baseline.
        blind: the best blind policy, as `tradeoff.blind_curve` gives it.
        separate: columns layer_speedup, flops_speedup, score of separately fine-tuned k-layer models, the second one.
        oracle: a point of the oracle, drawn as headroom.
        axis: of the speed-up, "flops" or "layers".
        title: above the figure.

    Raises:
        InputError: an unknown axis.
    """
    column, points = _column_of(axis), points or {}
    looks = looks_of([*points, *(name for name in curves if name not in grey)])
    looks |= {name: {"color": "0.7", "marker": ""} for name in grey}
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2))
    for name, chosen in points.items():
        axes.scatter(chosen[column], chosen.score, s=60, label=name, zorder=3, **looks[name])
    for name, curve in curves.items():
        look = looks[name] if len(curve) <= 12 else {"color": looks[name]["color"]}
        width, style = (1.0 if name in grey else 1.8), ("--" if name in dashed else "-")
        # Many grey lines are one group: their names would tell nobody which is which.
        label = name if name not in grey or len(grey) <= 2 else "others" if name == grey[0] else "_nolegend_"
        _coin_line(axes, curve, column, style, linewidth=width, label=label, **look)
        if "low" in curve and name not in (*grey, *dashed):  # many bands are none
            speedup, low, high = _between(curve, column, "low", "high")
            axes.fill_between(speedup, low, high, color=look["color"], alpha=0.12, linewidth=0)
    for number, (name, exits) in enumerate((fixed or {}).items()):
        colour, marker = ((GREY, "."), ("0.6", "+"), ("0.5", "1"))[min(number, 2)]
        _coin_line(axes, exits, column, "--", marker=marker, color=colour, label=f"fixed exits, {name}")
    if blind is not None:
        axes.plot(blind[column], blind.score, "--", color=GREY, linewidth=1.2, label="best blind policy")
    if separate is not None:
        label = "k-layer model, fine-tuned separately"
        _coin_line(axes, separate, column, ":", marker="x", color=GREY, label=label)
    if oracle is not None:
        _oracle_at_the_edge(axes, oracle, column)
    _speedup_axis(axes, SPEEDUP_NAMES[axis])
    axes.set(ylabel=metric, title=title)
    if len(axes.get_legend_handles_labels()[0]) > 6:  # inside, it would hide curves
        legend_beside(axes)
    else:
        axes.legend(fontsize="small")
    return figure


def leaving(curve: pd.DataFrame, layers: Sequence[int], *, axis: str = "flops", title: str = "") -> Figure:
    """Where samples leave as the threshold moves: the share of each layer over the speed-up, "flops" or "layers"."""
    column = _column_of(axis)
    points = curve.sort_values(column)
    shares = [points[f"leave_{stage}"] for stage in range(1, len(layers) + 1)]
    labels, colours = [f"layer {layer}" for layer in layers], sns.color_palette("viridis", len(layers))
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    axes.stackplot(points[column], shares, labels=labels, colors=colours, linewidth=0)
    _speedup_axis(axes, SPEEDUP_NAMES[axis])
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set(ylim=(0, 1), ylabel="share of samples", title=title)
    legend_beside(axes, "leaves after")
    return figure


def panels(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    hue: str,
    panel: str,
    dashed: Sequence[str] = (),
    grey: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Lines over a speed-up, one panel per value of `panel` on its own scale, one legend for all.

    Values of `hue` look alike in every panel: those in `grey` step back, those in `dashed` are drawn dashed. A line of
    one point is a star.
    """
    places, names = frame[panel].unique(), frame[hue].unique()
    columns = min(len(places), 2 if len(places) <= 4 else 3)
    rows = -(-len(places) // columns)
    size = (WIDTH, 4.4) if len(places) == 1 else (3.7 * columns + 1.9, 3.1 * rows)  # the legend stands beside them
    figure, grid = panels_of(size, columns, rows, title=title)
    looks = looks_of(name for name in names if name not in grey)
    for name, look in looks.items():  # with markers, for colours of ten lines are too alike to tell them by
        look |= {"markersize": 4.5, "markevery": 0.12, "linestyle": "--" if name in dashed else "-"}
    looks |= {name: {"color": "0.4", "linestyle": style} for name, style in zip(grey, cycle(DASHES), strict=False)}
    handles = {}
    for axes, place in zip(grid, places, strict=False):
        for name, line in frame[frame[panel] == place].sort_values(x).groupby(hue, sort=False):
            star = {"marker": "*", "markersize": 11, "markevery": None} if len(line) == 1 else {}
            [handles[name]] = axes.plot(line[x], line[y], linewidth=1.5, **looks[name] | star)
        _speedup_axis(axes, x)
        axes.set_title(str(place), fontsize="medium")
        axes.set_ylabel(y)
    for axes in grid[len(places) :]:
        axes.axis("off")
    shown = [name for name in names if name in handles]
    figure.legend([handles[name] for name in shown], shown, fontsize="small", loc="outside right center")
    return figure


def stage_scores(
    scores: Mapping[str, Iterable[float]] | pd.DataFrame, *, metric: str, layers: Sequence[int], title: str = ""
) -> Figure:
    """The score of every exit, one line per model."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    for name, look in looks_of(scores).items():
        axes.plot(layers, scores[name], label=name, **look)
    axes.set(xticks=list(layers), xlabel="exit after layer", ylabel=metric, title=title)
    axes.legend(fontsize="small")
    return figure


def reliability(tables: Mapping[str, pd.DataFrame], *, title: str = "") -> Figure:
    """Accuracy over confidence, one line per table of `calibration.reliability`; larger points hold more samples."""
    figure, axes = plt.subplots(figsize=(WIDTH * 0.75, 4.2))
    for name, look in looks_of(tables).items():
        confidence, accuracy, samples = (tables[name][column] for column in ("confidence", "accuracy", "samples"))
        axes.plot(confidence, accuracy, linewidth=1.4, color=look["color"], label=name)
        axes.scatter(confidence, accuracy, s=12 + 160 * samples / samples.sum(), **look)
    start = min(float(table.confidence.min()) for table in tables.values())
    axes.plot([start, 1], [start, 1], "--", color=GREY, linewidth=1, label="as sure as it is right")
    axes.set(xlabel="confidence", ylabel="accuracy", title=title)
    axes.legend(fontsize="small", loc="upper left")
    return figure


def _column_of(axis: str) -> str:
    if axis not in SPEEDUPS:
        raise unknown("axis", axis, SPEEDUPS)
    return SPEEDUPS[axis]


def _coin_line(axes: Axes, curve: pd.DataFrame, column: str, style: str, **look: Any) -> None:
    """A line whose every point can be had: straight over cost between the points of a curve, which are marked."""
    axes.plot(*_between(curve, column, "score"), linestyle=style, markevery=STEPS, **look)


def _between(curve: pd.DataFrame, column: str, *names: str) -> list[np.ndarray]:
    """Speed-ups and columns of a curve, with `STEPS` steps from each of its points to the next, straight over cost."""
    points = curve.sort_values(column)
    place = np.arange((len(points) - 1) * STEPS + 1) / STEPS
    ends = (1 / points[column], *(points[name] for name in names))
    cost, *values = (np.interp(place, range(len(points)), each) for each in ends)
    return [1 / cost, *values]


def _oracle_at_the_edge(axes: Axes, oracle: pd.DataFrame, column: str) -> None:
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    score, speedup = float(oracle.score.iloc[0]), float(oracle[column].iloc[0])
    beyond = score > high or speedup > right
    label = f"oracle (needs the labels), {score:.3f} at {speedup:.1f}x" if beyond else "oracle (needs the labels)"
    place = (min(speedup, right), min(score, high))
    axes.scatter(*place, marker="*", s=90, color=GREY, label=label, clip_on=False, zorder=4)
    axes.set(xlim=(axes.get_xlim()[0], right), ylim=(low, high))


def _speedup_axis(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter("{x:g}x")
