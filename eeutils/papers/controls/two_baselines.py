"""DeeBERT and PABEE taken apart, for notebook 01: operating points, the bend of the curve, rule against training
against capacity, and what the last layers spoil and mend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from eeutils.exiting.comparisons import at_equal_cost
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, bootstrap, difference_interval
from eeutils.exiting.rules import Rule, entropy, patience
from eeutils.exiting.tradeoff import (
    Metric,
    at_speedup,
    at_threshold,
    can_reach,
    decide,
    fixed_exits,
    threshold_for_loss,
)
from eeutils.papers import deebert, pabee
from eeutils.training.runs import Run, find
from eeutils.training.settings import Setting

LOSSES = {"about no loss": 0.005, "1 to 2 points": 0.02, "2 to 4 points": 0.04}
"""The operating points of DeeBERT's main table -> the most that each may lose on dev."""


def operating_points(run: Run, rule: Rule) -> pd.DataFrame:
    """For each of `LOSSES` the fastest threshold that loses no more on dev, and what it does on test.

    Returns:
        One row each: point, threshold, lost on dev, score, minus the last exit (an interval in words), layers saved,
        FLOPs saved (shares).
    """
    labels, last = run.test.labels.numpy(), run.test.predictions[-1].numpy()
    whole = float(fixed_exits(run.dev, run.metric).score.iloc[-1])
    rows = []
    for point, loss in LOSSES.items():
        threshold = threshold_for_loss(run.dev, rule, run.metric, loss)
        ours = at_threshold(run.test, rule, run.metric, threshold)
        answers = decide(run.test, rule, threshold).predictions.numpy()
        rows.append(
            {
                "point": point,
                "threshold": threshold,
                "lost on dev": whole - at_threshold(run.dev, rule, run.metric, threshold)["score"],
                "score": ours["score"],
                "minus the plain model": str(difference_interval(run.metric, [answers], [last], labels)),
                "layers saved": 1 - 1 / ours["layer_speedup"],
                "FLOPs saved": 1 - 1 / ours["flops_speedup"],
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Bend:
    """Score lost per share of the layers saved: up to the middle point, beyond it, and the difference of the two."""

    before: float
    beyond: float
    turning: Interval


def bend(evidence: Evidence, rule: Rule, metric: Metric, middle: float = 0.4, far: float = 0.6) -> Bend | None:
    """Where exactly these shares of the layers are saved; None where the rule cannot save as much."""
    places = [1 / (1 - share) for share in (middle, far)]
    if not all(can_reach(evidence, rule, place, "layers") for place in places):
        return None
    points, labels = [at_speedup(evidence, rule, place, "layers") for place in places], evidence.labels.numpy()
    last = evidence.predictions[-1].numpy()

    def slopes(rows: np.ndarray) -> tuple[float, float]:
        whole, half, least = metric(last[rows], labels[rows]), *(each.score(metric, labels, rows) for each in points)
        return (whole - half) / middle, (half - least) / (far - middle)

    turning = bootstrap(lambda _, rows: float(np.diff(slopes(rows))[0]), len(labels))
    return Bend(*slopes(np.arange(len(labels))), turning)


JOINT, TWO_STAGES = "joint", "two stages"


def checkpoints(setting: Setting) -> dict[tuple[str, str, bool], Run] | None:
    """Both trainings with both kinds of poolers, (training, poolers, twice the steps), where all of them are there
    already; nothing is trained.

    DeeBERT takes the steps of its plain model and as many again for its exits, so joint training stands beside it with
    twice its steps, too.
    """
    found = {
        (TWO_STAGES, "own", True): find(deebert.METHOD, setting),
        (TWO_STAGES, "shared", True): find(deebert.METHOD, setting, poolers="shared"),
        (JOINT, "shared", False): find(pabee.METHOD, setting),
        (JOINT, "own", False): find(pabee.METHOD, setting, poolers="own"),
        (JOINT, "shared", True): find(pabee.METHOD, replace(setting, epochs=2 * setting.epochs)),
    }
    return None if None in found.values() else found


def effects(run: Run, others: Mapping[tuple[str, str, bool], Run] | None, speedup: float) -> dict[str, Interval | None]:
    """What changes by one thing alone, at a FLOPs speed-up: in words -> the difference on test.

    Args:
        run: PABEE's, for the rule.
        others: `checkpoints`, for the rest; None leaves it out. A comparison that needs a checkpoint whose exits have
            not learned is marked.
        speedup: where both sides are read.
    """
    found = {
        "rule: patience minus entropy": at_equal_cost(
            (run.test, patience()), (run.test, entropy()), speedup, run.metric
        )
    }
    pairs = {
        "training: joint minus two stages, shared pooler": ((JOINT, "shared", True), (TWO_STAGES, "shared", True)),
        "capacity: own minus shared poolers, joint": ((JOINT, "own", False), (JOINT, "shared", False)),
        "capacity: own minus shared poolers, two stages": ((TWO_STAGES, "own", True), (TWO_STAGES, "shared", True)),
        "steps: twice as many minus once, joint": ((JOINT, "shared", True), (JOINT, "shared", False)),
    }
    for name, sides in (pairs if others else {}).items():
        ours, theirs = (others[side] for side in sides)
        mark = "" if ours.learned.learned.all() and theirs.learned.learned.all() else " (exits not learned)"
        found[name + mark] = at_equal_cost((ours.test, entropy()), (theirs.test, entropy()), speedup, run.metric)
    return found


def spoiled_and_mended(evidence: Evidence, judge: Evidence) -> pd.DataFrame:
    """What the last exit makes of each earlier one's answers, and whether another model sees the same.

    Returns:
        One row an exit but the last: layer; spoiled (right there and wrong at the last), mended (the other way round);
        of the spoiled ones the share that the judge's exit of the same number gets right, and its last exit.
    """
    right, other = (each.predictions == each.labels for each in (evidence, judge))
    rows = []
    for stage, layer in enumerate(evidence.layers[:-1]):
        spoiled = right[stage] & ~right[-1]
        rows.append(
            {
                "exit after layer": layer,
                "spoiled": int(spoiled.sum()),
                "mended": int((~right[stage] & right[-1]).sum()),
                "of the spoiled, judge's same exit right": other[stage][spoiled].double().mean().item(),
                "judge's last exit right": other[-1][spoiled].double().mean().item(),
            }
        )
    return pd.DataFrame(rows)


def on_one_scale(dev: Evidence, evidence: Evidence) -> Evidence:
    """A regression with every exit's answers rescaled by a line of its own that is fitted on dev: all exits then speak
    on one scale, and none knows more of a single sample than before."""
    lines = [np.polyfit(answers.numpy(), dev.labels.numpy(), 1) for answers in dev.logits[..., 0]]
    slopes, shifts = torch.tensor(np.array(lines), dtype=torch.float32).T
    return replace(evidence, logits=slopes[:, None, None] * evidence.logits + shifts[:, None, None])
