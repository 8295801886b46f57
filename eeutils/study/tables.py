"""From the runs of the study to its tables: small, tidy, one row a number or two. Nothing is trained to fill them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch

from eeutils import tradeoff
from eeutils.batching import Samples
from eeutils.calibration import expected_calibration_error
from eeutils.errors import InputError
from eeutils.files import atomic_write
from eeutils.papers import finetuned
from eeutils.rules import NEVER, fixed
from eeutils.runs import Run, commit, environment, run_key
from eeutils.runtime import Runtime
from eeutils.settings import Setting
from eeutils.statistics import bootstrap, equal_cost_difference
from eeutils.study.across import comparisons
from eeutils.study.entries import (
    FIXED,
    HEADROOM,
    METHOD,
    PLAIN,
    RANDOM,
    RATES,
    SHALLOW,
    Result,
    at_rate,
    entries_for,
    metric_for_resamples,
    result_of,
    trained,
    with_parents,
)
from eeutils.study.page import COLUMNS, SPEEDUPS
from eeutils.tradeoff import Metric, Reading

RESAMPLES = 500
POINTS = 24
"""Thresholds of a curve that are kept, and NEVER."""

TIMED_SPEEDUP = 2.0
TIMED = {1: 100, 32: 320}
"""Batch size -> test sentences that are timed."""

ROUNDS = 3


def tables(
    profile: str, backbone: str, tasks: Sequence[str], seeds: Sequence[int], times: Sequence[Path] = ()
) -> dict[str, pd.DataFrame]:
    """All tables of `COLUMNS`, from the runs that are there; of what has not been run there are no rows.

    Args:
        profile, backbone: as for a setting.
        tasks, seeds: what to look for.
        times: files of `measure`.

    Raises:
        InputError: nothing has been run.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
    for task in tasks:
        settings = [Setting.from_profile(profile, task, backbone, seed) for seed in seeds]
        found = {
            entry.label: results
            for entry in entries_for(task, backbone)
            if (results := [result for setting in settings if (result := result_of(entry, profile, setting))])
        }
        for name, reader in READERS.items():
            rows[name] += [{"task": task, **row} for row in reader(found)]
        rows["search"] += [row for setting in settings for row in search(profile, setting)]
    if not any(rows.values()):
        raise InputError(f"nothing of the study has been run: profile {profile}, {backbone}, {', '.join(tasks)}")
    frames = {name: pd.DataFrame(found) for name, found in rows.items()}
    frames["times"] = pd.concat([pd.DataFrame(), *(pd.read_csv(path) for path in times)])
    made = {"profile": profile, "backbone": backbone, "commit": commit()}
    return {name: frame.assign(**made).reindex(columns=[*COLUMNS[name], *made]) for name, frame in frames.items()}


Found = dict[str, list[Result]]
"""Label -> the results of one task, one per seed that has been run."""
Rows = Iterable[dict[str, Any]]


def curves(found: Found) -> Rows:
    """The trade-off curves, thinned; of the oracle the one point that it has."""
    for result in _each(found):
        thresholds = [1] if result.entry.kind == HEADROOM else None
        metric = metric_for_resamples(result.setting.task)
        swept = tradeoff.sweep(result.test, result.entry.rule, metric, thresholds, points=POINTS)
        yield from swept[["score", "layer_speedup", "flops_speedup"]].assign(**_about(result)).to_dict("records")


def areas(found: Found) -> Rows:
    """The mean score between 1x and 2x, one number a curve."""
    for result in _each(found):
        if result.entry.kind != HEADROOM:
            swept = tradeoff.sweep(result.test, result.entry.rule, metric_for_resamples(result.setting.task))
            for axis in tradeoff.AXES:
                yield {**_about(result), "axis": axis, "area": tradeoff.area(swept, axis=axis)}


def points(found: Found) -> Rows:
    """Where a method stands that is trained for one threshold."""
    for result in _each(found):
        if (threshold := result.entry.trained_for) is not None:
            metric = metric_for_resamples(result.setting.task)
            point = tradeoff.operate(result.test, result.entry.rule, metric, threshold)
            about = {"seed": result.setting.seed, "method": result.entry.label, "threshold": threshold}
            yield about | {name: point[name] for name in ("score", "layer_speedup", "flops_speedup")}


def scores(found: Found) -> Rows:
    """Scores at equal speed-up: the mean over seeds with its interval over seeds and samples, the share of the plain
    model's score that is kept, and how far the method is above the fixed exits and above (below) the best one there."""
    for axis in tradeoff.AXES:
        for speedup in SPEEDUPS:
            readings = {
                label: read
                for label, results in found.items()
                if results[0].entry.kind != HEADROOM and (read := _readings(results, speedup, axis))
            }
            for row in _compared(found, readings):
                yield {**row, "axis": axis, "speedup": speedup}


@dataclass(frozen=True)
class Remembered(Reading):
    """A reading that is asked for the same draws of samples again and again: alone, and against two others."""

    seen: dict[int, float] = field(default_factory=dict)

    def score(self, metric: Metric, labels: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        draw = hash(rows.tobytes()) if isinstance(rows, np.ndarray) else -1
        if draw not in self.seen:
            self.seen[draw] = super().score(metric, labels, rows)
        return self.seen[draw]


def _compared(found: Found, readings: dict[str, dict[int, Reading]]) -> Rows:
    if not readings:
        return
    some = next(_each(found))
    metric, labels = metric_for_resamples(some.setting.task), some.test.labels.numpy()
    means = {
        label: _mean(reading.score(metric, labels) for reading in read.values()) for label, read in readings.items()
    }
    full = _mean(float(metric(r.test.predictions[-1].numpy(), labels)) for r in found.get(PLAIN, []))
    best = max(means, key=means.get)
    # The best that one can do with the same answer for everybody: the most frequent class; all numbers do alike.
    answers = labels[:1] if some.test.regression else np.unique(labels)
    blind = max(float(metric(np.full_like(labels, answer), labels)) for answer in answers)
    for label, read in readings.items():
        one_each = list(read.values())

        def score(seed: int, rows: np.ndarray, one_each: list[Reading] = one_each) -> float:
            return one_each[seed].score(metric, labels, rows)

        interval = bootstrap(score, len(labels), len(one_each), resamples=RESAMPLES)
        row = {"method": label, "kind": found[label][0].entry.kind, "seeds": len(one_each)}
        row |= {
            "score": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "kept": means[label] / full if full > 0 else math.nan,
            "blind": blind,
        }
        for name, other in (("fixed", FIXED), ("best", best)):
            shared = sorted(read.keys() & readings.get(other, {}).keys())
            if other != label and shared:
                mine, theirs = ([side[seed] for seed in shared] for side in (read, readings[other]))
                gap = equal_cost_difference(metric, mine, theirs, labels, resamples=RESAMPLES)
                row |= {f"over_{name}": gap.estimate, f"over_{name}_low": gap.low, f"over_{name}_high": gap.high}
        yield row


def calibration(found: Found) -> Rows:
    """Expected calibration error of every exit, and its mean confidence above its accuracy."""
    for result in _each(found):
        # Entries that read another's runs by another rule, or no classes, have no calibration of their own.
        if result.entry.kind != METHOD or len(result.runs) > 1 or result.test.regression:
            continue
        evidence = result.test
        confidence = evidence.log_probabilities.amax(dim=-1).exp()
        correct = evidence.predictions == evidence.labels
        for stage, layer in enumerate(evidence.layers):
            yield {
                "seed": result.setting.seed,
                "method": result.entry.label,
                "layer": layer,
                "ece": expected_calibration_error(confidence[stage], correct[stage]),
                "overconfidence": float(confidence[stage].mean() - correct[stage].double().mean()),
                "accuracy": float(correct[stage].double().mean()),
            }


def agreement(found: Found) -> Rows:
    """The share of test samples that the same exit of two seeds answers alike, the mean over pairs of seeds."""
    for label, results in found.items():
        first = results[0]
        if first.entry.kind != METHOD or len(first.runs) > 1 or first.test.regression or len(results) < 2:
            continue
        said = [result.test.predictions for result in results]
        same = torch.stack([(a == b).double().mean(dim=-1) for a, b in combinations(said, 2)])
        for layer, share in zip(first.test.layers, same.mean(dim=0).tolist(), strict=True):
            yield {"method": label, "layer": layer, "agreement": share, "seeds": len(results)}


def costs(found: Found) -> Rows:
    """Parameters of the model in use (the largest, where there is a choice), and the trainings that it takes; those of
    CascadeBERT's cross-fitted judges are not counted. Seconds are medians: something else may have kept one seed up."""
    plain = {result.setting.seed: _seconds(result.runs) for result in found.get(PLAIN, [])}
    for label, results in found.items():
        if results[0].entry.kind == HEADROOM:
            continue
        models = [run.model() for run in results[0].runs]
        seconds = [_seconds(result.runs) for result in results]
        ratios = [_seconds(r.runs) / plain[r.setting.seed] for r in results if r.setting.seed in plain]
        yield {
            "method": label,
            "parameters": max(sum(weight.numel() for weight in model.parameters()) for model in models),
            "trainings": len(with_parents(results[0].runs)),
            "training_seconds": median(seconds),
            "times_plain": median(ratios) if ratios else math.nan,
            "seeds": len(results),
        }


def provenance(found: Found) -> Rows:
    """What every run was made with."""
    seen = set()
    for result in _each(found):
        for run in with_parents(result.runs):
            if run.directory in seen:
                continue
            seen.add(run.directory)
            made = json.loads((run.directory / "environment.json").read_text())
            changed = {name: value for name, value in run.options.items() if value != run.method.options[name]}
            kept = {name: made[name] for name in ("commit", "device", "precision", "threads", "time")}
            yield {
                "seed": result.setting.seed,
                "run": run.method.name,
                "options": json.dumps(changed) if changed else "",
                "key": run_key(run.method, run.setting, run.options)[:10],
                "data": run.config["data"][:10],
                "train_size": result.setting.train_size,
                "epochs": result.setting.epochs,
                "learning_rate": result.setting.learning_rate,
                "seconds": run.history.seconds.sum(),
                "torch": made["packages"]["torch"],
                # The tables have a commit of their own.
                **{f"run_{name}": value for name, value in kept.items()},
            }


def search(profile: str, setting: Setting) -> list[dict[str, Any]]:
    """The area under each method's curve on DEV at several learning rates, where several have been run."""
    rows = []
    for entry in entries_for(setting.task, setting.backbone):
        if entry.kind != METHOD and entry.label != SHALLOW:
            continue
        tried = {rate: result_of(entry, profile, at_rate(setting, rate)) for rate in RATES}
        if any(result is None for result in tried.values()):
            continue
        for rate, result in tried.items():
            swept = tradeoff.sweep(result.dev, entry.rule, metric_for_resamples(setting.task))
            rows.append(
                {
                    "task": setting.task,
                    "seed": setting.seed,
                    "method": entry.label,
                    "learning_rate": result.setting.learning_rate,
                    "dev_area": tradeoff.area(swept),
                    "dev_samples": result.dev.samples,
                    "in_use": rate == 1,
                }
            )
    return rows


READERS: dict[str, Callable[[Found], Rows]] = {
    "curves": curves,
    "areas": areas,
    "points": points,
    "scores": scores,
    "calibration": calibration,
    "agreement": agreement,
    "costs": costs,
    "claims": comparisons,
    "runs": provenance,
}
"""Table -> what reads it from the results of one task; the table of times is measured apart."""


def measure(profile: str, setting: Setting) -> pd.DataFrame:
    """Wall-clock of every entry but random exits and the oracle against the plain model, on the threshold (or model)
    that dev says gives 2x by layers.

    Columns as in `COLUMNS["times"]`: layer and FLOPs speed-up are those of the very sentences that were
    timed. Both are timed in turns, so that whatever else the machine does hits both; nothing else should run.
    """
    plain_run = trained(finetuned.METHOD, setting, {})
    if plain_run is None:
        raise InputError(f"the plain model of {setting.task}, seed {setting.seed}, is not trained; time needs it")
    plain, rows, machine = Runtime(plain_run.model(), fixed(), NEVER), [], environment()
    for entry in entries_for(setting.task, setting.backbone):
        result = result_of(entry, profile, setting)
        if result is None or entry.kind == HEADROOM or entry.label in (PLAIN, RANDOM):
            continue
        run = min(result.runs, key=lambda run: abs(_layer_speedup(run) - TIMED_SPEEDUP))
        several = len(result.runs) > 1
        rule = fixed() if several else entry.rule
        threshold = NEVER if several else tradeoff.threshold_for_speedup(run.dev, rule, TIMED_SPEEDUP)
        runtime, samples = Runtime(run.model(), rule, threshold), run.samples("test")
        for batch_size, count in TIMED.items():
            places = _spread(len(samples), count)
            point = tradeoff.operate(run.test.select(torch.tensor(places)), rule, run.metric, threshold)
            ratios = _race(plain, plain_run.samples("test").take(places), runtime, samples.take(places), batch_size)
            rows.append(
                {
                    "task": setting.task,
                    "seed": setting.seed,
                    "method": entry.label,
                    "batch": batch_size,
                    **{name: point[name] for name in ("layer_speedup", "flops_speedup")},
                    "wall_speedup": median(ratios),
                    "wall_low": min(ratios),
                    "wall_high": max(ratios),
                    "device": machine["device"],
                    "threads": machine["threads"],
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS["times"]))


def _race(plain: Runtime, read: Samples, ours: Runtime, samples: Samples, batch_size: int) -> list[float]:
    return [plain.measure(read, batch_size).mean / ours.measure(samples, batch_size).mean for _ in range(ROUNDS)]


def _spread(total: int, count: int) -> list[int]:
    return list(range(0, total, max(1, total // count)))[:count]


def _layer_speedup(run: Run) -> float:
    return run.dev.reference_layers / float(run.dev.layers_run[-1].mean())


def _readings(results: list[Result], speedup: float, axis: str) -> dict[int, Reading]:
    """Seed -> reading; empty unless every seed reaches the speed-up, or the mean would be one over the lucky seeds."""
    rule = results[0].entry.rule
    if not all(tradeoff.reaches(result.test, rule, speedup, axis) for result in results):
        return {}
    found = {result.setting.seed: tradeoff.read(result.test, rule, speedup, axis) for result in results}
    return {seed: Remembered(reading.share, reading.predictions) for seed, reading in found.items()}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else math.nan


def _about(result: Result) -> dict[str, Any]:
    return {"seed": result.setting.seed, "method": result.entry.label, "kind": result.entry.kind}


def _each(found: Found) -> Iterator[Result]:
    return (result for results in found.values() for result in results)


def _seconds(runs: Iterable[Run]) -> float:
    return float(sum(run.history.seconds.sum() for run in with_parents(runs)))


def write(frames: dict[str, pd.DataFrame], folder: Path) -> None:
    """Each table as `folder/study-NAME.csv`, whole or not at all."""
    for name, frame in frames.items():
        with atomic_write(folder / f"study-{name}.csv") as partial:
            frame.to_csv(partial, index=False, float_format="%.5g")
