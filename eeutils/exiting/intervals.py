"""How sure a difference is: intervals over samples and seeds, paired over both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.rules import Rule
from eeutils.exiting.tradeoff import Metric, Reading, area, decide, sweep


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, and how many units (samples, or groups of them) and seeds it stands on."""

    estimate: float
    low: float
    high: float
    level: float = 0.95
    units: int | None = None
    seeds: int = 1

    def __str__(self) -> str:
        # Adding 0 turns -0.0 into 0.0.
        estimate, low, high = (round(number, 3) + 0.0 for number in (self.estimate, self.low, self.high))
        return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"


def bootstrap(
    statistic: Callable[[int, np.ndarray], float],
    samples: int,
    seeds: int = 1,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Interval:
    """How far the mean over seeds may be from the truth, for other test samples and other seeds.

    With one seed it is the percentile bootstrap over samples, and says nothing of seeds. With n seeds the two variances
    add up: that of the mean over seeds when the samples are drawn anew (the same ones for every seed, since runs share
    the test set), and that of the seeds, s^2 / n. Drawing few seeds with replacement would understate the latter by
    (n - 1) / n and its tails even more, so the interval is Student's, with Satterthwaite's degrees of freedom. A
    statistic that is a difference of two methods on the same rows is thereby paired.

    Args:
        statistic: (seed number, row numbers) -> value; averaged over the seeds.
        samples: N of the test set.
        seeds: number of seeds.
        resamples: bootstrap draws.
        level: of the interval.
        seed: of the draws.
        groups: (N,) which samples belong together; whole groups are drawn, such as all tokens of a sequence. By default
            each sample is drawn on its own.

    Raises:
        InputError: nothing to resample, or groups of other samples.
    """
    if groups is not None and groups.shape != (samples,):
        raise InputError(f"a bootstrap over {samples} samples needs as many group numbers; got shape {groups.shape}")
    members = None if groups is None else _members(groups)
    units = samples if members is None else len(members)
    if units < 2 or seeds < 1 or resamples < 1 or not 0 < level < 1:
        raise InputError(
            "a bootstrap needs 2 samples or groups of them, 1 seed and 1 resample or more, and a level in (0, 1); got "
            f"{units}, {seeds}, {resamples}, {level}"
        )
    generator = np.random.default_rng(seed)
    by_seed = np.array([statistic(number, np.arange(samples)) for number in range(seeds)])
    values = np.empty(resamples)
    for draw in range(resamples):
        rows = generator.integers(units, size=units)
        if members is not None:
            rows = np.concatenate([members[group] for group in rows])
        values[draw] = np.mean([statistic(number, rows) for number in range(seeds)])
    # A statistic may be undefined (NaN) on some draws: a line needs points that differ. Those draws do not count.
    values = values[~np.isnan(values)]
    estimate = float(by_seed.mean())
    if len(values) == 0:
        low = high = math.nan
    elif seeds == 1:
        low, high = map(float, np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))
    else:
        half = _half_width(float(values.var()), float(by_seed.var(ddof=1)) / seeds, seeds, level)
        low, high = estimate - half, estimate + half
    return Interval(estimate, low, high, level, units, seeds)


def _half_width(of_samples: float, of_seeds: float, seeds: int, level: float) -> float:
    """Student's quantile times the standard error of two variances, the second one estimated from `seeds` values."""
    total = of_samples + of_seeds
    freedom = (seeds - 1) * (total / of_seeds) ** 2 if of_seeds > 0 else math.inf
    return float(stats.t.ppf((1 + level) / 2, min(freedom, 1e6))) * math.sqrt(total)


def _members(groups: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def mean_interval(values: np.ndarray, **options: Any) -> Interval:
    """The mean of (N,) values, with the options of `bootstrap`; paired, where they are differences."""
    return bootstrap(lambda _, rows: float(values[rows].mean()), len(values), **options)


def score_interval(metric: Metric, predictions: Sequence[np.ndarray], labels: np.ndarray, **options: Any) -> Interval:
    """A score with its interval; `predictions` has one (N,) array per seed. Options are those of `bootstrap`."""
    return bootstrap(
        lambda seed, rows: metric(predictions[seed][rows], labels[rows]), len(labels), len(predictions), **options
    )


def paired_difference(
    score: Callable[[Any, np.ndarray], float], ours: Sequence[Any], theirs: Sequence[Any], samples: int, **options: Any
) -> Interval:
    """score(ours, rows) - score(theirs, rows), one of each side a seed: paired by sample and by seed.

    Raises:
        InputError: not as many seeds on both sides, or what `bootstrap` refuses.
    """
    if len(ours) != len(theirs):
        raise InputError(f"a paired difference needs the same seeds on both sides; got {len(ours)} and {len(theirs)}")
    return bootstrap(
        lambda seed, rows: score(ours[seed], rows) - score(theirs[seed], rows), samples, len(ours), **options
    )


def difference_interval(
    metric: Metric, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], labels: np.ndarray, **options: Any
) -> Interval:
    """metric(ours) - metric(theirs), of predictions (N,), one array a seed."""

    def score(predictions: np.ndarray, rows: np.ndarray) -> float:
        return metric(predictions[rows], labels[rows])

    return paired_difference(score, ours, theirs, len(labels), **options)


def area_difference(
    metric: Metric,
    ours: tuple[Evidence, Rule],
    theirs: tuple[Evidence, Rule],
    low: float,
    points: int = 24,
    resamples: int = 200,
) -> Interval:
    """The area under our curve minus that under theirs (`tradeoff.area` in FLOPs, from a cost fraction of `low` to 1),
    paired over the same labelled samples. Thresholds and costs stay where they are while samples are drawn anew."""
    labels = ours[0].labels.numpy()

    def of(side: tuple[pd.DataFrame, list[np.ndarray]], rows: np.ndarray) -> float:
        curve, answers = side
        return area(curve.assign(score=[metric(each[rows], labels[rows]) for each in answers]), low=low)

    sides = ([_with_answers(*side, metric, points)] for side in (ours, theirs))
    return paired_difference(of, *sides, len(labels), resamples=resamples)


def _with_answers(evidence: Evidence, rule: Rule, metric: Metric, points: int) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """A curve of at most `points` thresholds, and what all samples are answered at each of them."""
    curve = sweep(evidence, rule, metric, points=points)
    return curve, [decide(evidence, rule, threshold).predictions.numpy() for threshold in curve.threshold]


def with_band(evidence: Evidence, rule: Rule, metric: Metric, points: int = 24, resamples: int = 200) -> pd.DataFrame:
    """A trade-off curve of at most `points` thresholds with its 95% band over samples: columns low and high beside
    those of `tradeoff.sweep`. Two bands that overlap may still be told apart: their samples are the same."""
    curve, answers = _with_answers(evidence, rule, metric, points)
    labels = evidence.labels.numpy()
    bands = [score_interval(metric, [answer], labels, resamples=resamples) for answer in answers]
    return curve.assign(low=[band.low for band in bands], high=[band.high for band in bands])


def equal_cost_difference(
    metric: Metric, ours: Sequence[Reading], theirs: Sequence[Reading], labels: np.ndarray, **options: Any
) -> Interval:
    """Score of our curve minus that of theirs, both read at the same cost (`tradeoff.at_speedup`), one reading a seed.

    The thresholds stay where they are while the samples are drawn anew.
    """

    def score(reading: Reading, rows: np.ndarray) -> float:
        return reading.score(metric, labels, rows)

    return paired_difference(score, ours, theirs, len(labels), **options)
