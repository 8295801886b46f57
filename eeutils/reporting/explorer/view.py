"""Evidence as the explorer reads it: one JSON value a ground (a task with an encoder), small enough to commit.

    format       1
    title        what the ground is called
    about        a sentence or two on where its numbers come from
    unit         what leaves, such as "sentence"
    metric       the name of the score
    answers      the names of the answers, such as ["negative", "positive"]; null where an answer is a number
    units        N of {"text", "label"}; the label is a place in `answers`, or a number
    models       the methods, each with
      name         as in figures
      layers       S numbers: the layer of each exit
      reference    L, layers of the plain full model
      answers      S lists of N: what each exit said, as labels are written
      certainty    S lists of N: the probability that it gave that answer, in thousandths; null for numbers
      fixed        score, layers and flops_speedup, lists of S: what it is to send everybody out at one exit
      rules        each with
        name         as in figures
        answers      only where the rule answers otherwise than the exit at which a unit leaves
        thresholds   T numbers, the loosest first; the last is null, which nobody reaches
        reaches      S - 1 lists of N: how many thresholds, from the loosest, a unit's readiness at that exit reaches
        points       score, layers and flops_speedup, lists of T: the rows of `tradeoff.sweep`, digit for digit

At the threshold in place t (from 0) a unit leaves at the first exit that reaches more than t of them, or at the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from eeutils.errors import InputError
from eeutils.exiting import tradeoff
from eeutils.exiting.evidence import Evidence, predict
from eeutils.exiting.rules import Rule
from eeutils.exiting.tradeoff import Metric

FORMAT = 1

_COLUMNS = ["score", "layers", "flops_speedup"]


def ground(
    title: str,
    about: str,
    metric: str,
    answers: Sequence[str] | None,
    texts: Sequence[str],
    labels: Sequence[int] | Sequence[float],
    models: Sequence[dict[str, Any]],
    unit: str = "sentence",
) -> dict[str, Any]:
    """A ground, as described above.

    Args:
        title, about, metric, answers, unit: as above.
        texts: of the N units.
        labels: what is right.
        models: of `model`, all of them on these units.

    Raises:
        InputError: a model of other units than the texts are.
    """
    for made in models:
        if len(made["answers"][0]) != len(texts):
            raise InputError(
                f"{made['name']} answers {len(made['answers'][0])} {unit}s and there are {len(texts)} texts"
            )
    units = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    names = None if answers is None else list(answers)
    about_it = {"format": FORMAT, "title": title, "about": about, "unit": unit, "metric": metric, "answers": names}
    return {**about_it, "units": units, "models": list(models)}


def model(name: str, evidence: Evidence, rules: Sequence[Rule], metric: Metric) -> dict[str, Any]:
    """What one model said, and where units leave under each rule.

    Args:
        name: as in figures.
        evidence: with labels.
        rules: the first is shown first.
        metric: (predictions, labels) -> score.

    Raises:
        InputError: evidence of one stage, at which nobody can leave early, or a rule that it has no meaning for.
    """
    if evidence.stages < 2:
        raise InputError(f"{name} has one exit, so nobody leaves early; choose a model with several")
    certainty = None if evidence.regression else (evidence.confidence * 1000).round().int().tolist()
    return {
        "name": name,
        "layers": list(evidence.layers),
        "reference": evidence.reference_layers,
        "answers": _written(evidence.predictions),
        "certainty": certainty,
        "fixed": _points(tradeoff.fixed_exits(evidence, metric)),
        "rules": [_rule(evidence, rule, metric) for rule in rules],
    }


def _rule(evidence: Evidence, rule: Rule, metric: Metric) -> dict[str, Any]:
    curve = tradeoff.sweep(evidence, rule, metric).sort_values("threshold", ignore_index=True)
    thresholds = torch.tensor(curve.threshold.tolist(), dtype=torch.float64)
    # Who is not ready at all reaches none of them; of what is no number `searchsorted` would say the opposite.
    readiness = rule.readiness(evidence)[:-1].double().nan_to_num(-math.inf, math.inf, -math.inf).contiguous()
    answers = predict(rule.answers(evidence))
    own = {} if torch.equal(answers, evidence.predictions) else {"answers": _written(answers)}
    return {
        "name": rule.name,
        **own,
        "thresholds": [threshold if math.isfinite(threshold) else None for threshold in curve.threshold],
        "reaches": torch.searchsorted(thresholds, readiness, right=True).tolist(),
        "points": _points(curve),
    }


def _points(curve: pd.DataFrame) -> dict[str, list[float]]:
    return {column: curve[column].tolist() for column in _COLUMNS}


def _written(answers: Tensor) -> list[list[int]] | list[list[float]]:
    """Classes as they are; numbers to three digits."""
    if not answers.is_floating_point():
        return answers.tolist()
    return [[_short(value) for value in row] for row in answers.tolist()]


def _short(value: float) -> float | int | None:
    """Three digits of a number, for people to read; None of what is none."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.3g}")
    return int(short) if short.is_integer() else short
