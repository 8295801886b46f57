"""Claims that the study's runs can judge over several tasks and seeds: two curves read at the same speed-up.

The notebooks judge every claim on one task and one seed. Here stand the claims whose comparison needs no other run than
those of the scoreboard. Curves are read on test at exactly the named cost, which needs no labels, where some notebooks
choose a threshold on dev.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from eeutils import tradeoff
from eeutils.papers import badge, cascadebert, consistentee, de3bert, deebert, ensemble, hashee, pabee
from eeutils.rules import Rule, distance_ratio, entropy, fixed, patience
from eeutils.statistics import Interval, bootstrap, equal_cost_difference
from eeutils.study.entries import PLAIN, Result, metric_for_resamples
from eeutils.tradeoff import Metric

RESAMPLES = 500


@dataclass(frozen=True)
class Side:
    """One side of a comparison: an entry of the scoreboard, and a rule if it is not the entry's own."""

    entry: str
    rule: Rule | None = None

    def __str__(self) -> str:
        return self.entry if self.rule is None else f"{self.entry} by {self.rule.name}"


@dataclass(frozen=True)
class Comparison:
    """What a claim says is better, against what, and where both are read.

    Attributes:
        claim: its id in the ledger.
        ours, theirs: both sides.
        speedups: where our side is read.
        their_speedup: where the other side is read; where ours is, unless given.
        axis: of the speed-ups, "layers" or "flops".
        regression: whether it is about tasks whose answer is a number, or about those with classes.
    """

    claim: str
    ours: Side
    theirs: Side
    speedups: tuple[float, ...]
    their_speedup: float | None = None
    axis: str = "layers"
    regression: bool = False


_PABEE, _BADGE, _DE3 = pabee.METHOD.title, badge.METHOD.title, de3bert.METHOD.title
_ENSEMBLE, _HASHEE, _DEEBERT = ensemble.METHOD.title, hashee.METHOD.title, deebert.METHOD.title

COMPARISONS = (
    Comparison("D1", Side(_DEEBERT), Side(_DEEBERT, fixed()), (1 / 0.86,), their_speedup=1.0),
    Comparison("D2", Side(_DEEBERT), Side(_DEEBERT, fixed()), (1 / 0.6,), their_speedup=1.0),
    Comparison("P1", Side(_PABEE), Side(PLAIN), (1.5,), their_speedup=1.0),
    Comparison("P2", Side(_PABEE), Side(_PABEE, entropy()), (1.25, 1.5, 2.0)),
    Comparison("B4", Side(_BADGE), Side(_BADGE, entropy()), (1.5, 2.0)),
    Comparison("B4", Side(_BADGE), Side(_BADGE, patience()), (1.5, 2.0)),
    Comparison("C1", Side(cascadebert.METHOD.title), Side(_DEEBERT), (3.0, 4.0)),
    Comparison("C1", Side(cascadebert.METHOD.title), Side(_PABEE), (3.0, 4.0)),
    Comparison("E1", Side(_DE3), Side(_DE3, entropy()), (2.0, 3.0)),
    Comparison("E1", Side(_DE3, entropy()), Side(_DE3, distance_ratio()), (2.0, 3.0)),
    Comparison("E2", Side(_DE3, entropy()), Side(_PABEE, entropy()), (2.0, 3.0)),
    Comparison("K1", Side(consistentee.METHOD.title), Side(PLAIN), (1.8,), their_speedup=1.0),
    Comparison("H2a", Side(_HASHEE), Side(_DEEBERT), (1.5, 2.0), axis="flops"),
    Comparison("H2a", Side(_HASHEE), Side(_PABEE), (1.5, 2.0), axis="flops"),
    Comparison("H2b", Side(_HASHEE), Side(_PABEE), (1.5, 2.0), axis="flops", regression=True),
    Comparison("V2a", Side(_ENSEMBLE), Side(_ENSEMBLE, patience()), (1.5, 2.0)),
    Comparison("V2b", Side(_ENSEMBLE, patience()), Side(_ENSEMBLE, entropy()), (1.5, 2.0)),
)
"""In the order of the ledger's papers."""


def comparisons(found: dict[str, list[Result]]) -> Iterator[dict[str, Any]]:
    """One row for each comparison and speed-up that some seed's runs of a task can answer: the difference with its
    interval over the seeds that both sides have, and over samples. No row where a seed does not reach a speed-up."""
    for comparison in COMPARISONS:
        ours, theirs = (_by_seed(found, side) for side in (comparison.ours, comparison.theirs))
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds or ours[seeds[0]].test.regression != comparison.regression:
            continue
        metric, labels = _truth(ours[seeds[0]])
        where = "" if comparison.their_speedup is None else f" at {comparison.their_speedup:g}x"
        about = {"claim": comparison.claim, "ours": str(comparison.ours), "theirs": f"{comparison.theirs}{where}"}
        for speedup in comparison.speedups:
            sides = (comparison.ours, ours, speedup), (comparison.theirs, theirs, comparison.their_speedup or speedup)
            read = [[_read(side, results[seed], x, comparison.axis) for seed in seeds] for side, results, x in sides]
            if all(reading is not None for side in read for reading in side):
                gap = equal_cost_difference(metric, *read, labels, resamples=RESAMPLES)
                yield {**about, "axis": comparison.axis, "speedup": speedup, **_numbers(gap, seeds)}
    yield from _mean_over_exits("B1a", _BADGE, _PABEE, found)


def _mean_over_exits(claim: str, ours: str, theirs: str, found: dict[str, list[Result]]) -> Iterator[dict[str, Any]]:
    """The mean score over all exits of one training minus that of another."""
    sides = [_by_seed(found, Side(name)) for name in (ours, theirs)]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not seeds or sides[0][seeds[0]].test.regression:
        return
    metric, labels = _truth(sides[0][seeds[0]])
    said = [[side[seed].test.predictions.numpy() for seed in seeds] for side in sides]

    def difference(seed: int, rows: np.ndarray) -> float:
        mine, other = (np.mean([metric(stage[rows], labels[rows]) for stage in side[seed]]) for side in said)
        return float(mine - other)

    gap = bootstrap(difference, len(labels), len(seeds), resamples=RESAMPLES)
    about = {"claim": claim, "ours": f"{ours}, mean over exits", "theirs": f"{theirs}, mean over exits"}
    yield {**about, "axis": "exits", "speedup": 1.0, **_numbers(gap, seeds)}


def _numbers(gap: Interval, seeds: list[int]) -> dict[str, float]:
    return {"difference": gap.estimate, "low": gap.low, "high": gap.high, "seeds": len(seeds)}


def _by_seed(found: dict[str, list[Result]], side: Side) -> dict[int, Result]:
    return {result.setting.seed: result for result in found.get(side.entry, [])}


def _truth(result: Result) -> tuple[Metric, np.ndarray]:
    return metric_for_resamples(result.setting.task), result.test.labels.numpy()


def _read(side: Side, result: Result, speedup: float, axis: str) -> tradeoff.Reading | None:
    rule = side.rule or result.entry.rule
    if not tradeoff.reaches(result.test, rule, speedup, axis):
        return None
    return tradeoff.read(result.test, rule, speedup, axis)
