"""What the hybrid indicator of DE3-BERT is worth: its weight chosen on dev, and how well it tells right from wrong.

For notebook 04.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA

from eeutils.exiting.calibration import auroc
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, bootstrap
from eeutils.exiting.rules import Rule, distance_ratio, entropy, harmonic
from eeutils.exiting.tradeoff import Metric, area, decide, sweep, threshold_for_speedup
from eeutils.papers.controls.prototypes_afterwards import embed
from eeutils.training.runs import Run

WEIGHTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""lambda, from nearly entropy alone to nearly the distance ratio alone, in steps of half a decade."""


def hybrid(weight: float) -> Rule:
    """The harmonic mean of distance ratio and entropy with that lambda."""
    return replace(harmonic(distance_ratio(), entropy(), weight), name="hybrid")


def area_of(evidence: Evidence, rule: Rule, metric: Metric, speedup: float = 3.0) -> float:
    """The mean score from that FLOPs speed-up, or from the fastest that there is, to 1x."""
    curve = sweep(evidence, rule, metric)
    return area(curve, low=max(1 / speedup, float((1 / curve.flops_speedup).min())))


def areas(evidence: Evidence, metric: Metric, weights: Sequence[float] = WEIGHTS) -> pd.Series:
    """lambda -> area under the hybrid's curve."""
    index = pd.Index(weights, name="lambda")
    return pd.Series([area_of(evidence, hybrid(weight), metric) for weight in weights], index=index)


def chosen(on_dev: pd.Series) -> float:
    """The lambda with the largest area on dev; of several the one that treats both indicators the most alike."""
    best = on_dev[on_dev >= on_dev.max() - 1e-9].index
    return float(min(best, key=lambda weight: abs(math.log(weight))))


def tuned(run: Run) -> Rule:
    """The hybrid with the lambda that dev chooses for a run."""
    return hybrid(chosen(areas(run.dev, run.metric)))


def moved(run: Run, ours: Rule, theirs: Rule, speedup: float) -> float:
    """The share of test samples that two rules send to different exits, each at its threshold for a FLOPs speed-up on
    dev."""
    stages = [decide(run.test, rule, threshold_for_speedup(run.dev, rule, speedup)).stages for rule in (ours, theirs)]
    return (stages[0] != stages[1]).double().mean().item()


def auroc_gains(evidence: Evidence, ours: Rule, theirs: Rule, resamples: int = 300) -> list[Interval]:
    """At every exit, how much better our readiness tells right answers from wrong ones than theirs: the difference of
    areas under ROC curves, paired over samples."""
    right = (evidence.predictions == evidence.labels).numpy()
    ready = [rule.readiness(evidence).numpy() for rule in (ours, theirs)]

    def gain(stage: int, rows: np.ndarray) -> float:
        mine, other = (auroc(right[stage, rows], each[stage, rows]) for each in ready)
        return mine - other

    return [
        bootstrap(lambda _, rows, at=stage: gain(at, rows), evidence.samples, resamples=resamples)
        for stage in range(evidence.stages)
    ]


def aurocs(evidence: Evidence, rule: Rule) -> Float[np.ndarray, " stages"]:
    """How well a rule's readiness tells right answers from wrong ones at every exit; 1/2 for a coin."""
    right = (evidence.predictions == evidence.labels).numpy()
    ready = rule.readiness(evidence).numpy()
    return np.array([auroc(*stage) for stage in zip(right, ready, strict=True)])


def planes(run: Run, stages: Sequence[int], classes: Sequence[str], most: int = 400) -> tuple[pd.DataFrame, ...]:
    """Test samples and prototypes in the plane in which both spread most, one plane for each stage.

    Returns:
        Two frames, of samples and of prototypes: component 1, component 2, class, exit (with the plane's share of the
        variance).
    """
    rows, model = range(0, run.test.samples, max(1, run.test.samples // most)), run.model()
    places, dots, stars = embed(model, run.samples("test").take(rows)), [], []
    for stage in stages:
        prototypes = model.exit_at(stage).space.prototypes.detach().cpu()
        plane = PCA(2).fit(torch.cat([places[stage], prototypes]).numpy())
        name = f"layer {run.test.layers[stage]} ({plane.explained_variance_ratio_.sum():.0%} of the variance)"
        of_samples, of_prototypes = run.test.labels[list(rows)].tolist(), range(len(prototypes))
        for points, labels, into in ((places[stage], of_samples, dots), (prototypes, of_prototypes, stars)):
            x, y = plane.transform(points.numpy()).T
            named = [classes[label] for label in labels]
            into.append(pd.DataFrame({"component 1": x, "component 2": y, "class": named, "exit": name}))
    return pd.concat(dots), pd.concat(stars)
