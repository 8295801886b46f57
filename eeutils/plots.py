"""Every figure of the notebooks: one theme, readable in print and by colour-blind readers.

Functions draw what they are given and compute nothing; each returns a matplotlib figure. `show` displays it with its
alternative text and, when asked, keeps it as a PNG.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image as PILImage

from eeutils.files import atomic_write

WIDTH = 7.0
"""Inches: fits a notebook and a page."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_RESOLUTION = 100
_COLOURS = 256


def use_theme() -> None:
    """The theme of all figures; call it once at the top of a notebook."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind", font_scale=0.85)
    plt.rcParams.update({"figure.dpi": _RESOLUTION, "axes.titleweight": "bold", "axes.titlelocation": "left"})


def show(figure: Figure, alt: str, save_to: str | Path = "", name: str = "") -> None:
    """Display a figure as a PNG with its alternative text; with `save_to` and `name`, keep it in `save_to/figures/`."""
    full, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=_RESOLUTION, bbox_inches="tight")
    plt.close(figure)
    # Few colours make a small file: a notebook with eight figures stays small enough to commit. A line may show in the
    # legend alone, behind another one, and must keep its colour all the same: hence MAXCOVERAGE.
    few_colours = PILImage.open(full).convert("RGB")
    few_colours = few_colours.quantize(_COLOURS, PILImage.Quantize.MAXCOVERAGE, dither=PILImage.Dither.NONE)
    few_colours.save(buffer, "png", optimize=True)
    if save_to and name:
        with atomic_write(Path(save_to) / "figures" / f"{name}.png") as partial:
            partial.write_bytes(buffer.getvalue())
    display(Image(data=buffer.getvalue(), format="png", alt=alt))


def tradeoff(
    curves: Mapping[str, pd.DataFrame],
    *,
    metric: str,
    points: Mapping[str, pd.DataFrame] | None = None,
    fixed: Mapping[str, pd.DataFrame] | None = None,
    separate: pd.DataFrame | None = None,
    oracle: pd.DataFrame | None = None,
    speedup: str = "layer",
    dashed: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Score against speed-up.

    Lines between few points are those of a coin that sends a share of the samples to each neighbour: straight over
    cost, so bent over the speed-up.

    Args:
        curves: name -> a curve of `tradeoff.sweep`; names in `dashed` are drawn dashed.
        metric: name of the score.
        points: name -> operating points that nothing connects, such as one model each.
        fixed: name of the checkpoint -> its `tradeoff.fixed_exits`, the first baseline.
        separate: columns layer_speedup, flops_speedup, score of separately fine-tuned k-layer models, the second one.
        oracle: a point of the oracle, drawn as headroom.
        speedup: "layer" or "flops".
        title: above the figure.
    """
    column = f"{speedup}_speedup"
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2))
    colours = sns.color_palette("colorblind", len(points or {}) + len(curves))
    for number, (name, chosen) in enumerate((points or {}).items()):
        marker = _MARKERS[number % len(_MARKERS)]
        axes.scatter(chosen[column], chosen.score, s=60, marker=marker, color=colours[number], label=name, zorder=3)
    for number, (name, curve) in enumerate(curves.items(), len(points or {})):
        marker = _MARKERS[number % len(_MARKERS)] if len(curve) <= 12 else ""
        style = "--" if name in dashed else "-"
        _coin_line(axes, curve, column, style, marker=marker, color=colours[number], linewidth=1.8, label=name)
    for number, (name, exits) in enumerate((fixed or {}).items()):
        grey, marker = (("0.35", "."), ("0.6", "+"), ("0.5", "1"))[min(number, 2)]
        _coin_line(axes, exits, column, "--", marker=marker, color=grey, label=f"fixed exits, {name}")
    if separate is not None:
        label = "k-layer model, fine-tuned separately"
        _coin_line(axes, separate, column, ":", marker="x", color="0.35", label=label)
    if oracle is not None:
        axes.scatter(oracle[column], oracle.score, marker="*", s=90, color="0.35", label="oracle (needs the labels)")
    _speedup_axis(axes, f"{'FLOPs' if speedup == 'flops' else 'layer'} speed-up")
    axes.set_ylabel(metric)
    axes.set_title(title)
    if len(axes.get_legend_handles_labels()[0]) > 6:  # inside, it would hide curves
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    else:
        axes.legend(fontsize="small", loc="best")
    return figure


def stage_scores(
    scores: Mapping[str, Sequence[float]], *, metric: str, title: str = "", layers: Sequence[int]
) -> Figure:
    """The score of every exit, one line per model."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    for number, (name, values) in enumerate(scores.items()):
        axes.plot(layers, values, marker=_MARKERS[number % len(_MARKERS)], label=name)
    axes.set_xticks(list(layers))
    axes.set_xlabel("exit after layer")
    axes.set_ylabel(metric)
    axes.set_title(title)
    axes.legend(fontsize="small")
    return figure


def leaving(curve: pd.DataFrame, layers: Sequence[int], *, title: str = "") -> Figure:
    """Where samples leave as the threshold moves: shares of each layer over the layer speed-up."""
    points = curve.sort_values("layer_speedup")
    shares = points[[f"leave_{stage + 1}" for stage in range(len(layers))]].to_numpy().T
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    colours = sns.color_palette("viridis", len(layers))
    labels = [f"layer {layer}" for layer in layers]
    axes.stackplot(points.layer_speedup, shares, labels=labels, colors=colours, linewidth=0)
    _speedup_axis(axes, "layer speed-up")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_ylabel("share of samples")
    axes.set_title(title)
    axes.legend(title="leaves after", fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def journeys(
    texts: Sequence[str],
    probabilities: np.ndarray,
    leaves: Sequence[int],
    labels: Sequence[str],
    *,
    layers: Sequence[int],
    positive: str,
    title: str = "",
) -> Figure:
    """Single sentences on their way through the layers.

    Args:
        texts: sentences; long ones are shortened.
        probabilities: (sentences, stages), of the class `positive`.
        leaves: stage (from 0) at which each one leaves; what comes after never runs and is drawn faded.
        labels: what is right, written after the sentence.
        layers: the layer of each stage.
        positive: name of that class.
        title: above the figure.
    """
    figure, axes = plt.subplots(figsize=(WIDTH + 2, 0.42 * len(texts) + 1.3))
    sns.heatmap(
        probabilities,
        ax=axes,
        vmin=0,
        vmax=1,
        cmap="PuOr",
        annot=True,
        fmt=".2f",
        annot_kws={"size": 8},
        linewidths=1,
        cbar_kws={"label": f"p({positive})"},
    )
    for row, stage in enumerate(leaves):
        axes.add_patch(plt.Rectangle((stage, row), 1, 1, fill=False, edgecolor="black", linewidth=2))
        width = probabilities.shape[1] - stage - 1
        axes.add_patch(plt.Rectangle((stage + 1, row), width, 1, facecolor="white", alpha=0.65, linewidth=0))
    texts = [" ".join(text.split()) for text in texts]
    short = [text if len(text) <= 62 else text[:59].rstrip() + "..." for text in texts]
    axes.set_yticklabels(
        [f"{text}  ({label})" for text, label in zip(short, labels, strict=True)], rotation=0, fontsize=8
    )
    axes.set_xticklabels(list(layers))
    axes.set_xlabel("after layer (black frame: leaves here; faded: never runs)")
    axes.set_title(title)
    return figure


def against(
    frame: pd.DataFrame, x: str, y: str, *, hue: str | None = None, diagonal: bool = False, title: str = ""
) -> Figure:
    """One column against another as points; `diagonal` draws the line on which they are equal."""
    figure, axes = plt.subplots(figsize=(WIDTH * 0.7, 3.6))
    sns.scatterplot(frame, x=x, y=y, hue=hue, style=hue, palette="colorblind" if hue else None, s=50, ax=axes)
    if diagonal:
        ends = [float(frame[[x, y]].min().min()), float(frame[[x, y]].max().max())]
        axes.plot(ends, ends, "--", color="0.35", linewidth=1, label="equal")
        axes.legend(fontsize="small")
    axes.set_title(title)
    return figure


def lines(
    frame: pd.DataFrame, x: str, y: str, *, hue: str, levels: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
    """Lines of one column over another, one per value of `hue`; `levels` are named horizontal lines."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    sns.lineplot(frame, x=x, y=y, hue=hue, style=hue, markers=True, dashes=False, palette="colorblind", ax=axes)
    for line in axes.lines:
        if len(line.get_xdata()) == 1:  # a lone point must be seen where lines pass over it
            line.set(markersize=13, zorder=1.5)
    for number, (name, level) in enumerate((levels or {}).items()):
        axes.axhline(level, color="0.35", linestyle=("--", ":", "-.")[number % 3], linewidth=1.2, label=name)
    axes.set_title(title)
    axes.legend(title=hue, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def bars(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    hue: str,
    low: str = "",
    high: str = "",
    title: str = "",
) -> Figure:
    """Grouped bars, one group per value of `x` and one bar in it per value of `hue`.

    `low` and `high` name the columns of an interval around `y`, drawn as a whisker.
    """
    groups, names = list(dict.fromkeys(frame[x])), list(dict.fromkeys(frame[hue]))
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    width = 0.8 / len(names)
    for number, (name, colour) in enumerate(zip(names, sns.color_palette("colorblind", len(names)), strict=True)):
        rows = frame[frame[hue] == name]
        places = [groups.index(group) + (number - (len(names) - 1) / 2) * width for group in rows[x]]
        whiskers = [(rows[y] - rows[low]).to_numpy(), (rows[high] - rows[y]).to_numpy()] if low and high else None
        axes.bar(places, rows[y], width * 0.92, color=colour, label=name, yerr=whiskers, error_kw={"elinewidth": 1})
    axes.axhline(0, color="0.35", linewidth=0.8)
    axes.grid(visible=False, axis="x")
    axes.set_xticks(range(len(groups)), [str(group) for group in groups])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.legend(title=hue, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def matrices(
    named: Mapping[str, np.ndarray],
    labels: Sequence[object],
    *,
    axis: str,
    value: str,
    low: float = -1.0,
    high: float = 1.0,
    title: str = "",
) -> Figure:
    """Square matrices side by side on one colour scale, their entries written in; NaN stays empty."""
    figure, row = plt.subplots(
        1, len(named), figsize=(0.5 + 3.1 * len(named), 3.2), squeeze=False, layout="constrained"
    )
    for number, (axes, (name, matrix)) in enumerate(zip(row[0], named.items(), strict=True)):
        sns.heatmap(
            matrix,
            ax=axes,
            vmin=low,
            vmax=high,
            cmap="PuOr" if low < 0 else "viridis",
            annot=True,
            fmt=".2f",
            annot_kws={"size": 7},
            square=True,
            cbar=number == len(named) - 1,
            cbar_kws={"label": value},
            xticklabels=list(labels),
            yticklabels=list(labels),
        )
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel(axis)
        axes.set_ylabel(axis if number == 0 else "")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize="large")
    return figure


def scatter(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    hue: str,
    panel: str,
    stars: pd.DataFrame | None = None,
    title: str = "",
) -> Figure:
    """Points, one panel per value of `panel`, each on a scale of its own; `stars`, in the same columns, stand out."""
    panels, names = list(dict.fromkeys(frame[panel])), list(dict.fromkeys(frame[hue]))
    colours = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    markers = dict(zip(names, _MARKERS[: len(names)], strict=True))
    figure, row = plt.subplots(
        1, len(panels), figsize=(0.5 + 3.6 * len(panels), 3.6), squeeze=False, layout="constrained"
    )
    for number, (axes, name) in enumerate(zip(row[0], panels, strict=True)):
        points = frame[frame[panel] == name]
        sns.scatterplot(
            points,
            x=x,
            y=y,
            hue=hue,
            style=hue,
            palette=colours,
            markers=markers,
            s=16,
            alpha=0.55,
            linewidth=0,
            ax=axes,
            legend="brief" if number == len(panels) - 1 else False,
        )
        # The same length for one unit on both axes: distances are what such a figure is read for.
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.12)
        if stars is not None:
            chosen = stars[stars[panel] == name]
            colour = chosen[hue].map(colours).tolist()
            axes.scatter(chosen[x], chosen[y], marker="*", s=260, c=colour, edgecolors="black", zorder=3)
        axes.set_title(str(name), fontsize="small")
    row[0, -1].legend(title=hue, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize="large")
    return figure


def words(
    sentences: Sequence[Sequence[str]],
    layers: Sequence[Sequence[int]],
    *,
    depth: int,
    notes: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Sentences with each word coloured by the layer after which it stops.

    Args:
        sentences: the words of each; long sentences go on in the next line.
        layers: the layer of each word, from 1 to `depth`.
        depth: L, the number of layers.
        notes: written in small above each sentence.
        title: above the figure.
    """
    letters, tops, placed, line = 92, [], [], 0
    for sentence, stops in zip(sentences, layers, strict=True):
        tops.append(line)
        line, column = line + (1 if notes else 0), 0
        for word, layer in zip(sentence, stops, strict=True):
            if column and column + len(word) > letters:
                line, column = line + 1, 0
            placed.append((column, line, word, layer))
            column += len(word) + 2
        line += 1.5
    figure, axes = plt.subplots(figsize=(WIDTH + 2, 0.3 * line + 0.9), layout="constrained")
    colours = sns.color_palette("viridis", depth)
    for column, row, word, layer in placed:
        red, green, blue = colours[layer - 1]
        light = 0.3 * red + 0.6 * green + 0.1 * blue > 0.5
        axes.text(
            column,
            row,
            word,
            family="monospace",
            fontsize=8,
            va="center",
            color="black" if light else "white",
            bbox={"facecolor": colours[layer - 1], "edgecolor": "none", "boxstyle": "round,pad=0.25"},
        )
    for top, note in zip(tops, notes, strict=False):
        axes.text(0, top, note, fontsize=8, va="center", color="0.35")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
    labels = [f"layer {layer}" for layer in range(1, depth + 1)]
    axes.legend(
        handles,
        labels,
        ncols=min(depth, 6),
        fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        frameon=False,
    )
    axes.set_xlim(-1, letters + 2)
    axes.set_ylim(line - 0.5, -1)
    axes.axis("off")
    axes.set_title(title)
    return figure


def distribution(frame: pd.DataFrame, x: str, values: Sequence[str], *, title: str = "") -> Figure:
    """Box plots of several columns over the groups of one, side by side; whiskers: 5th to 95th percentile."""
    figure, row = plt.subplots(
        1, len(values), figsize=(0.5 + 3.6 * len(values), 3.2), squeeze=False, layout="constrained"
    )
    for axes, value in zip(row[0], values, strict=True):
        sns.boxplot(frame, x=x, y=value, ax=axes, color="0.8", whis=(5, 95), showfliers=False, linewidth=1)
    figure.suptitle(title, fontweight="bold")
    return figure


def shares(table: pd.DataFrame, *, title: str = "") -> Figure:
    """A table of shares, 0 to 1, as a heat map; its index and columns name the axes. NaN stays empty."""
    size = (1.6 + 0.75 * table.shape[1], 1.2 + 0.42 * table.shape[0])
    figure, axes = plt.subplots(figsize=size)
    shown = {"annot": True, "fmt": ".0%", "annot_kws": {"size": 8}, "linewidths": 1, "cbar": False}
    sns.heatmap(table, ax=axes, vmin=0, vmax=1, cmap="Blues", **shown)
    axes.tick_params(axis="y", rotation=0)
    axes.set_title(title)
    return figure


def reliability(tables: Mapping[str, pd.DataFrame], *, title: str = "") -> Figure:
    """Accuracy over confidence, one line per table of `calibration.reliability`; larger points hold more samples."""
    figure, axes = plt.subplots(figsize=(WIDTH * 0.75, 4.2))
    for number, (name, table) in enumerate(tables.items()):
        [line] = axes.plot(table.confidence, table.accuracy, linewidth=1.4, label=name)
        axes.scatter(
            table.confidence,
            table.accuracy,
            s=12 + 160 * table.samples / table.samples.sum(),
            marker=_MARKERS[number % len(_MARKERS)],
            color=line.get_color(),
        )
    start = min(float(table.confidence.min()) for table in tables.values())
    axes.plot([start, 1], [start, 1], "--", color="0.35", linewidth=1, label="as sure as it is right")
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.set_title(title)
    axes.legend(fontsize="small", loc="upper left")
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
    """Lines, one panel per value of `panel` on its own scale, one legend for all; a line of one point is a star.

    Values of `hue` look alike in every panel: those in `grey` step back, those in `dashed` are drawn dashed.
    """
    shown, names = list(dict.fromkeys(frame[panel])), list(dict.fromkeys(frame[hue]))
    columns = min(len(shown), 2 if len(shown) <= 4 else 3)
    rows = -(-len(shown) // columns)
    size = (WIDTH, 4.4) if len(shown) == 1 else (3.7 * columns + 1.9, 3.1 * rows)  # the legend stands beside them
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    front = [name for name in names if name not in grey]
    colours = dict(zip(front, sns.color_palette("colorblind", max(10, len(front))), strict=False))
    handles = {}
    for axes, place in zip(grid.flat, [*shown, *[None] * (grid.size - len(shown))], strict=True):
        if place is None:
            axes.axis("off")
            continue
        for name, line in frame[frame[panel] == place].sort_values(x).groupby(hue, sort=False):
            style = ("--", ":", "-.")[list(grey).index(name) % 3] if name in grey else "--" if name in dashed else "-"
            mark = {"marker": "*", "markersize": 11} if len(line) == 1 else {}
            if name in front and len(line) > 1:  # colours of ten lines are too alike to tell them by
                mark = {"marker": _MARKERS[front.index(name) % len(_MARKERS)], "markersize": 4.5, "markevery": 0.12}
            [handles[name]] = axes.plot(line[x], line[y], style, color=colours.get(name, "0.4"), linewidth=1.5, **mark)
        axes.set_title(str(place), fontsize="medium")
        _speedup_axis(axes, x)
        axes.set_ylabel(y)
    order = [name for name in names if name in handles]
    figure.legend([handles[name] for name in order], order, fontsize="small", loc="outside right center")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize="large")
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
    rows, names = list(dict.fromkeys(frame[y])), list(dict.fromkeys(frame[hue])) if hue else [""]
    figure, axes = plt.subplots(figsize=(WIDTH, 1.1 + 0.22 * len(rows) * max(1.4, len(names) * 0.8)))
    step = 0.7 / len(names)
    for number, (name, colour) in enumerate(zip(names, sns.color_palette("colorblind", len(names)), strict=True)):
        points = frame[frame[hue] == name] if hue else frame
        places = [rows.index(row) + (number - (len(names) - 1) / 2) * step for row in points[y]]
        whiskers = [points[x] - points[low], points[high] - points[x]] if low and high else None
        marker = _MARKERS[number % len(_MARKERS)]
        look = {"fmt": marker, "color": colour, "markersize": 5, "elinewidth": 1.3}
        axes.errorbar(points[x], places, xerr=whiskers, label=name, **look)
    for number, (name, level) in enumerate((levels or {}).items()):
        axes.axvline(level, color="0.35", linestyle=("--", ":", "-.")[number % 3], linewidth=1.2, label=name)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(x)
    axes.set_title(title)
    if hue or levels:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _coin_line(
    axes: Axes, curve: pd.DataFrame, column: str, style: str, *, marker: str, label: str, **look: Any
) -> None:
    """A line whose every point can be had: straight over cost between the points of a curve."""
    ends = curve.sort_values(column, ascending=False)
    cost = 1 / ends[column].to_numpy()
    dense = np.unique(np.concatenate([cost, np.linspace(cost[0], cost[-1], 200)]))
    axes.plot(1 / dense, np.interp(dense, cost, ends.score.to_numpy()), style, **look)
    if marker:
        axes.plot(ends[column], ends.score, marker, linestyle="", color=look["color"])
    # One entry in the legend for line and markers.
    axes.plot([], [], style, marker=marker or None, label=label, **look)


def _speedup_axis(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
