"""How sure a difference is: bootstraps that are paired over samples and over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eeutils.errors import InputError
from eeutils.exiting.tradeoff import Metric, Reading


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


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
    """A two-level percentile bootstrap: seeds are drawn with replacement, and samples of the test set are, too.

    The same test samples are used for every seed, since runs share the test set; with one seed this is the ordinary
    bootstrap over samples. A statistic that is a difference of two methods on the same rows is thereby paired.

    Args:
        statistic: (seed number, row numbers) -> value; averaged over the drawn seeds.
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
    everyone = np.arange(samples)
    estimate = float(np.mean([statistic(number, everyone) for number in range(seeds)]))
    values = np.empty(resamples)
    for draw in range(resamples):
        rows = generator.integers(units, size=units)
        if members is not None:
            rows = np.concatenate([members[group] for group in rows])
        numbers = generator.integers(seeds, size=seeds)
        drawn, times = np.unique(numbers, return_counts=True)
        # A statistic may be undefined (NaN) on some draws: a line needs points that differ. Those draws do not count.
        values[draw] = np.average([statistic(int(number), rows) for number in drawn], weights=times)
    if np.isnan(values).all():
        return Interval(estimate, np.nan, np.nan, level)
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level)


def _members(groups: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


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


def equal_cost_difference(
    metric: Metric, ours: Sequence[Reading], theirs: Sequence[Reading], labels: np.ndarray, **options: Any
) -> Interval:
    """Score of our curve minus that of theirs, both read at the same cost (`tradeoff.at_speedup`), one reading a seed.

    The thresholds stay where they are while the samples are drawn anew.
    """

    def score(reading: Reading, rows: np.ndarray) -> float:
        return reading.score(metric, labels, rows)

    return paired_difference(score, ours, theirs, len(labels), **options)
