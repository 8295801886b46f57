"""From the runs of the study to its tables: small, tidy, one row a number or two. Nothing is trained to fill them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd
import torch

from eeutils.errors import InputError
from eeutils.exiting import tradeoff
from eeutils.exiting.calibration import expected_calibration_error
from eeutils.exiting.comparisons import evaluate, mean_over_exits
from eeutils.exiting.intervals import Interval, bootstrap, equal_cost_difference
from eeutils.exiting.rules import NEVER, fixed
from eeutils.exiting.tradeoff import Metric, Reading
from eeutils.files import atomic_write
from eeutils.models.runtime import Runtime
from eeutils.models.timing import race, ratio
from eeutils.papers import badge, finetuned, pabee
from eeutils.papers.comparisons import COMPARISONS, PLAIN
from eeutils.study.entries import (
    FIXED,
    HEADROOM,
    METHOD,
    RANDOM,
    RATES,
    SHALLOW,
    Result,
    at_rate,
    entries_for,
    result_of,
    with_parents,
)
from eeutils.study.page import AXES, COLUMNS, SPEEDUPS
from eeutils.training.fingerprint import commit, environment, run_key
from eeutils.training.loop import best_device
from eeutils.training.runs import KEY_LETTERS, Run, find
from eeutils.training.settings import Setting

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
        results = {
            entry.label: of_entry
            for entry in entries_for(task, backbone)
            if (of_entry := [result for setting in settings if (result := result_of(entry, profile, setting))])
        }
        if results:
            for name, reader in READERS.items():
                rows[name] += [{"task": task, **row} for row in reader(results)]
            rows["search"] += [row for setting in settings for row in search(profile, setting)]
    if not any(rows.values()):
        raise InputError(f"nothing of the study has been run: profile {profile}, {backbone}, {', '.join(tasks)}")
    frames = {name: pd.DataFrame(of_table) for name, of_table in rows.items()}
    frames["times"] = pd.concat([pd.DataFrame(), *(pd.read_csv(path) for path in times)])
    made = {"profile": profile, "backbone": backbone, "commit": commit()}
    return {name: frame.assign(**made).reindex(columns=[*COLUMNS[name], *made]) for name, frame in frames.items()}


Results = dict[str, list[Result]]
"""Label -> the results of one task, one for each seed that has been run; at least one in all."""
Rows = Iterable[dict[str, Any]]
"""Rows of a table; what `COLUMNS` does not name is left out of it."""


def curves(results: Results) -> Rows:
    """The trade-off curves, thinned; of the oracle the one point that it has."""
    for result in _each(results):
        thresholds = [1] if result.entry.kind == HEADROOM else None
        swept = tradeoff.sweep(result.test, result.entry.rule, result.metric, thresholds, points=POINTS)
        yield from swept.assign(**_about(result)).to_dict("records")


def areas(results: Results) -> Rows:
    """The mean score between 1x and 2x, one number a curve."""
    for result in _each(results):
        if result.entry.kind != HEADROOM:
            swept = tradeoff.sweep(result.test, result.entry.rule, result.metric)
            for axis in AXES:
                yield _about(result) | {"axis": axis, "area": tradeoff.area(swept, axis=axis)}


def points(results: Results) -> Rows:
    """Where a method stands that is trained for one threshold."""
    for result in _each(results):
        entry = result.entry
        if entry.trained_for is not None:
            yield _about(result) | tradeoff.at_threshold(result.test, entry.rule, result.metric, entry.trained_for)


def scores(results: Results) -> Rows:
    """Scores at equal speed-up: the mean over seeds with its interval over seeds and samples, the share of the plain
    model's score that is kept, and how far the method is above the fixed exits and above (below) the best one there."""
    for axis in AXES:
        for speedup in SPEEDUPS:
            readings = {
                label: by_seed
                for label, of_entry in results.items()
                if of_entry[0].entry.kind != HEADROOM and (by_seed := _readings(of_entry, speedup, axis))
            }
            for row in _compared(results, readings):
                yield row | {"axis": axis, "speedup": speedup}


@dataclass(frozen=True)
class Remembered(Reading):
    """A reading that is asked for the same draws of samples again and again: alone, and against two others."""

    seen: dict[int, float] = field(default_factory=dict)

    def score(self, metric: Metric, labels: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        draw = hash(rows.tobytes()) if isinstance(rows, np.ndarray) else -1
        if draw not in self.seen:
            self.seen[draw] = super().score(metric, labels, rows)
        return self.seen[draw]


def _readings(results: list[Result], speedup: float, axis: str) -> dict[int, Reading]:
    """Seed -> reading; empty unless every seed reaches the speed-up, or the mean would be one over the lucky seeds."""
    rule = results[0].entry.rule
    if not all(tradeoff.can_reach(result.test, rule, speedup, axis) for result in results):
        return {}
    readings = {result.setting.seed: tradeoff.at_speedup(result.test, rule, speedup, axis) for result in results}
    return {seed: Remembered(reading.share, reading.predictions) for seed, reading in readings.items()}


def _compared(results: Results, readings: dict[str, dict[int, Reading]]) -> Rows:
    if not readings:
        return
    some = next(_each(results))
    metric, labels = some.metric, some.test.labels.numpy()
    means = {label: fmean(one.score(metric, labels) for one in by_seed.values()) for label, by_seed in readings.items()}
    best = max(means, key=means.get)
    full = [metric(plain.test.predictions[-1].numpy(), labels) for plain in results.get(PLAIN, [])]
    whole = fmean(full) if full else math.nan
    # The best that one can do with the same answer for everybody: the most frequent class; all numbers do alike.
    answers = labels[:1] if some.test.regression else np.unique(labels)
    blind = max(float(metric(np.full_like(labels, answer), labels)) for answer in answers)
    for label, by_seed in readings.items():
        one_each = list(by_seed.values())

        def score(seed: int, rows: np.ndarray, one_each: list[Reading] = one_each) -> float:
            return one_each[seed].score(metric, labels, rows)

        interval = bootstrap(score, len(labels), len(one_each), resamples=RESAMPLES)
        row = {"method": label, "kind": results[label][0].entry.kind, "seeds": len(one_each), "blind": blind}
        row |= _numbers(interval, "score", "low", "high") | {"kept": means[label] / whole if whole > 0 else math.nan}
        for name, other in (("over_fixed", FIXED), ("over_best", best)):
            shared = sorted(by_seed.keys() & readings.get(other, {}).keys())
            if other != label and shared:
                mine, theirs = ([side[seed] for seed in shared] for side in (by_seed, readings[other]))
                gap = equal_cost_difference(metric, mine, theirs, labels, resamples=RESAMPLES)
                row |= _numbers(gap, name, f"{name}_low", f"{name}_high")
        yield row


def calibration(results: Results) -> Rows:
    """Expected calibration error of every exit, and its mean confidence above its accuracy."""
    for result in _each(results):
        if not _has_exits_of_its_own(result):
            continue
        evidence = result.test
        confidence, correct = evidence.confidence, evidence.predictions == evidence.labels
        for stage, layer in enumerate(evidence.layers):
            accuracy = float(correct[stage].double().mean())
            yield _about(result) | {
                "layer": layer,
                "ece": expected_calibration_error(confidence[stage], correct[stage]),
                "overconfidence": float(confidence[stage].mean()) - accuracy,
                "accuracy": accuracy,
            }


def agreement(results: Results) -> Rows:
    """The share of test samples that the same exit of two seeds answers alike, the mean over pairs of seeds."""
    for label, of_entry in results.items():
        first = of_entry[0]
        if len(of_entry) < 2 or not _has_exits_of_its_own(first):
            continue
        answers = [result.test.predictions for result in of_entry]
        same = torch.stack([(a == b).double().mean(dim=-1) for a, b in combinations(answers, 2)])
        for layer, share in zip(first.test.layers, same.mean(dim=0).tolist(), strict=True):
            yield {"method": label, "layer": layer, "agreement": share, "seeds": len(of_entry)}


def _has_exits_of_its_own(result: Result) -> bool:
    """Whether its exits answer with classes, and are not those of another entry by another rule."""
    return result.entry.kind == METHOD and len(result.runs) == 1 and not result.test.regression


def costs(results: Results) -> Rows:
    """Parameters of the model in use (the largest, where there is a choice), and the trainings that it takes; those of
    CascadeBERT's cross-fitted judges are not counted. Seconds are medians: something else may have kept one seed up."""
    plain = {result.setting.seed: _seconds(result) for result in results.get(PLAIN, [])}
    for label, of_entry in results.items():
        if of_entry[0].entry.kind == HEADROOM:
            continue
        models = [run.model() for run in of_entry[0].runs]
        seconds = {result.setting.seed: _seconds(result) for result in of_entry}
        ratios = [own / plain[seed] for seed, own in seconds.items() if seed in plain]
        yield {
            "method": label,
            "parameters": max(sum(weight.numel() for weight in model.parameters()) for model in models),
            "trainings": len(with_parents(of_entry[0].runs)),
            "training_seconds": median(seconds.values()),
            "times_plain": median(ratios) if ratios else math.nan,
            "seeds": len(of_entry),
        }


def _seconds(result: Result) -> float:
    return float(sum(run.history.seconds.sum() for run in with_parents(result.runs)))


def comparisons(results: Results) -> Rows:
    """What the claims compare, wherever it needs no other runs than these: the difference with its interval over
    samples and over the seeds that both sides have. No row where one of those seeds does not reach a speed-up."""
    metric = next(_each(results)).metric
    for comparison in COMPARISONS:
        shared = _shared(results, comparison.ours.name, comparison.theirs.name)
        curves = {label: [(result.test, result.entry.rule) for result in side] for label, side in shared.items()}
        for each in evaluate([comparison], curves, metric, RESAMPLES):
            yield {
                "claim": comparison.claim,
                "ours": str(comparison.ours),
                "theirs": comparison.rival,
                "axis": comparison.axis,
                "speedup": each.speedup,
                "seeds": each.seeds,
                **_numbers(each.interval, "difference", "low", "high"),
            }
    labels = badge.METHOD.title, pabee.METHOD.title
    if shared := _shared(results, *labels):
        ours, theirs = ([result.test for result in shared[label]] for label in labels)
        yield {
            "claim": "B1a",
            **{side: f"{label}, mean over exits" for side, label in zip(("ours", "theirs"), labels, strict=True)},
            "axis": "exits",
            "speedup": 1.0,
            "seeds": len(ours),
            **_numbers(mean_over_exits(ours, theirs, metric, RESAMPLES), "difference", "low", "high"),
        }


def _shared(results: Results, *labels: str) -> Results:
    """The results of some entries, of the seeds that all of them have; nothing where there is no such seed."""
    seeds = set.intersection(*({result.setting.seed for result in results.get(label, [])} for label in labels))
    return {label: [each for each in results[label] if each.setting.seed in seeds] for label in labels if seeds}


def provenance(results: Results) -> Rows:
    """What every run was made with."""
    for run in with_parents(run for result in _each(results) for run in result.runs):
        made, changed = json.loads((run.directory / "environment.json").read_text()), run.options.changed()
        yield {
            "seed": run.setting.seed,
            "run": run.method.name,
            "options": json.dumps(changed) if changed else "",
            "key": run_key(run.method, run.setting, run.options)[:KEY_LETTERS],
            "data": run.config["data"][:10],
            "train_size": run.setting.train_size,
            "epochs": run.setting.epochs,
            "learning_rate": run.setting.learning_rate,
            "seconds": run.history.seconds.sum(),
            "torch": made["packages"]["torch"],
            # The tables have a commit of their own.
            **{f"run_{name}": made[name] for name in ("commit", "device", "precision", "threads", "time")},
        }


READERS: dict[str, Callable[[Results], Rows]] = {
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
"""Table -> what reads it from the results of one task; the search has other settings, and times are measured apart."""


def search(profile: str, setting: Setting) -> Rows:
    """The area under each method's curve on DEV at several learning rates, where several have been run."""
    for entry in entries_for(setting.task, setting.backbone):
        if entry.kind != METHOD and entry.label != SHALLOW:
            continue
        tried = {rate: result_of(entry, profile, at_rate(setting, rate)) for rate in RATES}
        if all(tried.values()):
            for rate, result in tried.items():
                dev = result.dev
                yield _about(result) | {
                    "task": setting.task,
                    "learning_rate": result.setting.learning_rate,
                    "dev_area": tradeoff.area(tradeoff.sweep(dev, entry.rule, result.metric), axis="layers"),
                    "dev_samples": dev.samples,
                    "in_use": rate == 1,
                }


def measure(profile: str, setting: Setting) -> pd.DataFrame:
    """Wall-clock of every entry but random exits and the oracle against the plain model, on the threshold (or model)
    that dev says gives 2x by layers.

    Columns as in `COLUMNS["times"]`: layer and FLOPs speed-up are those of the very sentences that were timed. Both
    take turns, so that whatever else the machine does hits both; nothing else should run.
    """
    plain_run = find(finetuned.METHOD, setting)
    if plain_run is None:
        raise InputError(f"the plain model of {setting.task}, seed {setting.seed}, is not trained; time needs it")
    plain, rows, machine = Runtime(plain_run.model(), fixed()), [], environment()
    for entry in entries_for(setting.task, setting.backbone):
        result = result_of(entry, profile, setting)
        if result is None or entry.kind == HEADROOM or entry.label in (PLAIN, RANDOM):
            continue
        run = min(result.runs, key=lambda run: abs(_layer_speedup(run) - TIMED_SPEEDUP))
        rule, threshold = entry.rule, NEVER
        if len(result.runs) == 1:
            threshold = tradeoff.threshold_for_speedup(run.dev, rule, TIMED_SPEEDUP, axis="layers")
        runtime = Runtime(run.model(), rule, threshold)
        for batch_size, count in TIMED.items():
            places = _spread(run.test.samples, count)
            point = tradeoff.at_threshold(run.test.take(torch.tensor(places)), rule, run.metric, threshold)
            tracks = {
                name: timed.calls(of_run.samples("test").take(places), batch_size)
                for name, timed, of_run in (("plain", plain, plain_run), ("early", runtime, run))
            }
            ratios = ratio(race(tracks, ROUNDS, best_device()), "plain", "early")
            rows.append(
                _about(result)
                | point
                | {
                    "task": setting.task,
                    "batch": batch_size,
                    "wall_speedup": np.median(ratios),
                    "wall_low": ratios.min(),
                    "wall_high": ratios.max(),
                    "device": machine["device"],
                    "threads": machine["threads"],
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS["times"]))


def _spread(total: int, count: int) -> list[int]:
    return list(range(0, total, max(1, total // count)))[:count]


def _layer_speedup(run: Run) -> float:
    return run.dev.reference_layers / float(run.dev.cost["layers"][-1].mean())


def _numbers(interval: Interval, *names: str) -> dict[str, float]:
    """Estimate, low and high end under three names."""
    return dict(zip(names, (interval.estimate, interval.low, interval.high), strict=True))


def _about(result: Result) -> dict[str, Any]:
    return {"seed": result.setting.seed, "method": result.entry.label, "kind": result.entry.kind}


def _each(results: Results) -> Iterator[Result]:
    return (result for of_entry in results.values() for result in of_entry)


def write(frames: dict[str, pd.DataFrame], folder: Path) -> None:
    """Each table as `folder/study-NAME.csv`, whole or not at all."""
    for name, frame in frames.items():
        with atomic_write(folder / f"study-{name}.csv") as partial:
            frame.to_csv(partial, index=False, float_format="%.5g")
