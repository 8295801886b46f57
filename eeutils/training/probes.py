"""Has an exit learned what its own vector can tell? A linear probe beside every exit.

Before anything is said of rules, every exit must have learned: it must not be clearly below a linear model that reads
the very vector that the exit judges, learned on the same training samples. The probes are a baseline, too: linear exits
on the frozen encoder of a checkpoint, at the cost of its own exits.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import difference_interval
from eeutils.models.exits import MultiExitModel
from eeutils.models.record import record_features
from eeutils.training.loop import processes
from eeutils.training.runs import SPLITS, Run

TOLERANCE = 0.01
"""An exit may be that much below its probe, or half the width of the difference's interval where that is more."""


def probe_evidence(run: Run, split: str) -> Evidence:
    """What linear probes on the vectors of a run's exits say of a split: logistic regression, ridge for numbers.

    Learned on train and recorded when first asked for; costs are those of the run's own exits.

    Raises:
        InputError: a model that has no exits on one encoder.
    """
    path = run.directory / f"evidence-probe-{split}.safetensors"
    with processes().main_process_first():
        if not path.exists():
            for name, evidence in _record(run).items():
                evidence.save(run.directory / f"evidence-probe-{name}.safetensors")
    return Evidence.load(path)


def learned_exits(run: Run, split: str = "dev") -> pd.DataFrame:
    """The gate: every exit against its probe on the same split.

    Returns:
        One row an exit: layer, exit and probe (scores), gap (exit minus probe) with low and high of its paired
        interval, learned (the gap is not below minus the larger of `TOLERANCE` and half the interval's width).
    """
    exits, probes = getattr(run, split), probe_evidence(run, split)
    labels, rows = exits.labels.numpy(), []
    for layer, ours, theirs in zip(exits.layers, exits.predictions.numpy(), probes.predictions.numpy(), strict=True):
        gap = difference_interval(run.metric, [ours], [theirs], labels, resamples=300)
        rows.append(
            {
                "layer": layer,
                "exit": run.metric(ours, labels),
                "probe": run.metric(theirs, labels),
                "gap": gap.estimate,
                "low": gap.low,
                "high": gap.high,
                "learned": gap.estimate >= -max(TOLERANCE, (gap.high - gap.low) / 2),
            }
        )
    return pd.DataFrame(rows)


def _record(run: Run) -> dict[str, Evidence]:
    model = run.model()
    if not isinstance(model, MultiExitModel):
        raise InputError(f"probes read the vectors of exits on one encoder, and {run.method.title} has none")
    train, labels = record_features(model, run.samples("train")).numpy(), run.samples("train").labels.numpy()
    regression = model.classes == 1
    probes = [
        make_pipeline(StandardScaler(), Ridge() if regression else LogisticRegression(C=0.1, max_iter=500))
        for _ in train
    ]
    for linear, vectors in zip(probes, train, strict=True):
        linear.fit(vectors, labels)
    recorded = {}
    for split in SPLITS:
        vectors, own = record_features(model, run.samples(split)).numpy(), getattr(run, split)
        answers = [
            linear.predict(each)[:, None] if regression else _log_probabilities(linear, each, model.classes)
            for linear, each in zip(probes, vectors, strict=True)
        ]
        logits = torch.tensor(np.stack(answers), dtype=torch.float32)
        recorded[split] = Evidence(logits, own.ids, own.cost, own.reference, own.layers, own.labels)
    return recorded


def _log_probabilities(linear: Pipeline, vectors: np.ndarray, classes: int) -> np.ndarray:
    # A class that training never showed has no column.
    answers = np.full((len(vectors), classes), -1e4)
    answers[:, linear.classes_] = linear.predict_log_proba(vectors)
    return answers
