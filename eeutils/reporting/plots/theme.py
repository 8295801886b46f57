"""What all figures have in common: theme, colours and markers, titles and legends; and how one is shown."""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image as PILImage
from scipy.spatial import KDTree

from eeutils.files import atomic_write

WIDTH = 7.0
"""Inches: fits a notebook and a page."""

DASHES = ("--", ":", "-.")
GREY = "0.35"
"""Of what there is to compare with."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_RESOLUTION = 100
_COLOURS = 256


def use_theme() -> None:
    """The theme of all figures; `open_notebook` calls it."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind", font_scale=0.85)
    plt.rcParams.update({"figure.dpi": _RESOLUTION, "axes.titleweight": "bold", "axes.titlelocation": "left"})


def show(figure: Figure, alt: str, path: Path | None = None) -> None:
    """Display a figure as a PNG with its alternative text; with a path, keep it there."""
    full, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=_RESOLUTION, bbox_inches="tight")
    plt.close(figure)
    _with_few_colours(PILImage.open(full).convert("RGB")).save(buffer, "png", optimize=True)
    if path:
        with atomic_write(path) as partial:
            partial.write_bytes(buffer.getvalue())
    display(Image(data=buffer.getvalue(), format="png", alt=alt))


def _with_few_colours(image: PILImage.Image) -> PILImage.Image:
    """Few colours make a small file: a notebook with eight figures stays small enough to commit.

    One half are the image's most frequent colours, so that pale bands keep theirs; the other half cover all that there
    is, because a line may show in the legend alone, behind another one, and must keep its colour, too.
    """
    colours, place, count = np.unique(np.asarray(image).reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    usual = colours[np.argsort(-count, kind="stable")[: _COLOURS // 2]]
    spread = image.quantize(_COLOURS - len(usual), PILImage.Quantize.MAXCOVERAGE).getpalette()
    palette = np.concatenate([usual, np.reshape(spread, (-1, 3))])
    nearest = KDTree(palette).query(colours)[1].astype(np.uint8)
    few = PILImage.fromarray(nearest[place.reshape(image.height, image.width)], "P")
    few.putpalette(palette.astype(np.uint8).ravel().tolist())
    return few


def looks_of(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Name -> its colour, which colour-blind readers tell from the others, and its marker."""
    names = list(names)
    looks = zip(sns.color_palette("colorblind", len(names)), cycle(_MARKERS), strict=False)
    return {name: {"color": colour, "marker": marker} for name, (colour, marker) in zip(names, looks, strict=True)}


def panels_of(size: tuple[float, float], columns: int, rows: int = 1, *, title: str) -> tuple[Figure, list[Axes]]:
    """A figure of several panels under one title, of that size in inches."""
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize="large")
    return figure, list(grid.flat)


def legend_beside(axes: Axes, title: str = "") -> None:
    """A legend to the right of the axes, where it hides nothing."""
    axes.legend(title=title, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
