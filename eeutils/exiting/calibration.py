"""Does confidence mean what it says? Reliability, temperature, and whether confidence follows difficulty."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata
from torch import Tensor

from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence

_FARTHEST = math.log(20)
"""Temperatures lie between 1/20 and 20: a model that is always right on a small dev set would get 0."""


def reliability(
    confidence: Float[Tensor, " samples"], correct: Bool[Tensor, " samples"], bins: int = 15
) -> pd.DataFrame:
    """The reliability diagram: samples binned by confidence, in bins of equal width over [0, 1].

    Returns:
        One row per bin that is not empty: confidence (mean), accuracy, samples.

    Raises:
        InputError: no samples, no bin, or a confidence outside [0, 1].
    """
    sure, right = confidence.double().numpy(), correct.double().numpy()
    if len(sure) == 0 or bins < 1 or sure.min() < 0 or sure.max() > 1 + 1e-9:
        raise InputError("a reliability diagram needs samples, 1 bin or more, and confidences from 0 to 1")
    number = np.minimum((sure * bins).astype(int), bins - 1)
    samples, sums, hits = (np.bincount(number, weights, minlength=bins) for weights in (None, sure, right))
    some = samples > 0
    return pd.DataFrame(
        {"confidence": sums[some] / samples[some], "accuracy": hits[some] / samples[some], "samples": samples[some]}
    )


def expected_calibration_error(
    confidence: Float[Tensor, " samples"], correct: Bool[Tensor, " samples"], bins: int = 15
) -> float:
    """The mean gap between confidence and accuracy over the bins, weighted by their samples (ECE); 0 is calibrated."""
    table = reliability(confidence, correct, bins)
    return float(np.average((table.confidence - table.accuracy).abs(), weights=table.samples))


def temperatures(evidence: Evidence) -> Float[Tensor, " stages"]:
    """The temperature of each stage: T that minimises the mean negative log likelihood of logits / T.

    Fit it on dev. One number a stage, from 1/20 to 20; above 1 the stage was too sure of itself.

    Raises:
        InputError: evidence without labels, or of a regression.
    """
    if evidence.labels is None or evidence.regression:
        raise InputError("a temperature is fitted to classes with labels; this evidence has none")
    return torch.stack([_temperature(logits.double(), evidence.labels) for logits in evidence.logits])


def at_temperatures(evidence: Evidence, temperatures: Float[Tensor, " stages"]) -> Evidence:
    """The evidence with each stage's logits divided by its temperature; no answer changes."""
    return replace(evidence, logits=(evidence.logits.double() / temperatures[:, None, None]))


def difficulty_inversion_score(confidence: Float[Tensor, " samples"], hard: Bool[Tensor, " samples"]) -> float:
    """DIS: the share of pairs of an easy and a hard sample in which the easy one is at least as sure; 1 is perfect.

    Difficulty must come from elsewhere than from the model whose confidence it is. NaN where all samples are easy or
    all are hard.
    """
    easy, difficult = confidence[~hard], confidence[hard].sort().values
    if len(easy) == 0 or len(difficult) == 0:
        return math.nan
    return float(torch.searchsorted(difficult, easy, right=True).double().mean() / len(difficult))


def auroc(good: Tensor | np.ndarray, ready: Tensor | np.ndarray) -> float:
    """How well a number tells good from bad: the area under the ROC curve, 1/2 for a coin; NaN where all are alike."""
    good, ready = np.asarray(good, dtype=bool), np.asarray(ready)
    ours, theirs = np.count_nonzero(good), np.count_nonzero(~good)
    # By ranks, as Mann and Whitney count pairs: a bootstrap asks thousands of times.
    above = rankdata(ready)[good].sum() - ours * (ours + 1) / 2
    return float(above / (ours * theirs)) if ours and theirs else math.nan


def agreement(evidence: Evidence) -> Float[Tensor, "stages stages"]:
    """The share of samples on which two classifiers give the same answer, for all pairs."""
    answers = evidence.predictions
    return (answers[:, None] == answers[None, :]).double().mean(dim=-1)


def error_correlation(evidence: Evidence) -> Float[Tensor, "stages stages"]:
    """The correlation of being wrong, for all pairs of classifiers; NaN where one is always right or always wrong.

    Agreement falls when classifiers merely get worse; this asks whether they err on the SAME samples.
    """
    if evidence.labels is None:
        raise InputError("whether two classifiers err together needs labels, and this evidence has none")
    return torch.corrcoef((evidence.predictions != evidence.labels).double())


def _temperature(logits: Tensor, labels: Tensor) -> Tensor:
    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / math.exp(log_temperature), labels))

    best = minimize_scalar(loss, bounds=(-_FARTHEST, _FARTHEST), method="bounded", options={"xatol": 1e-6})
    return torch.tensor(math.exp(best.x), dtype=torch.float64)
