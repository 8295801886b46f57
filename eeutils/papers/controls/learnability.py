"""Can one learn which samples an exit will get wrong, before it runs? HashEE's question, for notebook 06."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eeutils.data.samples import Samples, batches
from eeutils.exiting.calibration import auroc
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, bootstrap
from eeutils.models.backbone import load_backbone
from eeutils.models.exits import pool_tokens
from eeutils.models.schedule import count_types

WORDS, EMBEDDINGS, ENCODER = "length and frequency", "word embeddings", "pre-trained encoder"
LOOK = "own entropy, once it ran"
FEWEST = 10
"""Errors, and as many right answers, that a study of an exit needs."""


@torch.inference_mode()
def features_of(samples: Samples, train: Samples, backbone: str) -> dict[str, np.ndarray]:
    """What predictors read of each sample: (N, D) by name.

    Args:
        samples: to be told of.
        train: where words are counted.
        backbone: the pre-trained encoder, before any fine-tuning.
    """
    encoder, before, after, order = load_backbone(backbone).eval(), [], [], []
    for chosen, batch in batches(samples, 64):
        hidden = encoder.embed(*batch.inputs)
        before.append(pool_tokens(hidden, "mean"))
        for layer in range(encoder.depth):
            hidden = encoder.run_layer(layer, hidden)
        after.append(pool_tokens(hidden, "mean"))
        order.append(chosen)
    back = torch.cat(order).argsort()
    words, read = (torch.cat(states)[back].numpy() for states in (before, after))
    known = count_types(train, encoder.config.vocab_size)[:, 0].double()
    counts = [known[list(tokens[1:-1] or tokens)] for tokens in samples.tokens]
    surface = [[len(seen), seen.log1p().mean(), seen.log1p().min(), (seen == 0).double().mean()] for seen in counts]
    return {WORDS: np.array(surface, dtype=float), EMBEDDINGS: words, ENCODER: read}


@dataclass(frozen=True)
class Study:
    """What came out.

    Attributes:
        table: columns layer, predictor, samples, AUC, G-mean: one row an exit and predictor.
        guesses: layer -> of the predictor that reads the whole sample, its guesses that the exit errs, and whether it
            does, on the balanced samples, each one held out.
    """

    table: pd.DataFrame
    guesses: dict[int, tuple[np.ndarray, np.ndarray]]

    def above_a_guess(self, layer: int) -> Interval:
        """G-mean minus 1/2: a guess at the class rate of a balanced set has both recalls, and so the G-mean, there."""
        guesses, errors = self.guesses[layer]
        return bootstrap(lambda _, rows: g_mean(guesses[rows], errors[rows]) - 0.5, len(errors), resamples=500)


def study(exits: Evidence, features: Mapping[str, np.ndarray], seed: int) -> Study:
    """For each exit as many samples that it gets wrong as right, of each class alike, judged on held-out fifths.

    Balanced within each class, for an early exit may answer one class for nearly everything: its errors would then be
    the other class, and whoever can tell the classes would seem to know what is difficult.

    Args:
        exits: of samples that the model was not trained on.
        features: of these samples, as `features_of` gives them.
        seed: of the choice and of the folds.
    """
    generator, rows, guesses = np.random.default_rng(seed), [], {}
    labels, wrong = exits.labels.numpy(), (exits.predictions != exits.labels).numpy()
    for layer, errs, entropy in zip(exits.layers, wrong, exits.entropy.numpy(), strict=True):
        chosen = _balanced(errs, labels, generator)
        errors, folds = errs[chosen], StratifiedKFold(5, shuffle=True, random_state=seed)
        if errors.sum() < FEWEST:
            continue
        for name, values in features.items():
            predictor = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
            says = cross_val_predict(predictor, values[chosen], errors, cv=folds, method="predict_proba")[:, 1]
            rows.append((layer, name, len(chosen), auroc(errors, says), g_mean(says > 0.5, errors)))
            if name == ENCODER:
                guesses[layer] = says > 0.5, errors
        # The median splits a balanced set in half without looking at a label.
        looks = entropy[chosen]
        rows.append((layer, LOOK, len(chosen), auroc(errors, looks), g_mean(looks > np.median(looks), errors)))
    return Study(pd.DataFrame(rows, columns=["layer", "predictor", "samples", "AUC", "G-mean"]), guesses)


def g_mean(guesses: np.ndarray, errors: np.ndarray) -> float:
    """The root of the product of both recalls."""
    recalls = [guesses[errors].mean() if errors.any() else 0.0, (~guesses[~errors]).mean() if (~errors).any() else 0.0]
    return float(np.sqrt(np.prod(recalls)))


def _balanced(errs: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rows: of each class as many errors as right answers."""
    chosen = []
    for label in np.unique(labels):
        sides = [np.flatnonzero((labels == label) & (errs == side)) for side in (True, False)]
        size = min(map(len, sides))
        chosen += [generator.choice(side, size, replace=False) for side in sides]
    return np.sort(np.concatenate(chosen))
