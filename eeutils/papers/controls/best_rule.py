"""Published rules beside the best rule that dev can teach, and whether what is learned about exiting is true: for
notebook 13."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from eeutils.exiting.calibration import at_temperatures, auroc, expected_calibration_error, temperatures
from eeutils.exiting.evidence import Evidence, predict
from eeutils.exiting.learned import learned_on_test, learned_rule, share_of_gain
from eeutils.exiting.rules import Rule, divergence, entropy, learned, patience, policy, vote
from eeutils.exiting.signals import signals
from eeutils.exiting.tradeoff import Metric, at_speedup, can_reach
from eeutils.papers import badge, pceebert
from eeutils.papers.berxit import lte_targets
from eeutils.training.runs import Run

LTE = "learning to exit"


def published(run: Run) -> dict[str, Rule]:
    """The rules of papers that mean something on a checkpoint: those that read answers, and those that read what the
    checkpoint says of itself."""
    if run.test.regression:
        rules = {"patience": patience(0.5), "divergence": divergence()}
    else:
        rules = {
            "entropy": entropy(),
            "patient and confident": pceebert.tuned(run),
            "patience": patience(),
            "votes / √i": vote(gamma=0.5),
            "divergence": next(iter(badge.METHOD.rules.values())),
        }
    own = {"uncertainty": (LTE, learned()), "policy": ("policy", policy())}
    return rules | dict(named for extra, named in own.items() if extra in run.test.extras)


def shares(rules: Mapping[str, Rule], best: Rule, run: Run, speedups: Sequence[float]) -> pd.DataFrame:
    """What each rule gains over the best blind policy of its own exits, and which share that is of what the best
    learned rule gains.

    Returns:
        One row a rule and speed-up that both reach: rule, speed-up, gain and possible (in words), share, low, high (NaN
        where the learned rule's own gain is not told from 0).
    """
    rows = []
    for speedup in speedups:
        for name, rule in rules.items():
            found = share_of_gain(
                (run.test, rule), (run.test, best), [[(run.dev, run.test)]], speedup, run.metric, resamples=500
            )
            if found is not None:
                part = found.share
                numbers = (part.estimate, part.low, part.high) if part else (np.nan,) * 3
                row = {"rule": name, "speed-up": f"{speedup:g}x", "gain": str(found.gain)}
                rows.append(row | {"possible": str(found.possible)} | dict(zip(COLUMNS, numbers, strict=True)))
    return pd.DataFrame(rows, columns=["rule", "speed-up", "gain", "possible", *COLUMNS])


COLUMNS = ("share", "low", "high")
"""Of `shares`: a share and its interval."""


def in_words(table: pd.DataFrame) -> str:
    """A clause a speed-up: the share of each rule, or that there is nothing to share."""
    clauses = []
    for place, rows in table.groupby("speed-up", sort=False):
        defined = rows.dropna(subset=list(COLUMNS)).sort_values("share", ascending=False, kind="stable")
        if defined.empty:
            clauses.append(f"at {place} the learned rule gains {rows.possible.iloc[0]}, not told from 0: no shares")
            continue
        told = ", ".join(f"{row.rule} {row.share:.0%} [{row.low:.0%}, {row.high:.0%}]" for row in defined.itertuples())
        clauses.append(f"at {place} of {defined.possible.iloc[0]}: {told}")
    return "; ".join(clauses) or "no speed-up is in reach"


def alike(evidence: Evidence) -> dict[str, list[str]]:
    """The signals that say nearly the same, under one name each; extras of a checkpoint under their own names."""
    known, groups = list(signals(evidence)), dict(GROUPS_OF_NUMBERS if evidence.regression else GROUPS)
    grouped = {name: [each for each in known if each in members] for name, members in groups.items()}
    for each in known:
        if not any(each in members for members in grouped.values()):
            grouped.setdefault(each.partition(",")[0], []).append(each)
    return grouped


GROUPS = {
    "this exit's confidence": ("log-odds", "entropy", "margin"),
    "the exit before": ("log-odds before", "entropy before"),
    "all exits so far": ("log-odds, mean so far", "log-odds, least so far"),
    "agreement": ("agreeing exits", "agreeing in a row"),
    "divergence": ("divergence", "divergence, largest so far"),
}
"""Name -> signals that say nearly the same, of classes."""

GROUPS_OF_NUMBERS = {
    "this exit's number": ("number", "number squared"),
    "the exit before": ("step", "size of the step"),
    "all exits so far": ("distance, mean so far", "distance, largest so far", "mean so far minus number"),
}
"""The same, of numbers."""


def by_size(run: Run, sizes: Sequence[int], speedups: Sequence[float], draws: int = 2) -> pd.DataFrame:
    """What rules score on test that were learned from so many dev samples, from all of them, and from half of test.

    Returns:
        One row a size, draw and speed-up: samples, score, speed-up; "learned from" says whether that is dev or test.
    """
    dev, rows = run.dev, []
    few = [size for size in sizes if size < dev.samples]
    parts = [(size, draw) for size in few for draw in range(draws)] + [(dev.samples, 0)]
    learners = []
    for size, draw in parts:
        chosen = torch.randperm(dev.samples, generator=torch.Generator().manual_seed(draw))[:size]
        learners.append((size, "dev", learned_rule(dev.take(chosen))))
    learners.append((run.test.samples // 2, "half of test", learned_on_test(run.test)))
    for size, source, rule in learners:
        for speedup in speedups:
            score = score_of(run.test, rule, speedup, run.metric)
            rows.append({"samples": size, "score": score, "speed-up": f"{speedup:g}x", "learned from": source})
    return pd.DataFrame(rows)


def score_of(evidence: Evidence, rule: Rule, speedup: float, metric: Metric) -> float:
    """A rule's score at exactly a FLOPs speed-up; NaN out of its reach."""
    if not can_reach(evidence, rule, speedup):
        return np.nan
    return at_speedup(evidence, rule, speedup).score(metric, evidence.labels.numpy())


def knows(evidence: Evidence, rule: Rule) -> list[float]:
    """How well readiness tells good answers, at each exit: the AUROC of being right; of numbers the rank correlation
    with minus the size of the error. NaN where either is the same for all."""
    ready = rule.readiness(evidence)
    if not evidence.regression:
        right = predict(rule.answers(evidence)) == evidence.labels
        return [auroc(*stage) for stage in zip(right, ready, strict=True)]
    errors = -(evidence.predictions - evidence.labels).abs()
    pairs = [(error, each) for error, each in zip(errors.numpy(), ready.numpy(), strict=True)]
    return [float(spearmanr(*pair).statistic) if len(np.unique(pair[1])) > 1 else np.nan for pair in pairs]


def uncertainty_by_exit(evidence: Evidence) -> pd.DataFrame:
    """BERxiT's learned uncertainty and what it stands for, means over samples: a row an exit."""
    targets = lte_targets(evidence.logits, evidence.labels)
    means = {"learned uncertainty": evidence.extras["uncertainty"], "what it stands for": targets}
    frame = pd.DataFrame({name: values.double().mean(dim=1).numpy() for name, values in means.items()})
    return frame.set_axis(pd.Index(evidence.layers, name="exit after layer"))


def calibrated(run: Run) -> tuple[Evidence, Evidence]:
    """Dev and test with every exit at its own temperature, from dev."""
    own = temperatures(run.dev)
    return at_temperatures(run.dev, own), at_temperatures(run.test, own)


def calibration_errors(evidence: Evidence) -> list[float]:
    """The expected calibration error of each exit."""
    right = evidence.predictions == evidence.labels
    return [expected_calibration_error(*stage) for stage in zip(evidence.confidence, right, strict=True)]


def without_extras(evidence: Evidence) -> Evidence:
    """What the exits answer, and nothing that a checkpoint says of itself beside."""
    return replace(evidence, extras={})
