"""Every figure of the notebooks: one theme, readable in print and by colour-blind readers.

Functions draw what they are given and compute nothing; each returns a matplotlib figure. `show` displays it with its
alternative text and, when asked, keeps it as a PNG.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    # Few colours make a small file: a notebook with eight figures stays small enough to commit.
    few_colours = PILImage.open(full).convert("RGB").quantize(_COLOURS, dither=PILImage.Dither.NONE)
    few_colours.save(buffer, "png", optimize=True)
    if save_to and name:
        with atomic_write(Path(save_to) / "figures" / f"{name}.png") as partial:
            partial.write_bytes(buffer.getvalue())
    display(Image(data=buffer.getvalue(), format="png", alt=alt))


def tradeoff(
    curves: Mapping[str, pd.DataFrame],
    *,
    metric: str,
    fixed: Mapping[str, pd.DataFrame] | None = None,
    separate: pd.DataFrame | None = None,
    oracle: pd.DataFrame | None = None,
    speedup: str = "layer",
    dashed: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Score against speed-up.

    Args:
        curves: name -> a curve of `tradeoff.sweep`; names in `dashed` are drawn dashed.
        metric: name of the score.
        fixed: name of the checkpoint -> its `tradeoff.fixed_exits`, the first baseline.
        separate: columns layer_speedup, flops_speedup, score of separately fine-tuned k-layer models, the second one.
        oracle: a point of the oracle, drawn as headroom.
        speedup: "layer" or "flops".
        title: above the figure.
    """
    column = f"{speedup}_speedup"
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2))
    colours = sns.color_palette("colorblind", len(curves))
    for number, (name, curve) in enumerate(curves.items()):
        points = curve.sort_values(column)
        few = len(points) <= 12
        sns.lineplot(
            x=points[column],
            y=points.score,
            ax=axes,
            label=name,
            color=colours[number],
            marker=_MARKERS[number % len(_MARKERS)] if few else None,
            linewidth=1.8,
            linestyle="--" if name in dashed else "-",
            estimator=None,
        )
    for number, (name, points) in enumerate((fixed or {}).items()):
        grey, marker = ("0.35", ".") if number == 0 else ("0.6", "+")
        axes.plot(points[column], points.score, "--", color=grey, marker=marker, label=f"fixed exits, {name}")
    if separate is not None:
        axes.plot(
            separate[column],
            separate.score,
            ":",
            color="0.35",
            marker="x",
            label="k-layer model, fine-tuned separately",
        )
    if oracle is not None:
        axes.scatter(oracle[column], oracle.score, marker="*", s=90, color="0.35", label="oracle (needs the labels)")
    _speedup_axis(axes, f"{'FLOPs' if speedup == 'flops' else 'layer'} speed-up")
    axes.set_ylabel(metric)
    axes.set_title(title)
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
    for number, (name, level) in enumerate((levels or {}).items()):
        axes.axhline(level, color="0.35", linestyle=("--", ":", "-.")[number % 3], linewidth=1.2, label=name)
    axes.set_title(title)
    axes.legend(fontsize="small")
    return figure


def _speedup_axis(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
