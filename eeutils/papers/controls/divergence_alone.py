"""What divergence hears, and what it is blind to: the controls of notebook 02's rule.

    H(m) = JSD(p, q) + (H(p) + H(q)) / 2,    m = (p + q) / 2

so a rule on H(m) hears two things at once, whether two exits agree and whether they are sure; the JSD hears the first
alone, `both_sure` the second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eeutils.exiting.calibration import auroc
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, bootstrap
from eeutils.exiting.rules import Rule
from eeutils.exiting.tradeoff import Metric, decide, sweep


def both_sure() -> Rule:
    """Minus the mean entropy of an exit and the one before: what H(m) holds beside the divergence."""

    def readiness(evidence: Evidence) -> Tensor:
        doubt = evidence.entropy * math.log(evidence.classes)
        first = torch.full_like(doubt[:1], -math.inf)  # nothing stands before it, as for a divergence
        return torch.cat([first, -(doubt[1:] + doubt[:-1]) / 2])

    return Rule("mean entropy of two exits", readiness, low=-math.inf, high=0.0, reads=2)


def in_order(evidence: Evidence, rules: Mapping[str, Rule], metric: Metric, parts: int = 5) -> pd.DataFrame:
    """How the second exit scores among samples in the order in which each rule would let them leave there, in equal
    parts, the readiest first: where a rule knows who is right, the score falls from part to part.

    Returns:
        One row a part, and for each rule a column of scores.
    """
    answers, labels, found = evidence.predictions[1].numpy(), evidence.labels.numpy(), {}
    for name, rule in rules.items():
        order = torch.argsort(rule.readiness(evidence)[1], descending=True, stable=True).numpy()
        found[name] = [float(metric(answers[part], labels[part])) for part in np.array_split(order, parts)]
    return pd.DataFrame(found, index=pd.RangeIndex(1, parts + 1, name="part, readiest first"))


def tells_right(evidence: Evidence, rules: Mapping[str, Rule], resamples: int = 300) -> dict[str, list[Interval]]:
    """How well each rule's readiness tells right answers from wrong ones at every exit from the second on: the area
    under the ROC curve, 1/2 for a coin, with its interval over samples."""
    right = (evidence.predictions == evidence.labels).numpy()
    found = {}
    for name, rule in rules.items():
        ready = rule.readiness(evidence).numpy()
        found[name] = [_auroc_of(right[stage], ready[stage], resamples) for stage in range(1, evidence.stages)]
    return found


def _auroc_of(right: np.ndarray, ready: np.ndarray, resamples: int) -> Interval:
    return bootstrap(lambda _, rows: auroc(right[rows], ready[rows]), len(right), resamples=resamples)


def smoother(evidence: Evidence, coarse: Rule, fine: Rule, metric: Metric, resamples: int = 300) -> Interval:
    """By how much the largest step of one rule is larger than that of another: the gap in average depth between
    neighbouring operating points, as a share of all layers."""
    depths = [_operating_depths(evidence, rule, metric) for rule in (coarse, fine)]

    def difference(_: int, rows: np.ndarray) -> float:
        gaps = [np.diff(np.sort(each[:, rows].mean(axis=1))).max(initial=0) for each in depths]
        return float(gaps[0] - gaps[1]) / evidence.reference_layers

    return bootstrap(difference, evidence.samples, resamples=resamples)


def _operating_depths(evidence: Evidence, rule: Rule, metric: Metric) -> Float[np.ndarray, "thresholds samples"]:
    """The layers that each sample runs at each threshold of a rule."""
    thresholds = sweep(evidence, rule, metric).threshold
    stages = torch.stack([decide(evidence, rule, threshold).stages for threshold in thresholds])
    return np.array(evidence.layers, dtype=float)[stages.numpy()]
