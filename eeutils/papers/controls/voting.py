"""Ensemble exits taken apart, for notebook 07: the loss without a floor, what the diversity term changes, and what
votes gain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eeutils.data.samples import Batch
from eeutils.exiting.calibration import agreement, auroc, error_correlation
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, difference_interval, paired_difference
from eeutils.exiting.rules import NEVER, Rule, patience, vote
from eeutils.exiting.tradeoff import Metric, Reading, at_speedup, at_threshold, decide
from eeutils.models.stages import Answers
from eeutils.papers.ensemble import EnsembleOptions, ensemble_loss

_CLASS_1 = Batch(torch.zeros(1, 2), torch.ones(1, 2), None, torch.tensor([1]), torch.tensor([0]))


def loss_of(logits: Float[Tensor, "stages 1 2"], options: EnsembleOptions) -> Tensor:
    """The loss of one sample of class 1 whose classifiers say these logits: no model, and nothing is spent."""
    return ensemble_loss(options, None, Answers(logits, None), _CLASS_1)


def loss_of_pair(margin: float, doubt: float, options: EnsembleOptions) -> float:
    """The loss where classifier 1 is right by that margin of logits and classifier 2 doubts the right class by e."""
    second = torch.tensor([doubt, 1 - doubt], dtype=torch.float64).log()
    return loss_of(torch.stack([torch.tensor([0.0, margin], dtype=torch.float64), second])[:, None], options).item()


def descend(options: EnsembleOptions, classifiers: int = 5, steps: int = 600) -> Float[Tensor, " classifiers"]:
    """Classifiers with free logits, all right at first, after gradient descent on the loss of one sample: by which
    margin of logits each is right; below 0 it is wrong."""
    start = torch.tensor([0.0, 1.0]) + 0.1 * torch.randn(classifiers, 1, 2, generator=torch.Generator().manual_seed(0))
    logits = start.requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(logits, options).backward()
        optimizer.step()
    wrong, right = logits.detach()[:, 0].T
    return right - wrong


def mean_of_pairs(matrix: Tensor) -> float:
    """The mean over pairs of different exits, without those that are undefined; NaN where none is defined."""
    pairs = matrix[tuple(torch.triu_indices(*matrix.shape, 1))]
    return float(pairs[~pairs.isnan()].mean())


def _mean_score(evidence: Evidence, metric: Metric) -> float:
    labels = evidence.labels.numpy()
    return float(np.mean([metric(answers, labels) for answers in evidence.predictions.numpy()]))


def _majority(evidence: Evidence, metric: Metric) -> float:
    return metric(decide(evidence, vote(), NEVER).predictions.numpy(), evidence.labels.numpy())


AGREEMENT, CORRELATION = "agreement of two exits", "correlation of their errors"
DOUBT, MEAN, MAJORITY = "doubt (entropy, 0 to 1)", "mean score of the exits", "score of the majority of all"
TRAITS: dict[str, Callable[[Evidence, Metric], float]] = {
    AGREEMENT: lambda evidence, _: mean_of_pairs(agreement(evidence)),
    CORRELATION: lambda evidence, _: mean_of_pairs(error_correlation(evidence)),
    DOUBT: lambda evidence, _: float(evidence.entropy.mean()),
    MEAN: _mean_score,
    MAJORITY: _majority,
}
"""What makes an ensemble: how alike its members are, how sure, how good, and how good their majority is."""


def change(trait: str, with_term: Evidence, without: Evidence, metric: Metric) -> Interval:
    """A trait with the diversity term minus that without, paired over samples."""

    def score(evidence: Evidence, rows: np.ndarray) -> float:
        return TRAITS[trait](evidence.take(torch.from_numpy(rows)), metric)

    return paired_difference(score, [with_term], [without], without.samples, resamples=200)


def changes_of(
    with_term: Mapping[float, Evidence], without: Evidence, metric: Metric
) -> dict[float, dict[str, Interval]]:
    """`change` of every trait for every weight of the diversity term."""
    return {
        weight: {trait: change(trait, evidence, without, metric) for trait in TRAITS}
        for weight, evidence in with_term.items()
    }


def as_frame(changes: Mapping[float, Mapping[str, Interval]]) -> pd.DataFrame:
    """One row a weight and trait: columns trait, λ, change, low, high."""
    rows = [
        {"trait": trait, "λ": f"λ = {weight:g}", "change": each.estimate, "low": each.low, "high": each.high}
        for weight, traits in changes.items()
        for trait, each in traits.items()
    ]
    return pd.DataFrame(rows)


def in_words(weight: float, changes: Mapping[str, Interval]) -> str:
    """What the term does to doubt and scores at one weight, and whether a score is gained beyond its interval."""
    gained = [trait for trait in (MEAN, MAJORITY) if changes[trait].low > 0]
    lost = [trait for trait in (MEAN, MAJORITY) if changes[trait].high < 0]
    outcome = "; ".join(
        f"{word} the {' and the '.join(traits)}" for word, traits in (("gains", gained), ("loses", lost)) if traits
    )
    return (
        f"λ = {weight:g} changes doubt by {changes[DOUBT]}, the {MEAN} by {changes[MEAN]}, the {MAJORITY} by "
        f"{changes[MAJORITY]}: it {outcome or 'gains no score and loses none beyond its interval'}"
    )


def majority_over_last(evidence: Evidence, metric: Metric) -> Interval:
    """The majority of all exits when nobody leaves, minus the last exit alone: both cost the same."""
    together, last = decide(evidence, vote(), NEVER).predictions.numpy(), evidence.predictions[-1].numpy()
    return difference_interval(metric, [together], [last], evidence.labels.numpy())


def earlier_by_vote(evidence: Evidence, metric: Metric) -> pd.DataFrame:
    """Patience t beside t + 1 votes, which are never later: who leaves earlier, at which speed-up and score."""
    rows = []
    for t in range(1, evidence.stages):
        waiting, voting = decide(evidence, patience(), t), decide(evidence, vote(), t + 1)
        if not (voting.stages <= waiting.stages).all():
            raise AssertionError(f"{t + 1} votes came later than patience {t}")
        patient, voted = (at_threshold(evidence, *at) for at in ((patience(), metric, t), (vote(), metric, t + 1)))
        rows.append(
            {
                "patience t": t,
                "votes v": t + 1,
                "leave earlier by vote": float((voting.stages < waiting.stages).double().mean()),
                "speed-up, patience": patient["flops_speedup"],
                "speed-up, vote": voted["flops_speedup"],
                "score, patience": patient["score"],
                "score, vote": voted["score"],
            }
        )
    return pd.DataFrame(rows)


def knows(evidence: Evidence, rule: Rule) -> list[float]:
    """AUROC of a rule's readiness for "the answer is right", at each exit; NaN where all or none are right."""
    right = rule.answers(evidence).argmax(dim=-1) == evidence.labels
    return [auroc(*stage) for stage in zip(right, rule.readiness(evidence), strict=True)]


def growth(with_term: Evidence, without: Evidence, speedups: Sequence[float], metric: Metric) -> list[Interval]:
    """How much more votes gain over patience with the diversity term than without, at FLOPs speed-ups."""
    labels = with_term.labels.numpy()

    def at(speedup: float) -> Interval:
        sides = (
            [[at_speedup(evidence, rule, speedup) for rule in (vote(), patience())]]
            for evidence in (with_term, without)
        )

        def gain(readings: list[Reading], rows: np.ndarray) -> float:
            voted, patient = (reading.score(metric, labels, rows) for reading in readings)
            return voted - patient

        return paired_difference(gain, *sides, len(labels), resamples=300)

    return [at(speedup) for speedup in speedups]
