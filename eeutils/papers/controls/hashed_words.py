"""What HashEE's schedules do to words and costs, for notebook 06."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from eeutils.data.samples import Samples
from eeutils.exiting.comparisons import Curve, over_blind
from eeutils.exiting.intervals import Interval, bootstrap
from eeutils.exiting.tradeoff import AXES, Checkpoint, Metric
from eeutils.models.record import record
from eeutils.models.schedule import TokenSchedule
from eeutils.training.runs import Run

CHANGING = "random-occurrence"
"""The one function under which a word stops elsewhere each time."""


def running_shares(schedules: Mapping[str, TokenSchedule], samples: Samples) -> pd.DataFrame:
    """The share of running tokens by the last layer that they run: a row a schedule."""
    tokens = torch.tensor([[token for text in samples.tokens for token in text]])
    deepest = max(schedule.depth for schedule in schedules.values())
    shares = {}
    for name, schedule in schedules.items():
        layers = schedule.layers_of(tokens, torch.ones_like(tokens))[0]
        shares[name] = (layers.bincount(minlength=deepest + 1)[1:] / layers.numel()).numpy()
    return pd.DataFrame(shares, index=pd.Index(range(1, deepest + 1), name="last layer")).T


def commonest_words(
    schedules: Mapping[str, TokenSchedule], samples: Samples, tokenizer: PreTrainedTokenizerBase, words: int = 9
) -> pd.DataFrame:
    """The most frequent words of the samples that stop after each layer: a column a schedule."""
    running = Counter(token for text in samples.tokens for token in text)
    types = torch.tensor([list(running)])
    columns, depth = {}, max(schedule.depth for schedule in schedules.values())
    for name, schedule in schedules.items():
        layers = schedule.layers_of(types, torch.ones_like(types))[0].tolist()
        stops = dict(zip(running, layers, strict=True))
        columns[name] = [
            " ".join(
                tokenizer.convert_ids_to_tokens([token for token, _ in running.most_common() if stops[token] == layer])[
                    :words
                ]
            )
            for layer in range(1, depth + 1)
        ]
    return pd.DataFrame(columns, index=pd.Index(range(1, depth + 1), name="last layer"))


def over_blind_by_axis(
    curve: Curve, checkpoints: Sequence[Checkpoint], speedups: Sequence[float], metric: Metric
) -> dict[tuple[str, float], Interval | None]:
    """(axis, speed-up) -> score of a curve minus that of the best blind policy, both read there: a frozen token saves a
    layer, but not that layer's key and value, so the two axes may disagree on who is ahead."""
    return {
        (axis, speedup): over_blind(curve, [checkpoints], speedup, metric, axis)
        for axis in AXES
        for speedup in speedups
    }


class Crossed:
    """Models under their own schedule and under those of the others, on all of some samples.

    Args:
        runs: hash function -> the run that was trained with it; all over the same window.
        samples: to be answered, those of test. What a model says of them under its own schedule it has said before.
    """

    def __init__(self, runs: Mapping[str, Run], samples: Samples) -> None:
        self.functions, self.labels = tuple(runs), samples.labels.numpy()
        models = {name: run.model() for name, run in runs.items()}
        schedules = {name: model.schedule for name, model in models.items()}
        said = {
            (name, other): record(model.under(schedule), samples, progress=True)
            for name, model in models.items()
            for other, schedule in schedules.items()
            if other != name
        } | {(name, name): run.test for name, run in runs.items()}
        self.answers = {pair: evidence.predictions[-1].numpy() for pair, evidence in said.items()}

    def table(self, metric: Metric) -> pd.DataFrame:
        """Scores: a row for each schedule in training, a column for each in use."""
        scores = {
            other: {name: metric(self.answers[name, other], self.labels) for name in self.functions}
            for other in self.functions
        }
        return pd.DataFrame(scores).rename_axis("trained with")

    def own_minus_another(self, metric: Metric, consistent: bool) -> Interval:
        """The mean score under the own schedule minus that under another consistent one, of models that were trained
        with a consistent schedule, or of the one that was not."""
        pairs = [
            (name, other)
            for name in self.functions
            for other in self.functions
            if (name != CHANGING) == consistent and other not in (name, CHANGING)
        ]

        def gap(rows: np.ndarray) -> float:
            score = {pair: metric(self.answers[pair][rows], self.labels[rows]) for pair in self._needed(pairs)}
            return float(np.mean([score[name, name] - score[name, other] for name, other in pairs]))

        return bootstrap(lambda _, rows: gap(rows), len(self.labels), resamples=500)

    @staticmethod
    def _needed(pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
        return set(pairs) | {(name, name) for name, _ in pairs}
