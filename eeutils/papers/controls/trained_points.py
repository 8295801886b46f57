"""Models that are trained for one speed each, for notebook 05: each beside its rivals at its own speed, and all of them
as one curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pandas as pd
from scipy import stats

from eeutils.exiting.claims import Verdict
from eeutils.exiting.comparisons import Curve, at_equal_cost, evaluate, over_blind, verdict
from eeutils.exiting.evidence import as_stages
from eeutils.exiting.intervals import Interval, bootstrap
from eeutils.exiting.rules import fixed, policy
from eeutils.exiting.tradeoff import Metric, decide, fixed_exits, settled
from eeutils.papers.comparisons import COMPARISONS, judged
from eeutils.papers.consistentee import OPERATING_POINT
from eeutils.papers.treatments import collapse_of_most
from eeutils.training.runs import Run


def own_point(run: Run) -> Curve:
    """A trained model at the one threshold that it is meant for."""
    return settled(run.test, policy(), OPERATING_POINT), fixed()


def trained_curve(runs: Sequence[Run], plain: Run) -> Curve:
    """Trained models and the plain one, its slow end; between two of them a share of the samples is sent through
    each."""
    return as_stages([*(own_point(run)[0] for run in runs), plain.test]), fixed()


def speed_of(curve: Curve) -> float:
    """The FLOPs speed-up of the fastest model on such a curve."""
    return float(fixed_exits(curve[0], lambda *_: 0.0).flops_speedup.max())


def shares_of_exits(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Which share of the test samples leaves after which layer: a row a model."""
    rows = {}
    for name, run in runs.items():
        stages = decide(run.test, policy(), OPERATING_POINT).stages.numpy()
        rows[name] = np.bincount(stages, minlength=run.test.stages) / len(stages)
    layers = pd.Index(next(iter(runs.values())).test.layers, name="leaves after layer")
    return pd.DataFrame.from_dict(rows, orient="index", columns=layers).rename_axis("model")


def not_counted(name: str, runs: Sequence[Run]) -> dict[str, str]:
    """Why no verdict may count a curve of trained models, under its name; empty where nothing speaks against it.

    An exit that samples take must have learned; one that nobody takes is given up by design. And most policies must
    tell samples apart.
    """
    for run in runs:
        taken = np.bincount(decide(run.dev, policy(), OPERATING_POINT).stages.numpy(), minlength=run.dev.stages)
        lost = run.learned.layer[~run.learned.learned.to_numpy() & (taken >= 0.01 * taken.sum())]
        if len(lost):
            return {name: f"{name} has not learned what its vectors can tell at layer {', '.join(map(str, lost))}"}
    check = collapse_of_most(runs)
    return {} if check.took else {name: f"{name}: the treatment did not take: {check.found}"}


def beside(run: Run, rivals: Mapping[str, Curve], metric: Metric) -> dict[str, Interval | None]:
    """A trained model's score minus each rival's at the model's own FLOPs speed-up, and minus that of the best blind
    policy of its own exits; None where a rival does not reach it."""
    own = own_point(run)
    speedup = speed_of(own)
    gaps = {name: at_equal_cost(own, rival, speedup, metric) for name, rival in rivals.items()}
    return {**gaps, "best blind policy, same exits": over_blind(own, [[(run.dev, run.test)]], speedup, metric)}


def judged_where_trained(
    claim: str, curves: Mapping[str, Curve], metric: Metric, unfit: Mapping[str, str] = MappingProxyType({})
) -> Verdict:
    """`comparisons.judged` for a control of one trained model: the same comparison, read at the control's own speed-up,
    or at that of our fastest model where the control is faster still."""
    own = [each for each in COMPARISONS if each.claim == claim]
    if any(side.name in unfit for each in own for side in (each.ours, each.theirs)):
        return judged(claim, curves, metric, unfit=unfit)
    read = [
        replace(each, speedups=(min(speed_of(curves[side.name]) for side in (each.ours, each.theirs)),)) for each in own
    ]
    note = "between trained models a mixture of two is read"
    return verdict(claim, evaluate(read, curves, metric), note)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Spearman's, with its interval over samples; NaN where one of the two is constant."""
    one, other = np.asarray(first), np.asarray(second)

    def statistic(_: int, rows: np.ndarray) -> float:
        if len(set(one[rows])) < 2 or len(set(other[rows])) < 2:
            return math.nan
        return float(stats.spearmanr(one[rows], other[rows]).statistic)

    return bootstrap(statistic, len(one), resamples=300)
