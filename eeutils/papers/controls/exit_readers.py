"""What learning to exit could learn from the vectors of a trained model, for notebook 13: one linear map for all
layers, as BERxiT has it, or a small network, from sentences that the model has seen in training or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from sklearn.base import BaseEstimator
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eeutils.exiting.evidence import Evidence
from eeutils.models.record import record_features
from eeutils.papers.berxit import lte_targets
from eeutils.training.runs import Run

LINEAR, NETWORK = "linear map", "small network"
_HIDDEN = {"hidden_layer_sizes": (32,), "alpha": 3.0, "early_stopping": True, "max_iter": 500, "random_state": 0}
READERS: dict[str, Callable[[], BaseEstimator]] = {
    LINEAR: lambda: Ridge(1000.0),
    NETWORK: lambda: MLPRegressor(**_HIDDEN),
}
"""Who reads vectors; both learn by squared error, as learning to exit does."""

SEEN, UNSEEN = "seen in training", "not seen (dev)"


def afterwards(run: Run, most: int = 3000) -> dict[tuple[str, str], Evidence]:
    """(reader, source) -> test evidence whose uncertainty that reader has learned from the frozen model's vectors: on
    the sentences that learning to exit had, at most `most` of them, or on all of dev."""
    model, train = run.model(), run.samples("train")
    seen = record_features(model, train.take(range(min(most, len(train)))))
    test, asked = record_features(model, run.samples("test"))
    learned = {}
    for source, (evidence, vectors) in {SEEN: seen, UNSEEN: record_features(model, run.samples("dev"))}.items():
        wrong = lte_targets(evidence.logits, evidence.labels).flatten().numpy()
        for name, make in READERS.items():
            reader = make_pipeline(StandardScaler(), make()).fit(vectors.flatten(0, 1).numpy(), wrong)
            said = torch.from_numpy(reader.predict(asked.flatten(0, 1).numpy())).view(asked.shape[:2])
            learned[name, source] = replace(test, extras={"uncertainty": said.clamp(0, 1)})
    return learned
