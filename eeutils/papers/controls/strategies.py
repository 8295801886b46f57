"""Strategies of training taken apart, for notebook 12: one architecture, one number of steps, and ways to train it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from eeutils.exiting.intervals import Interval, difference_interval, score_interval
from eeutils.exiting.tradeoff import Metric
from eeutils.papers import berxit, deebert, fastbert, l2w, pabee
from eeutils.papers.controls import mixed
from eeutils.training.runs import Run, load_or_train
from eeutils.training.settings import Setting

TWO_STAGE, UNIFORM, DEPTH = "two-stage (DeeBERT)", "joint, all alike", "joint, by depth (PABEE)"
ALTERNATING, DISTILLED = "alternating (BERxiT)", "distilled (FastBERT)"
LEARNED, MIXED = "learned weights (L2W-DEN)", "mixed: plain first, then joint"


@dataclass(frozen=True)
class Strategies:
    """A setting's trainings. Every exit of every model has a pooler of its own and starts from the same weights, so
    they differ in nothing but how they learn. What has two phases takes half of the epochs in each.

    Attributes:
        setting: that of trainings in one phase.
    """

    setting: Setting

    @property
    def half(self) -> Setting:
        """The setting of each of two phases."""
        return replace(self.setting, epochs=max(1, self.setting.epochs // 2))

    @cached_property
    def runs(self) -> dict[str, Run]:
        """Name -> run; trains what is not there yet."""
        return {
            TWO_STAGE: load_or_train(deebert.METHOD, self.half),
            DISTILLED: load_or_train(fastbert.METHOD, self.half, students="pooler"),
            MIXED: load_or_train(mixed.METHOD, self.half),
            UNIFORM: load_or_train(l2w.METHOD, self.setting, eps=0.0),
            DEPTH: load_or_train(pabee.METHOD, self.setting, poolers="own"),
            ALTERNATING: load_or_train(berxit.METHOD, self.setting, lte=False),
            LEARNED: load_or_train(l2w.METHOD, self.setting),
        }

    @cached_property
    def attention(self) -> Run:
        """FastBERT's own students, at the steps of the others."""
        return load_or_train(fastbert.METHOD, self.half)


def steps_of(run: Run) -> int:
    """Steps of the optimizer, those of the run that it started from included."""
    parent = run.method.starts_from
    before = 0 if parent is None else steps_of(load_or_train(parent, run.setting))
    return before + int(run.history.steps.sum())


def by_exit(runs: Mapping[str, Run], metric: Metric, resamples: int = 300) -> pd.DataFrame:
    """The score of every exit on test with its interval: columns strategy, layer, score, low, high."""
    rows = []
    for name, run in runs.items():
        labels = run.test.labels.numpy()
        for layer, answers in zip(run.test.layers, run.test.predictions.numpy(), strict=True):
            score = score_interval(metric, [answers], labels, resamples=resamples)
            rows.append(
                {"strategy": name, "layer": layer, "score": score.estimate, "low": score.low, "high": score.high}
            )
    return pd.DataFrame(rows)


def differences(
    runs: Mapping[str, Run], control: str, metric: Metric, resamples: int = 300
) -> dict[str, dict[int, Interval]]:
    """Strategy -> layer -> its exit's score minus that of the control, paired over the test samples."""
    theirs, labels = runs[control].test, runs[control].test.labels.numpy()
    return {
        name: {
            layer: difference_interval(metric, [mine], [other], labels, resamples=resamples)
            for layer, mine, other in zip(
                theirs.layers, run.test.predictions.numpy(), theirs.predictions.numpy(), strict=True
            )
        }
        for name, run in runs.items()
        if name != control
    }


def as_frame(found: Mapping[str, Mapping[int, Interval]]) -> pd.DataFrame:
    """Columns strategy, exit, difference, low, high."""
    return pd.DataFrame(
        [
            {"strategy": name, "exit": f"layer {layer}", "difference": gap.estimate, "low": gap.low, "high": gap.high}
            for name, by_layer in found.items()
            for layer, gap in by_layer.items()
        ]
    )
