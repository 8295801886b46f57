"""Has an exit learned what its own vector can tell? A linear probe beside every exit.

Before anything is said of rules, every exit must have learned: it must not be clearly below a linear model that reads
the very vector that the exit judges, learned on the same training samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import difference_interval
from eeutils.exiting.tradeoff import Metric

TOLERANCE = 0.01
"""An exit may be that much below its probe, or half the width of the difference's interval where that is more."""


def fit_probes(features: Float[Tensor, "stages samples width"], labels: Tensor) -> list[Pipeline]:
    """One linear model a stage, on standardised vectors: logistic regression, or ridge where labels are numbers."""
    regression = labels.is_floating_point()
    probes = [
        make_pipeline(StandardScaler(), Ridge() if regression else LogisticRegression(C=0.1, max_iter=500))
        for _ in features
    ]
    return [probe.fit(vectors.numpy(), labels.numpy()) for probe, vectors in zip(probes, features, strict=True)]


def probe_evidence(
    probes: list[Pipeline], features: Float[Tensor, "stages samples width"], exits: Evidence
) -> Evidence:
    """What the probes say of samples, at the cost of the exits whose vectors they read."""
    answers = [_answer(probe, vectors.numpy(), exits.classes) for probe, vectors in zip(probes, features, strict=True)]
    return replace(exits, logits=torch.tensor(np.stack(answers), dtype=torch.float32), extras={})


def _answer(probe: Pipeline, vectors: np.ndarray, classes: int) -> np.ndarray:
    if classes == 1:
        return probe.predict(vectors)[:, None]
    scores = probe.decision_function(vectors)
    if scores.ndim == 1:  # of two classes scikit-learn gives the difference
        scores = np.stack([-scores / 2, scores / 2], axis=1)
    # A class that training never showed has no column.
    answers = np.full((len(vectors), classes), -1e4)
    answers[:, probe.classes_] = scores
    return answers


def learned_exits(
    exits: Evidence | Sequence[Evidence],
    probes: Evidence | Sequence[Evidence],
    metric: Metric,
    resamples: int = 1000,
) -> pd.DataFrame:
    """The gate: every exit against its probe on the same labelled samples.

    Args:
        exits, probes: what both say, or what they say for each seed.
        metric: (predictions, labels) -> score.
        resamples: draws of each bootstrap.

    Returns:
        One row an exit: layer, exit and probe (scores, means over seeds), gap (exit minus probe) with low and high of
        its paired interval, learned (the gap is not below minus the larger of `TOLERANCE` and half the interval's
        width). Of all exits together: the level of the intervals is Bonferroni's, or every fifth checkpoint would fail
        by chance.
    """
    by_seed = [[side] if isinstance(side, Evidence) else list(side) for side in (exits, probes)]
    first = by_seed[0][0]
    labels, level, rows = first.labels.numpy(), 1 - 0.05 / first.stages, []
    for stage, layer in enumerate(first.layers):
        ours, theirs = ([evidence.predictions[stage].numpy() for evidence in side] for side in by_seed)
        gap = difference_interval(metric, ours, theirs, labels, level=level, resamples=resamples)
        rows.append(
            {
                "layer": layer,
                "exit": fmean(metric(answers, labels) for answers in ours),
                "probe": fmean(metric(answers, labels) for answers in theirs),
                "gap": gap.estimate,
                "low": gap.low,
                "high": gap.high,
                "learned": gap.estimate >= -max(TOLERANCE, (gap.high - gap.low) / 2),
            }
        )
    return pd.DataFrame(rows)
