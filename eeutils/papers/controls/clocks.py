"""Measured speed-ups for a notebook: models that really stop early against the plain one, in turns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from eeutils.data.samples import Samples
from eeutils.models.runtime import Runtime
from eeutils.models.timing import race, ratio


def measured(
    sides: Mapping[str, tuple[Runtime, Samples]], plain: str, batch_sizes: Mapping[int, int], rounds: int
) -> pd.DataFrame:
    """Wall-clock of several models on the same texts.

    Args:
        sides: name -> a model that stops, and the samples as it reads them.
        plain: the name of the one that the others are measured against.
        batch_sizes: batch size -> how many samples are asked; at most as many as there are.
        rounds: how often each is asked all of them.

    Returns:
        One row a batch size and side but the plain one: batch, model, ms a sample (the plain model's, and its own),
        measured speed-up (the median of the rounds), slowest and fastest round.
    """
    rows = []
    for batch_size, count in batch_sizes.items():
        asked = range(min(count, *(len(samples) for _, samples in sides.values())))
        tracks = {name: runtime.calls(samples.take(asked), batch_size) for name, (runtime, samples) in sides.items()}
        device = next(sides[plain][0].model.parameters()).device
        seconds = race(tracks, rounds, device, progress=f"batches of {batch_size}")
        spent = {name: 1000 * float(np.median(each.sum(axis=1))) / len(asked) for name, each in seconds.items()}
        for name in sides:
            if name != plain:
                speedups = ratio(seconds, plain, name)
                rows.append(
                    {
                        "batch": batch_size,
                        "model": name,
                        "plain model, ms a sample": spent[plain],
                        "ms a sample": spent[name],
                        "measured speed-up": float(np.median(speedups)),
                        "slowest round": speedups.min(),
                        "fastest round": speedups.max(),
                    }
                )
    return pd.DataFrame(rows)
