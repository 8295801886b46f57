"""How answers are scored: the metrics of GLUE."""

from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from eeutils.data.specs import TaskSpec
from eeutils.errors import InputError


def score(spec: TaskSpec, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All metrics of a task, headline first, as GLUE computes them, of (N,) classes or numbers.

    F1 is that of class 1. A correlation with a constant is undefined and counts as 0, so that a collapsed model scores
    like one that knows nothing.

    Raises:
        InputError: shapes that differ, nothing to score, or a prediction that is no number or no class.
    """
    _check_answers(spec, predictions, labels)
    return {metric: float(_METRICS[metric](predictions, labels)) for metric in spec.metrics}


def headline(spec: TaskSpec, predictions: np.ndarray, labels: np.ndarray) -> float:
    """The first metric of `score`, without the work for the others: a bootstrap asks for it thousands of times."""
    _check_answers(spec, predictions, labels)
    return float(_METRICS[spec.metrics[0]](predictions, labels))


def _check_answers(spec: TaskSpec, predictions: np.ndarray, labels: np.ndarray) -> None:
    if predictions.shape != labels.shape or predictions.ndim != 1:
        raise InputError(
            f"predictions have shape {predictions.shape} and labels {labels.shape}; both must be (samples,): "
            "classes, or numbers for regression, not logits"
        )
    smallest = 1 if spec.kind == "classification" else 2
    if len(labels) < smallest:
        raise InputError(f"{spec.name} needs at least {smallest} samples to be scored; got {len(labels)}")
    whole = predictions.dtype.kind in "iub"
    if not whole and (diverged := np.count_nonzero(~np.isfinite(predictions))):
        raise InputError(f"{diverged} of {len(predictions)} predictions are not finite; has training diverged?")
    if spec.kind == "classification":
        last, known = len(spec.class_names) - 1, whole or (predictions == np.floor(predictions)).all()
        if not known or predictions.min() < 0 or predictions.max() > last:
            raise InputError(f"predictions for {spec.name} must be classes from 0 to {last}")


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    # By hand: scipy works out a p-value each time and takes several times as long, and a bootstrap asks thousands of
    # times, now and then of samples that are all alike.
    ours, theirs = _from_mean(predictions), _from_mean(labels)
    spread = np.sqrt((ours @ ours) * (theirs @ theirs))
    return float(np.clip((ours @ theirs) / spread, -1, 1)) if spread > 0 else 0.0


def _from_mean(values: np.ndarray) -> np.ndarray:
    """(N,) distances from the mean; 0 where there is nothing but rounding."""
    numbers = values.astype(float)
    distances = numbers - numbers.mean()
    return distances if np.abs(distances).max() > 1e-13 * np.abs(numbers).max() else np.zeros_like(numbers)


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    return _pearson(stats.rankdata(predictions), stats.rankdata(labels))


def _matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    # Undefined where one side is constant: 0, without scikit-learn's warning of a single label.
    constant = (predictions == predictions[0]).all() or (labels == labels[0]).all()
    return 0.0 if constant else matthews_corrcoef(labels, predictions)


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda predictions, labels: np.mean(predictions == labels),
    "f1": lambda predictions, labels: f1_score(labels, predictions, zero_division=0),
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
