"""How sure a difference is: bootstraps that are paired over samples and over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eeutils.errors import InputError
from eeutils.tradeoff import Reading


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

    Raises:
        InputError: nothing to resample.
    """
    if samples < 2 or seeds < 1 or resamples < 1 or not 0 < level < 1:
        raise InputError(
            "a bootstrap needs 2 samples, 1 seed and 1 resample or more, and a level in (0, 1); got "
            f"{samples}, {seeds}, {resamples}, {level}"
        )
    generator = np.random.default_rng(seed)
    everyone = np.arange(samples)
    estimate = float(np.mean([statistic(number, everyone) for number in range(seeds)]))
    values = np.empty(resamples)
    for draw in range(resamples):
        rows = generator.integers(samples, size=samples)
        numbers = generator.integers(seeds, size=seeds)
        drawn, times = np.unique(numbers, return_counts=True)
        # A statistic may be undefined (NaN) on some draws: a line needs points that differ. Those draws do not count.
        values[draw] = np.average([statistic(int(number), rows) for number in drawn], weights=times)
    if np.isnan(values).all():
        return Interval(estimate, np.nan, np.nan, level)
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level)


def score_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    predictions: Sequence[np.ndarray],
    labels: np.ndarray,
    **options: float,
) -> Interval:
    """A score with its interval; `predictions` has one (N,) array per seed."""
    return bootstrap(
        lambda seed, rows: metric(predictions[seed][rows], labels[rows]), len(labels), len(predictions), **options
    )


def difference_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    labels: np.ndarray,
    **options: float,
) -> Interval:
    """metric(ours) - metric(theirs), paired by sample and by seed."""
    if len(ours) != len(theirs):
        raise InputError(f"a paired difference needs the same seeds on both sides; got {len(ours)} and {len(theirs)}")

    def difference(seed: int, rows: np.ndarray) -> float:
        return metric(ours[seed][rows], labels[rows]) - metric(theirs[seed][rows], labels[rows])

    return bootstrap(difference, len(labels), len(ours), **options)


def equal_cost_difference(
    metric: Callable[[np.ndarray, np.ndarray], float],
    ours: Sequence[Reading],
    theirs: Sequence[Reading],
    labels: np.ndarray,
    **options: float,
) -> Interval:
    """Score of our curve minus that of theirs, both read at the same cost (`tradeoff.read`), one reading per seed.

    Paired by sample and by seed. The thresholds stay where they are while the samples are drawn anew.
    """
    if len(ours) != len(theirs):
        raise InputError(f"a paired difference needs the same seeds on both sides; got {len(ours)} and {len(theirs)}")

    def difference(seed: int, rows: np.ndarray) -> float:
        return ours[seed].score(metric, labels, rows) - theirs[seed].score(metric, labels, rows)

    return bootstrap(difference, len(labels), len(ours), **options)
