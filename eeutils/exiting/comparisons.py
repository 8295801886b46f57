"""Two curves at equal cost: one value says what is compared, and notebooks and study evaluate the same one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from eeutils.errors import InputError
from eeutils.exiting.claims import Verdict, judge, not_testable
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, equal_cost_difference, paired_difference
from eeutils.exiting.rules import Rule
from eeutils.exiting.tradeoff import Checkpoint, Metric, at_speedup, blind_policy, can_reach

Curve = tuple[Evidence, Rule]
"""What was recorded of the test samples, and the rule by which they leave."""

Curves = Sequence[Curve]
"""The same curve, once for each seed."""


def at_equal_cost(
    ours: Curve | Curves,
    theirs: Curve | Curves,
    speedup: float,
    metric: Metric,
    axis: str = "flops",
    *,
    their_speedup: float | None = None,
    resamples: int = 1000,
) -> Interval | None:
    """Score of our curve minus that of theirs, both read at exactly the same speed-up; None where one of them does not
    reach it.

    Args:
        ours, theirs: a curve, or one for each seed.
        speedup: where both are read.
        metric: (predictions, labels) -> score.
        axis: of the speed-up, "flops" or "layers".
        their_speedup: where theirs is read instead, such as 1 for a plain model.
        resamples: draws of the bootstrap, paired over samples and seeds; whole groups of samples are drawn.

    Raises:
        InputError: curves of different samples, without labels, or not as many seeds on both sides.
    """
    sides = ((_by_seed(ours), speedup), (_by_seed(theirs), their_speedup or speedup))
    labels, groups = _common([evidence for curves, _ in sides for evidence, _ in curves])
    if not all(can_reach(*curve, where, axis) for curves, where in sides for curve in curves):
        return None
    readings = ([at_speedup(*curve, where, axis) for curve in curves] for curves, where in sides)
    return equal_cost_difference(metric, *readings, labels, resamples=resamples, groups=groups)


def over_blind(
    ours: Curve | Curves,
    blind: Sequence[Sequence[Checkpoint]],
    speedup: float,
    metric: Metric,
    axis: str = "flops",
    resamples: int = 1000,
) -> Interval | None:
    """Score of our curve minus that of the best blind policy at the same speed-up; None where either does not reach it.

    Args:
        ours: a curve, or one for each seed.
        blind: for each seed the checkpoints whose stages a blind policy may use: our own, or everybody's.
        speedup, metric, axis, resamples: as for `at_equal_cost`.

    Raises:
        InputError: as `at_equal_cost` and `tradeoff.blind_policy`.
    """
    curves = _by_seed(ours)
    labels, groups = _common([*(curve[0] for curve in curves), *(test for seed in blind for _, test in seed)])
    if not all(can_reach(*curve, speedup, axis) for curve in curves):
        return None
    theirs = [blind_policy(checkpoints, speedup, metric, axis) for checkpoints in blind]
    if None in theirs:
        return None
    readings = [at_speedup(*curve, speedup, axis) for curve in curves]
    return equal_cost_difference(metric, readings, theirs, labels, resamples=resamples, groups=groups)


def against_rivals(
    ours: Curve | Curves,
    rivals: Mapping[str, Curve | Curves],
    speedups: Sequence[float],
    metric: Metric,
    axis: str = "flops",
) -> pd.DataFrame:
    """`at_equal_cost` for every rival (rows) and speed-up (columns), in words; "out of reach" where there is none."""
    return pd.DataFrame(
        {
            f"{speedup:g}x": {
                f"minus {name}": str(at_equal_cost(ours, rival, speedup, metric, axis) or "out of reach")
                for name, rival in rivals.items()
            }
            for speedup in speedups
        }
    )


def mean_over_exits(
    ours: Sequence[Evidence],
    theirs: Sequence[Evidence],
    metric: Metric,
    resamples: int = 1000,
    stages: slice = slice(None),
) -> Interval:
    """The mean score over all exits (or some `stages`) of one training minus that of another; one evidence a seed.

    Raises:
        InputError: as `at_equal_cost`.
    """
    labels, groups = _common([*ours, *theirs])
    answers = ([evidence.predictions[stages].numpy() for evidence in side] for side in (ours, theirs))

    def score(by_exit: np.ndarray, rows: np.ndarray) -> float:
        return float(np.mean([metric(predictions[rows], labels[rows]) for predictions in by_exit]))

    return paired_difference(score, *answers, len(labels), resamples=resamples, groups=groups)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: the name of a curve, and a rule if it is not the curve's own."""

    name: str
    rule: Rule | None = None

    def __str__(self) -> str:
        return self.name if self.rule is None else f"{self.name} by {self.rule.name}"


@dataclass(frozen=True)
class Comparison:
    """What a claim says is better, against what, and where both are read; the claim's bar is in the ledger.

    Attributes:
        claim: its id in the ledger.
        ours, theirs: both sides.
        speedups: where our side is read; each gives an interval.
        their_speedup: where the other side is read; where ours is, unless given.
        axis: of the speed-ups, "flops" or "layers".
        regression: whether it is about tasks whose answer is a number, or about those with classes.
    """

    claim: str
    ours: Side
    theirs: Side
    speedups: tuple[float, ...]
    their_speedup: float | None = None
    axis: str = "flops"
    regression: bool = False

    @property
    def rival(self) -> str:
        """The other side, and where it is read if that is not where ours is."""
        return str(self.theirs) if self.their_speedup is None else f"{self.theirs} at {self.their_speedup:g}x"

    def __str__(self) -> str:
        return f"{self.ours} minus {self.rival}"


@dataclass(frozen=True)
class Compared:
    """A comparison at one speed-up and what came out, over so many seeds."""

    comparison: Comparison
    speedup: float
    interval: Interval
    seeds: int


def evaluate(
    comparisons: Iterable[Comparison], curves: Mapping[str, Curve | Curves], metric: Metric, resamples: int = 1000
) -> list[Compared]:
    """All comparisons at all of their speed-ups that both sides reach.

    Args:
        comparisons: to be evaluated; those whose curves are not there, or that are about the other kind of task, are
            left out.
        curves: name -> the curve with its own rule, or one for each seed; both sides need the same seeds.
        metric: (predictions, labels) -> score.
        resamples: draws of each bootstrap.
    """
    compared = []
    for comparison in comparisons:
        if not {comparison.ours.name, comparison.theirs.name} <= curves.keys():
            continue
        ours, theirs = (
            [(evidence, side.rule or own) for evidence, own in _by_seed(curves[side.name])]
            for side in (comparison.ours, comparison.theirs)
        )
        if ours[0][0].regression != comparison.regression:
            continue
        for speedup in comparison.speedups:
            interval = at_equal_cost(
                ours,
                theirs,
                speedup,
                metric,
                comparison.axis,
                their_speedup=comparison.their_speedup,
                resamples=resamples,
            )
            if interval is not None:
                compared.append(Compared(comparison, speedup, interval, len(ours)))
    return compared


def verdict(claim: str, compared: Sequence[Compared], note: str = "") -> Verdict:
    """The verdict on a claim by everything that was compared for it; not testable where nothing could be.

    Raises:
        InputError: an unknown claim.
    """
    own = [each for each in compared if each.comparison.claim == claim]
    speedups: dict[Comparison, list[str]] = {}
    for each in own:
        speedups.setdefault(each.comparison, []).append(f"{each.speedup:.3g}x")
    places = ", ".join(f"{c.ours} at {' and '.join(at)} minus {c.rival}" for c, at in speedups.items())
    note = "; ".join(filter(None, [note, places or "the curves do not reach the speed-ups it is about"]))
    return judge(claim, [each.interval for each in own], note) if own else not_testable(claim, note)


def _common(evidences: Sequence[Evidence]) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels and groups of the samples, which must be the same everywhere."""
    first = evidences[0]
    if any(evidence.labels is None or not torch.equal(evidence.ids, first.ids) for evidence in evidences):
        raise InputError(
            "a paired comparison needs evidence of the same labelled samples, in the same order; record both sides on "
            "one test split"
        )
    return first.labels.numpy(), None if first.groups is None else first.groups.numpy()


def _by_seed(curves: Curve | Curves) -> list[Curve]:
    return [curves] if isinstance(curves[0], Evidence) else list(curves)
