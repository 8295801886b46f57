"""The trade-off between score and cost: all thresholds of a rule from one pass of evidence.

Two meanings of speed-up, never mixed: the LAYER speed-up of the papers is L / mean layers; the FLOPs speed-up is the
plain model's FLOPs over the mean FLOPs, all heads on the way included. FLOPs are the default everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eeutils.errors import InputError, unknown
from eeutils.exiting.evidence import Evidence, predict
from eeutils.exiting.rules import NEVER, Rule, own_logits

Metric = Callable[[np.ndarray, np.ndarray], float]
"""(predictions, labels) -> score, such as `functools.partial(metrics.headline, spec)`."""

SPEEDUPS = {"layers": "layer_speedup", "flops": "flops_speedup"}
"""Axis, the kind of cost that is counted -> the column of curves with its speed-up."""

AXES = tuple(SPEEDUPS)


@dataclass(frozen=True)
class Decision:
    """Where N samples leave (stage from 0) and what they answer there: simulated by `decide`, or really by the runtime.

    `logits` are as the rule gives them: the largest entry is the answer.
    """

    stages: Int[Tensor, " samples"]
    logits: Float[Tensor, "samples classes"]

    @property
    def predictions(self) -> Tensor:
        """(N,) classes, or numbers for regression."""
        return predict(self.logits)


def decide(evidence: Evidence, rule: Rule, threshold: float) -> Decision:
    """Where every sample leaves at one threshold, and its answer.

    Raises:
        InputError: a threshold outside the rule's range, or evidence that the rule has no meaning for.
    """
    rule.check(evidence.classes, threshold)
    stages = _leave(_readiness(rule, evidence), torch.tensor([threshold], dtype=torch.float64))[0]
    return Decision(stages, _at(rule.answers(evidence), stages))


def settled(evidence: Evidence, rule: Rule, threshold: float) -> Evidence:
    """One threshold as the only stage of an evidence: what each sample is answered there, and what it has spent.

    For a method that is trained for one threshold: several of its models, each settled, are the stages of a curve.
    """
    decision = decide(evidence, rule, threshold)
    cost = {kind: _at(spent, decision.stages)[None] for kind, spent in evidence.cost.items()}
    layers = (round(float(cost["layers"].mean())),)
    return replace(evidence, logits=decision.logits[None], cost=cost, layers=layers, extras={})


def sweep(
    evidence: Evidence, rule: Rule, metric: Metric, thresholds: Sequence[float] | None = None, points: int = 101
) -> pd.DataFrame:
    """The trade-off curve: one row per threshold, cheapest first.

    Args:
        evidence: with labels.
        rule: decides when samples leave.
        metric: (predictions, labels) -> score.
        thresholds: those to try; by default the ones at which samples of this evidence change their exit, at most
            `points` of them, evenly spread over the samples, and NEVER.

    Returns:
        Columns threshold, score, layers (mean layers run), layer_speedup, flops (mean), flops_speedup, and
        leave_1 .. leave_S (share of the samples that leave at each stage).
    """
    if evidence.labels is None:
        raise InputError("a trade-off curve needs labels, and this evidence has none")
    rule.check(evidence.classes)
    readiness = _readiness(rule, evidence)
    if thresholds is None:
        thresholds = _turning_points(readiness, rule, points)
    if len(thresholds) == 0:
        raise InputError("a sweep needs at least one threshold; leave thresholds out to try all that matter")
    for threshold in thresholds:
        rule.check(evidence.classes, threshold)
    left = _leave(readiness, torch.tensor(list(thresholds), dtype=torch.float64))
    answers = _answers(rule, evidence)
    frame = pd.DataFrame([_point(evidence, stages, _at(answers, stages), metric) for stages in left])
    frame.insert(0, "threshold", list(thresholds))
    return frame.sort_values(["flops", "threshold"], ascending=[True, False], kind="stable", ignore_index=True)


def at_threshold(evidence: Evidence, rule: Rule, metric: Metric, threshold: float) -> dict[str, float]:
    """The one row of `sweep` for a threshold that was chosen elsewhere, on dev."""
    return sweep(evidence, rule, metric, [threshold]).iloc[0].to_dict()


def fixed_exits(evidence: Evidence, metric: Metric) -> pd.DataFrame:
    """The baseline without which no rule can be shown to help: everybody leaves at stage 1, 2, .., S."""
    stages = torch.arange(evidence.stages)[:, None].expand(-1, evidence.samples)
    answers = evidence.predictions
    frame = pd.DataFrame([_point(evidence, row, _at(answers, row), metric) for row in stages])
    frame.insert(0, "stage", range(1, evidence.stages + 1))
    return frame


def score_at(curve: pd.DataFrame, speedup: float, axis: str = "flops") -> float:
    """The score at a speed-up, by linear interpolation in COST between the two nearest points.

    A line in cost is what one gets by sending a share of the samples through each of two thresholds, so every
    interpolated value can be had. NaN where the curve does not reach that speed-up.
    """
    cost, score = _line(curve, axis)
    wanted = 1 / speedup
    return float(np.interp(wanted, cost, score)) if _within(wanted, cost) else math.nan


PARTS = 8
"""Into which a mix is cut where its score is no mean over samples; between two cuts lies a line."""


def averages(metric: Metric) -> bool:
    """Whether a metric is a mean over samples, so that the score of a mix is the mix of scores. A metric that is none,
    such as a correlation, says so by an attribute `averages` of False."""
    return getattr(metric, "averages", True)


@dataclass(frozen=True)
class Reading:
    """A curve read at one speed-up: what N units are answered at the threshold just below it and the one just above.

    `share` of the samples would be sent through the first threshold, the others through the second: on average that
    costs exactly what was asked for.
    """

    share: float
    predictions: tuple[Tensor, Tensor]

    def score(self, metric: Metric, labels: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        """The score of the mix, on all samples or on some rows."""
        first, second = (answers.numpy()[rows] for answers in self.predictions)
        if averages(metric) or self.share in (0.0, 1.0):
            return self.share * metric(first, labels[rows]) + (1 - self.share) * metric(second, labels[rows])
        # A correlation of a mix is not the mix of correlations: score everybody's answers to both, each in its share.
        many = np.tile(labels[rows], PARTS)

        def at(part: int) -> float:
            return metric(np.concatenate([np.tile(first, part), np.tile(second, PARTS - part)]), many)

        rest, part = math.modf(self.share * PARTS)
        return (1 - rest) * at(int(part)) + rest * at(int(part) + 1)


def at_speedup(evidence: Evidence, rule: Rule, speedup: float, axis: str = "flops") -> Reading:
    """A rule at exactly a speed-up, so that rules can be compared at equal cost: `score_at` with its answers.

    Which thresholds lie around a speed-up depends on what the samples cost, never on their labels.

    Raises:
        InputError: a speed-up out of the curve's reach; see `can_reach`.
    """
    _, left, costs = _operating_points(evidence, rule, axis)
    wanted = 1 / speedup
    if not _within(wanted, costs):
        raise InputError(
            f"rule {rule.name!r} reaches {axis} speed-ups from {1 / costs.max():.2f}x to {1 / costs.min():.2f}x on "
            f"this evidence, not {speedup:g}x; ask can_reach() first"
        )
    above = min(int(np.searchsorted(costs, wanted)), len(costs) - 1)
    below = max(above - 1, 0)
    gap = costs[above] - costs[below]
    share = float(np.clip((costs[above] - wanted) / gap, 0, 1)) if gap > 0 else 1.0
    answers = _answers(rule, evidence)
    return Reading(share, (_at(answers, left[below]), _at(answers, left[above])))


Checkpoint = tuple[Evidence, Evidence]
"""What one trained model said of dev, and of the samples that are asked about."""


def blind_policy(
    checkpoints: Sequence[Checkpoint], speedup: float, metric: Metric, axis: str = "flops"
) -> Reading | None:
    """The best that one can do without looking at a sample, for at most the cost of a speed-up; None where even the
    cheapest stage costs more.

    Every stage of every checkpoint is a model that answers everybody; what dev says is best of them, or of mixtures of
    two that send a share of the samples through each (the upper hull over cost), is read on the other samples. So
    nothing is chosen by the labels that it is judged by.

    Raises:
        InputError: no checkpoint, or no labels.
    """
    return _best_blind(_blind_stages(checkpoints, metric, axis), speedup)


_BlindStage = tuple[float, float, Tensor]
"""A stage that answers everybody: its cost fraction, its score on dev, and its answers."""


def _blind_stages(checkpoints: Sequence[Checkpoint], metric: Metric, axis: str) -> list[_BlindStage]:
    if not checkpoints or any(dev.labels is None for dev, _ in checkpoints):
        raise InputError("a blind policy is chosen on dev: give at least one checkpoint, and its labelled dev evidence")
    stages = []
    for dev, evidence in checkpoints:
        costs = evidence.cost[axis].double().mean(dim=1) / float(evidence.reference[axis].double().mean())
        for stage, cost in enumerate(costs.tolist()):
            score = float(metric(dev.predictions[stage].numpy(), dev.labels.numpy()))
            stages.append((cost, score, evidence.predictions[stage]))
    return stages


def _best_blind(stages: Sequence[_BlindStage], speedup: float) -> Reading | None:
    affordable = [stage for stage in stages if stage[0] <= 1 / speedup + 1e-9]
    if not affordable:
        return None
    best = max(affordable, key=lambda stage: (stage[1], -stage[0]))
    # A mixture of one within the budget and a better one beyond it, at exactly the budget.
    share, first, second, highest = 1.0, best, best, best[1]
    for cheap in affordable:
        for dear in stages:
            if dear[0] > 1 / speedup + 1e-9 and dear[1] > cheap[1]:
                part = min((dear[0] - 1 / speedup) / (dear[0] - cheap[0]), 1.0)
                mixed = part * cheap[1] + (1 - part) * dear[1]
                if mixed > highest + 1e-12:
                    share, first, second, highest = part, cheap, dear, mixed
    return Reading(share, (first[2], second[2]))


def blind_curve(
    checkpoints: Sequence[Checkpoint], metric: Metric, axis: str = "flops", points: int = 25
) -> pd.DataFrame:
    """`blind_policy` from the cheapest stage's speed-up to 1x: columns score and the axis' speed-up."""
    stages = _blind_stages(checkpoints, metric, axis)
    cheapest = min(cost for cost, _, _ in stages)
    speedups = 1 / np.linspace(cheapest, max(cheapest, 1.0), points)
    labels = checkpoints[0][1].labels.numpy()
    scores = [_best_blind(stages, speedup).score(metric, labels) for speedup in speedups]
    return pd.DataFrame({"score": scores, SPEEDUPS[axis]: speedups})


def can_reach(evidence: Evidence, rule: Rule, speedup: float, axis: str = "flops") -> bool:
    """Whether a rule's curve can be read at a speed-up."""
    return _within(1 / speedup, _operating_points(evidence, rule, axis)[2])


def area(curve: pd.DataFrame, low: float = 1 / 2, high: float = 1.0, axis: str = "flops") -> float:
    """The mean score over cost fractions from `low` to `high` (a speed-up from 2x to 1x): the area under the curve.

    NaN where the curve has no point as cheap as `low`. Beyond its dearest point a curve stays level.
    """
    cost, score = _line(curve, axis)
    if cost[0] > low + 1e-9:
        return math.nan
    grid = np.unique(np.concatenate([[low, high], cost[(cost > low) & (cost < high)]]))
    return float(np.trapezoid(np.interp(grid, cost, score), grid) / (high - low))


def threshold_for_speedup(evidence: Evidence, rule: Rule, speedup: float, axis: str = "flops") -> float:
    """The threshold whose speed-up on this evidence (dev!) is the nearest to a wanted one. Needs no labels."""
    if speedup < 1:
        raise InputError(f"a speed-up is 1 or more; got {speedup}")
    thresholds, _, costs = _operating_points(evidence, rule, axis, points=1001)
    return thresholds[int(np.argmin(np.abs(costs - 1 / speedup)))]


def threshold_for_loss(evidence: Evidence, rule: Rule, metric: Metric, tolerance: float, axis: str = "flops") -> float:
    """The fastest threshold whose score on this evidence (dev!) is at most `tolerance` below the last stage's."""
    if tolerance < 0:
        raise InputError(f"a tolerated loss is 0 or more; got {tolerance}")
    _check_axis(axis)
    curve = sweep(evidence, rule, metric)
    full = fixed_exits(evidence, metric).score.iloc[-1]
    allowed = curve[curve.score >= full - tolerance - 1e-12]
    # NEVER is on every curve, and its answer may differ from the last stage's under a rule that votes.
    return float(allowed.sort_values(axis, kind="stable").threshold.iloc[0]) if len(allowed) else NEVER


def _readiness(rule: Rule, evidence: Evidence) -> Float[Tensor, "stages samples"]:
    """The rule's readiness; where that is no number, a sample is not ready, as in the runtime."""
    readiness = rule.readiness(evidence).double()
    return torch.where(readiness.isnan(), -math.inf, readiness)


def _leave(
    readiness: Float[Tensor, "stages samples"], thresholds: Float[Tensor, " thresholds"]
) -> Int[Tensor, "thresholds samples"]:
    """The stage at which each sample leaves, for every threshold at once."""
    # The first stage that reaches tau is the number of stages at which the running maximum is still below it.
    best_so_far = _best_so_far(readiness)
    return torch.stack([(best_so_far < threshold).sum(dim=0) for threshold in thresholds])


def _best_so_far(readiness: Float[Tensor, "stages samples"]) -> Float[Tensor, "early samples"]:
    """The running maximum over the stages but the last, at which everybody leaves."""
    return readiness[:-1].double().cummax(dim=0).values


def _turning_points(readiness: Tensor, rule: Rule, points: int) -> list[float]:
    reached = _best_so_far(readiness).flatten()
    reached = reached[reached.isfinite() & (reached >= rule.low)]
    values = torch.unique(reached)
    # Halfway to the value below: a threshold right on a sample's readiness would hang on its last digit, which another
    # composition of the batch may change. Below the lowest there may be no end to the range.
    below = torch.cat([values[:1] - 1 if math.isinf(rule.low) else values[:1] * 0 + rule.low, values[:-1]])
    thresholds = values if rule.discrete else (values + below) / 2
    if len(values) > points:
        ranks = torch.linspace(0, len(reached) - 1, points).round().long()
        spread = torch.unique(reached.sort().values[ranks])
        thresholds = thresholds[torch.searchsorted(values, spread)]
    return [*thresholds.tolist(), NEVER]


def _operating_points(
    evidence: Evidence, rule: Rule, axis: str, points: int = 101
) -> tuple[list[float], Int[Tensor, "thresholds samples"], np.ndarray]:
    """Thresholds from the loosest to the strictest, where samples leave at each, and its mean cost fraction."""
    _check_axis(axis)
    rule.check(evidence.classes)
    readiness = _readiness(rule, evidence)
    thresholds = _turning_points(readiness, rule, points)
    left = _leave(readiness, torch.tensor(thresholds, dtype=torch.float64))
    return thresholds, left, np.array([1 / _speedup(evidence, stages, axis) for stages in left])


def _within(cost: float, costs: np.ndarray) -> bool:
    return bool(costs[0] - 1e-9 <= cost <= costs[-1] + 1e-9)


def _answers(rule: Rule, evidence: Evidence) -> Tensor:
    """(S, N): what a rule answers. Evidence of tokens knows its words, but not the logits of all of them."""
    return evidence.predictions if rule.answers is own_logits else predict(rule.answers(evidence))


def _at(tensor: Tensor, stages: Int[Tensor, " samples"]) -> Tensor:
    """Of a (S, N, ...) tensor, what stands at each sample's own stage."""
    return tensor[stages, torch.arange(tensor.shape[1])]


def _mean_cost(evidence: Evidence, stages: Int[Tensor, " samples"], axis: str) -> Float[Tensor, ""]:
    return _at(evidence.cost[axis], stages).double().mean()


def _speedup(evidence: Evidence, stages: Int[Tensor, " samples"], axis: str) -> float:
    return float(float(evidence.reference[axis].double().mean()) / _mean_cost(evidence, stages, axis))


def _point(evidence: Evidence, stages: Tensor, predictions: Tensor, metric: Metric) -> dict[str, float]:
    point = {"score": float(metric(predictions.numpy(), evidence.labels.numpy()))}
    for axis, column in SPEEDUPS.items():
        point |= {axis: float(_mean_cost(evidence, stages, axis)), column: _speedup(evidence, stages, axis)}
    shares = torch.bincount(stages, minlength=evidence.stages) / evidence.samples
    return point | {f"leave_{stage + 1}": float(share) for stage, share in enumerate(shares)}


def _line(curve: pd.DataFrame, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """The curve as (cost fraction, score), ascending; of points of the same cost the mean."""
    _check_axis(axis)
    speedup = curve[SPEEDUPS[axis]]
    points = pd.DataFrame({"cost": (1 / speedup).round(12), "score": curve.score}).groupby("cost").score.mean()
    return points.index.to_numpy(), points.to_numpy()


def _check_axis(axis: str) -> None:
    if axis not in AXES:
        raise unknown("axis", axis, AXES)
