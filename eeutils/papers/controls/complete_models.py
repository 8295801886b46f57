"""What notebook 03 holds a cascade to: its models trained apart, how hard its samples are, and other domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eeutils.data.specs import TASKS, spec_of
from eeutils.data.tasks import task_of
from eeutils.errors import InputError
from eeutils.exiting import tradeoff
from eeutils.exiting.calibration import auroc, difficulty_inversion_score, expected_calibration_error
from eeutils.exiting.evidence import KINDS, Evidence
from eeutils.exiting.intervals import Interval, paired_difference
from eeutils.exiting.rules import Rule
from eeutils.training.runs import Run, metric_of


def in_a_row(parts: Sequence[Evidence]) -> Evidence:
    """Models that were fine-tuned apart as a cascade, small to large: who goes on starts again, and pays for all.

    Raises:
        InputError: no part, or parts that are not one answer to the same samples.
    """
    if not parts or any(part.stages != 1 or not torch.equal(part.ids, parts[0].ids) for part in parts):
        raise InputError("models make a cascade when each of them has answered the same samples once")
    return replace(
        parts[-1],
        logits=torch.cat([part.logits for part in parts]),
        cost={kind: torch.cat([part.cost[kind] for part in parts]).cumsum(dim=0) for kind in KINDS},
        layers=tuple(accumulate(part.layers[0] for part in parts)),
    )


def measured_against(evidence: Evidence, plain: Evidence) -> Evidence:
    """The same answers, their speed-ups measured against another plain model on the same samples."""
    return replace(evidence, reference=plain.reference)


def clearness(task: str, split: str) -> pd.Series:
    """By id, how far people rated each sample from where its classes meet; empty where nobody rated them."""
    spec = spec_of(task)
    rated_task = f"{spec.corpus}-valence"
    if rated_task not in TASKS or not spec.bins:
        return pd.Series(dtype=float)
    rated = getattr(task_of(rated_task, None, None), split)
    distance = np.abs(np.asarray(rated["label"])[:, None] - np.array(spec.bins)).min(axis=1)
    return pd.Series(distance, index=np.asarray(rated["id"]))


@dataclass(frozen=True)
class Judge:
    """Who says which samples are hard, in words, and what it says of each one."""

    name: str
    hard: Bool[Tensor, " samples"]


def judge_of(task: str, split: Evidence, votes: Float[Tensor, " samples"]) -> Judge:
    """Who is kin to none of the models: the people that rated the samples (hard is the third nearest to where the
    classes meet), or where nobody did, k-layer models (hard is what half of them or more get wrong).

    Args:
        task: with ratings or not.
        split: evidence of the samples that are judged.
        votes: the share of k-layer models that get each of them right.
    """
    rated = torch.tensor(clearness(task, "test").reindex(split.ids.numpy()).to_numpy(dtype=float))
    if rated.isnan().any():
        return Judge("k-layer models", votes <= 0.5)
    return Judge("people", rated <= rated.quantile(1 / 3))


def inversions(readers: Mapping[str, tuple[Evidence, Sequence[int]]], hard: Bool[Tensor, " samples"]) -> pd.DataFrame:
    """Whether each stage is surer of easy samples than of hard ones.

    Args:
        readers: name -> evidence, and the layers of the model or part of a model that answers at each stage.
        hard: which samples are.

    Returns:
        Columns model, layers, DIS, and for easy and hard samples how many are right and how sure the stage is of them.
    """
    rows = []
    for name, (evidence, layers) in readers.items():
        for depth, sure, answers in zip(layers, evidence.confidence, evidence.predictions, strict=True):
            right = (answers == evidence.labels).double()
            row = {"model": name, "layers": depth, "DIS": difficulty_inversion_score(sure, hard)}
            for word, chosen in (("easy", ~hard), ("hard", hard)):
                row |= {f"right on {word}": right[chosen].mean().item(), f"sure on {word}": sure[chosen].mean().item()}
            rows.append(row)
    return pd.DataFrame(rows)


def inversion_difference(
    ours: Float[Tensor, " samples"], theirs: Float[Tensor, " samples"], hard: Bool[Tensor, " samples"]
) -> Interval:
    """Difficulty inversion score of one confidence minus that of another, on the same samples."""

    def score(sure: Tensor, rows: np.ndarray) -> float:
        return difficulty_inversion_score(sure[rows], hard[rows])

    return paired_difference(score, [ours], [theirs], len(hard), resamples=500)


def calibration_gain(before: Evidence, after: Evidence, stage: int = 0) -> Interval:
    """Calibration error of a stage of one evidence minus that of another: above 0, the second is better calibrated."""
    sides = ([(side.confidence[stage], side.predictions[stage] == side.labels)] for side in (before, after))

    def score(side: tuple[Tensor, Tensor], rows: np.ndarray) -> float:
        sure, right = side
        return expected_calibration_error(sure[rows], right[rows])

    return paired_difference(score, *sides, before.samples, resamples=500)


def elsewhere(run: Run, rule: Rule, threshold: float) -> pd.DataFrame:
    """A cascade on its own domain and on the others of the same classes, at one threshold.

    Returns:
        One row a domain, its own first: the scores of the first and the last model and of the cascade, the FLOPs
        speed-up, the share that goes on, and how well the first model's confidence tells right from wrong (AUC).
    """
    spec = spec_of(run.setting.task)
    others = [
        name
        for name, other in TASKS.items()
        if spec.source == "offline"
        and (other.source, other.class_names) == ("offline", spec.class_names)
        and other.corpus != spec.corpus
    ]
    rows = []
    for name, evidence in {spec.name: run.test, **{other: run.evidence_on(other) for other in others}}.items():
        metric, labels = metric_of(name), evidence.labels.numpy()
        point = tradeoff.at_threshold(evidence, rule, metric, threshold)
        rows.append(
            {
                "domain": name,
                "samples": evidence.samples,
                "first model": metric(evidence.predictions[0].numpy(), labels),
                "last model": metric(evidence.predictions[-1].numpy(), labels),
                "cascade": point["score"],
                "FLOPs speed-up": point["flops_speedup"],
                "goes on": 1 - point["leave_1"],
                "AUC": auroc(evidence.predictions[0] == evidence.labels, evidence.confidence[0]),
            }
        )
    return pd.DataFrame(rows)
