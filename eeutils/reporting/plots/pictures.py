"""Single sentences on their way through the layers, and matrices with their entries written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from eeutils.reporting.plots.theme import GREY, WIDTH, panels_of


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
    look = {"cmap": "PuOr", "linewidths": 1, "cbar_kws": {"label": f"p({positive})"}, "xticklabels": list(layers)}
    sns.heatmap(probabilities, ax=axes, vmin=0, vmax=1, annot=True, fmt=".2f", annot_kws={"size": 8}, **look)
    for row, stage in enumerate(leaves):
        axes.add_patch(Rectangle((stage, row), 1, 1, fill=False, edgecolor="black", linewidth=2))
        never_runs = probabilities.shape[1] - stage - 1
        axes.add_patch(Rectangle((stage + 1, row), never_runs, 1, facecolor="white", alpha=0.65, linewidth=0))
    names = [f"{_shortened(text)}  ({label})" for text, label in zip(texts, labels, strict=True)]
    axes.set_yticklabels(names, rotation=0, fontsize=8, parse_math=False)  # a review may name two prices in $
    axes.set(xlabel="after layer (black frame: leaves here; faded: never runs)", title=title)
    return figure


def words(
    sentences: Sequence[Sequence[str]],
    layers: Sequence[Sequence[int]],
    *,
    depth: int,
    notes: Sequence[str] = (),
    named: Sequence[int] = (),
    title: str = "",
) -> Figure:
    """Sentences with each word coloured by the layer after which it stops.

    Args:
        sentences: the words of each; long sentences go on in the next line.
        layers: the layer of each word, from 1 to `depth`.
        depth: L, the number of layers.
        notes: written in small above each sentence.
        named: the layers that the legend names; all unless given.
        title: above the figure.
    """
    figure, axes = plt.subplots(layout="constrained")
    colours, letters, line = sns.color_palette("viridis", depth), 92, 0.0
    look = {"fontsize": 8, "va": "center", "parse_math": False}
    for sentence, stops, note in zip(sentences, layers, notes or [""] * len(sentences), strict=True):
        axes.text(0, line, note, color=GREY, **look)
        line, column = line + bool(notes), 0
        for word, layer in zip(sentence, stops, strict=True):
            if column and column + len(word) > letters:
                line, column = line + 1, 0
            red, green, blue = colours[layer - 1]
            ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
            box = {"facecolor": colours[layer - 1], "edgecolor": "none", "boxstyle": "round,pad=0.25"}
            axes.text(column, line, word, family="monospace", color=ink, bbox=box, **look)
            column += len(word) + 2
        line += 1.5
    figure.set_size_inches(WIDTH + 2, 0.3 * line + 0.9)
    shown = named or range(1, depth + 1)
    handles = [Rectangle((0, 0), 1, 1, color=colours[layer - 1], label=f"layer {layer}") for layer in shown]
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": min(len(shown), 6)}
    axes.legend(handles=handles, fontsize="small", frameon=False, **place)
    axes.set(xlim=(-1, letters + 2), ylim=(line - 0.5, -1), title=title)
    axes.axis("off")
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
    figure, row = panels_of((0.5 + 3.1 * len(named), 3.2), len(named), title=title)
    look = {"cmap": "PuOr" if low < 0 else "viridis", "square": True, "cbar_kws": {"label": value}}
    look |= {"xticklabels": list(labels), "yticklabels": list(labels)}
    look |= {"vmin": low, "vmax": high, "annot": True, "fmt": ".2f", "annot_kws": {"size": 7}}
    for axes, (name, matrix) in zip(row, named.items(), strict=True):
        sns.heatmap(matrix, ax=axes, cbar=axes is row[-1], **look)
        axes.grid(visible=False)
        axes.set_title(name, fontsize="medium")
        axes.set(xlabel=axis, ylabel=axis if axes is row[0] else "")
    return figure


def shares(table: pd.DataFrame, *, title: str = "") -> Figure:
    """A table of shares, 0 to 1, as a heat map; its index and columns name the axes. NaN stays empty."""
    figure, axes = plt.subplots(figsize=(1.6 + 0.75 * table.shape[1], 1.2 + 0.42 * table.shape[0]))
    look = {"annot": True, "fmt": ".0%", "annot_kws": {"size": 8}, "linewidths": 1, "cbar": False}
    sns.heatmap(table, ax=axes, vmin=0, vmax=1, cmap="Blues", **look)
    axes.grid(visible=False)
    axes.tick_params(axis="y", rotation=0)
    axes.set_title(title)
    return figure


def _shortened(text: str, letters: int = 62) -> str:
    text = " ".join(text.split())
    return text if len(text) <= letters else text[: letters - 3].rstrip() + "..."
