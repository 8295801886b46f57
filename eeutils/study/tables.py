"""From the runs of the study to its tables: small, tidy, one row a number or two. Nothing is trained to fill them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd
import torch

from eeutils.errors import InputError
from eeutils.exiting import tradeoff
from eeutils.exiting.comparisons import evaluate, mean_over_exits
from eeutils.exiting.intervals import (
    Interval,
    area_difference,
    bootstrap,
    difference_interval,
    equal_cost_difference,
)
from eeutils.exiting.rules import NEVER, Rule, fixed
from eeutils.exiting.tradeoff import Checkpoint, Metric, Reading
from eeutils.files import atomic_write
from eeutils.models.runtime import Runtime
from eeutils.models.timing import race, ratio
from eeutils.papers import (
    badge,
    cascadebert,
    consistentee,
    de3bert,
    ensemble,
    finetuned,
    l2w,
    pabee,
    smartbert,
    treatments,
)
from eeutils.papers.comparisons import ABOUT_TREATMENTS, COMPARISONS, NO_TERM, PLAIN, SUM
from eeutils.papers.treatments import Treatment
from eeutils.study.entries import (
    CONTROL,
    HEADROOM,
    RANDOM,
    SEARCHED,
    Entry,
    Result,
    Trial,
    budget_for,
    bypass_label,
    entries_for,
    hash_label,
    result_of,
    search_of,
    with_parents,
)
from eeutils.study.page import AXES, COLUMNS, SPEEDUPS, read_table
from eeutils.training.fingerprint import commit, environment, run_key
from eeutils.training.loop import best_device
from eeutils.training.probes import learned_exits
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
            results = _compared_alike(results)
            of_task = {name: list(reader(results)) for name, reader in READERS.items()}
            of_task["claims"] = list(comparisons(results, of_task["gate"], of_task["treatments"]))
            for name, found in of_task.items():
                rows[name] += [{"task": task, **row} for row in found]
    rows["search"] = list(search(Setting.from_profile(SEARCHED, tasks[0], backbone, seeds[0])))
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


def _compared_alike(results: Results) -> Results:
    """Without methods and baselines that have less than half of the seeds of others: the luck of one seed must not be
    the mark for the mean of five. Controls are nobody's mark."""
    most = max(map(len, results.values()))
    return {
        label: of_entry
        for label, of_entry in results.items()
        if of_entry[0].entry.kind == CONTROL or 2 * len(of_entry) >= most
    }


def curves(results: Results) -> Rows:
    """The trade-off curves, thinned; of the oracle the one point that it has."""
    for result in _each(results):
        thresholds = [1] if result.entry.kind == HEADROOM else None
        swept = tradeoff.sweep(result.test, result.rule, result.metric, thresholds, points=POINTS)
        yield from swept.assign(**_about(result)).to_dict("records")


def points(results: Results) -> Rows:
    """Where each model stands that is trained for one threshold."""
    for result in _each(results):
        threshold = result.entry.trained_for
        for run in result.runs if threshold is not None else ():
            if run.test.stages > 1:  # not the plain model
                alone = tradeoff.settled(run.test, run.method.own_rule, threshold)
                yield (
                    _about(result)
                    | tradeoff.fixed_exits(alone, result.metric).iloc[0].to_dict()
                    | {"threshold": threshold}
                )


def scores(results: Results) -> Rows:
    """Scores at equal speed-up: the mean over seeds with its interval over seeds and samples, the share of the plain
    model's score that is kept, and how far a line is above the best blind policy of all checkpoints, above that of its
    own, and below the best line there. Controls are lines, but never the best one, and nobody's blind policy."""
    for axis in AXES:
        for speedup in SPEEDUPS:
            readings = {
                label: by_seed
                for label, of_entry in results.items()
                if of_entry[0].entry.kind != HEADROOM and (by_seed := _readings(of_entry, speedup, axis))
            }
            for row in _compared(results, readings, speedup, axis):
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
    if not all(tradeoff.can_reach(result.test, result.rule, speedup, axis) for result in results):
        return {}
    readings = {result.setting.seed: tradeoff.at_speedup(result.test, result.rule, speedup, axis) for result in results}
    return {seed: Remembered(reading.share, reading.predictions) for seed, reading in readings.items()}


def _blind(results: list[Result], speedup: float, axis: str) -> dict[int, Reading]:
    """Seed -> the best blind policy of some entries' checkpoints; empty where a seed has none that fast."""
    checkpoints: dict[int, list[Checkpoint]] = {}
    for result in results:
        checkpoints.setdefault(result.setting.seed, []).append((result.dev, result.test))
    metric, axis_of = results[0].metric, {}
    for seed, of_seed in checkpoints.items():
        reading = tradeoff.blind_policy(of_seed, speedup, metric, axis)
        if reading is None:
            return {}
        axis_of[seed] = Remembered(reading.share, reading.predictions)
    return axis_of


def _compared(results: Results, readings: dict[str, dict[int, Reading]], speedup: float, axis: str) -> Rows:
    if not readings:
        return
    some = next(_each(results))
    metric, labels = some.metric, some.test.labels.numpy()
    means = {label: fmean(one.score(metric, labels) for one in by_seed.values()) for label, by_seed in readings.items()}
    ranked = [label for label in means if results[label][0].entry.kind != CONTROL]
    best = max(ranked, key=means.get, default="")
    full = [metric(plain.test.predictions[-1].numpy(), labels) for plain in results.get(PLAIN, [])]
    whole = fmean(full) if full else math.nan
    # The best that one can do with the same answer for everybody: the most frequent class; all numbers do alike.
    answers = labels[:1] if some.test.regression else np.unique(labels)
    same_answer = max(float(metric(np.full_like(labels, answer), labels)) for answer in answers)
    everybody = [each for each in _each(results) if each.entry.blind and each.entry.kind not in (CONTROL, HEADROOM)]
    blind = _blind(everybody, speedup, axis)
    for label, by_seed in readings.items():
        one_each = list(by_seed.values())

        def score(seed: int, rows: np.ndarray, one_each: list[Reading] = one_each) -> float:
            return one_each[seed].score(metric, labels, rows)

        interval = bootstrap(score, len(labels), len(one_each), resamples=RESAMPLES)
        row = {"method": label, "kind": results[label][0].entry.kind, "seeds": len(one_each), "blind": same_answer}
        row |= _numbers(interval, "score", "low", "high") | {"kept": means[label] / whole if whole > 0 else math.nan}
        rivals = {"over_blind": blind, "over_best": readings[best] if best and best != label else {}}
        if len(results[label][0].runs) == 1:
            rivals["over_own"] = _blind(results[label], speedup, axis)
        for name, theirs in rivals.items():
            if shared := sorted(by_seed.keys() & theirs.keys()):
                sides = ([side[seed] for seed in shared] for side in (by_seed, theirs))
                gap = equal_cost_difference(metric, *sides, labels, resamples=RESAMPLES)
                row |= _numbers(gap, name, f"{name}_low", f"{name}_high")
        yield row


def gate(results: Results) -> Rows:
    """Every exit against its linear probe, on dev, over the seeds of a checkpoint: whether it has learned."""
    seen = set()
    for label, of_entry in results.items():
        first = of_entry[0]
        if len(first.runs) > 1 or not first.runs[0].has_probes or first.runs[0].directory in seen:
            continue
        seen.add(first.runs[0].directory)
        runs = [result.runs[0] for result in of_entry]
        sides = [run.dev for run in runs], [run.probe_dev for run in runs]
        # With as many draws as a notebook's gate takes: both say the same of the same checkpoint.
        rows = learned_exits(*sides, first.metric)
        yield from rows.assign(method=label, seeds=len(runs)).to_dict("records")


def took(results: Results) -> Rows:
    """Whether each treatment took, seed by seed."""
    pairs: list[tuple[str, str, Callable[[Run, Run | None], Treatment]]] = [
        (badge.METHOD.title, "", lambda run, _: treatments.bypass(run)),
        (cascadebert.METHOD.title, NO_TERM, treatments.difficulty),
        (de3bert.METHOD.title, "", lambda run, _: treatments.prototypes(run)),
        (ensemble.METHOD.title, SUM, treatments.diversity),
        (smartbert.METHOD.title, "", lambda run, _: treatments.gates(run)),
        (l2w.METHOD.title, "", lambda run, _: treatments.sample_weights(run)),
    ]
    for label, control, check in pairs:
        shared = _shared(results, *filter(None, (label, control)))
        for number, result in enumerate(shared.get(label, [])):
            treatment = check(result.runs[0], shared[control][number].runs[0] if control else None)
            yield {"seed": result.setting.seed, "method": label, "found": treatment.found, "took": treatment.took}
    for result in results.get(consistentee.METHOD.title, []):
        check = treatments.collapse_of_most([run for run in result.runs if run.method.name == consistentee.METHOD.name])
        yield {"seed": result.setting.seed, "method": check.name, "found": check.found, "took": check.took}


def unlearned(gate: Rows) -> dict[str, str]:
    """Label -> that its exits have not learned, so that no verdict may count it; from the rows of `gate`."""
    reasons = {}
    for row in gate:
        if not row["learned"]:
            reasons.setdefault(row["method"], f"{row['method']}: the exit at layer {row['layer']} has not learned")
    return reasons


def untreated(checks: Rows) -> dict[str, str]:
    """Label -> that its treatment did not take on most seeds, so that no claim about that treatment may count it; from
    the rows of `took`."""
    frame = pd.DataFrame(list(checks), columns=["seed", "method", "found", "took"])
    return {
        label: f"{label}: the treatment did not take ({rows.found.iloc[0]})"
        for label, rows in frame.groupby("method", sort=False)
        if rows.took.mean() <= 0.5
    }


def costs(results: Results) -> Rows:
    """Parameters of the model in use (the largest, where there is a choice), and what trainings one operating point
    (that nearest 2x in FLOPs on dev) and the whole curve take; those of CascadeBERT's cross-fitted judges are not
    counted. Seconds are medians: something else may have kept one seed up."""
    plain = {result.setting.seed: _seconds(result.runs) for result in results.get(PLAIN, [])}
    for label, of_entry in results.items():
        entry = of_entry[0].entry
        if entry.kind == HEADROOM:
            continue
        models = [run.model() for run in of_entry[0].runs]
        nearest = min(of_entry[0].runs, key=lambda run: abs(_own_speedup(entry, run) - TIMED_SPEEDUP))
        place = of_entry[0].runs.index(nearest)
        seconds = {result.setting.seed: _seconds(result.runs) for result in of_entry}
        of_point = {result.setting.seed: _seconds([result.runs[place]]) for result in of_entry}
        ratios, point_ratios = (
            [own / plain[seed] for seed, own in each.items() if seed in plain] for each in (seconds, of_point)
        )
        yield {
            "method": label,
            "kind": entry.kind,
            "parameters": max(sum(weight.numel() for weight in model.parameters()) for model in models),
            "trainings": len(with_parents(of_entry[0].runs)),
            "training_seconds": median(seconds.values()),
            "times_plain": median(ratios) if ratios else math.nan,
            "point_times_plain": median(point_ratios) if point_ratios else math.nan,
            "seeds": len(of_entry),
        }


def _seconds(runs: Iterable[Run]) -> float:
    return float(sum(run.history.seconds.sum() for run in with_parents(runs)))


def comparisons(results: Results, gate: Rows, checks: Rows) -> Rows:
    """What the claims compare, wherever it needs no other runs than these: the difference with its interval over
    samples and over the seeds that both sides have. No row where one of those seeds does not reach a speed-up.

    `gate` and `checks` are the rows of `gate` and `took`: they say what no verdict may count.
    """
    metric, unfit, not_taken = next(_each(results)).metric, unlearned(gate), untreated(checks)

    def reasons(claim: str, labels: Iterable[str]) -> str:
        of_claim = (not_taken if claim in ABOUT_TREATMENTS else {}) | unfit
        return "; ".join(dict.fromkeys(of_claim[label] for label in labels if label in of_claim))

    for comparison in COMPARISONS:
        shared = _shared(results, comparison.ours.name, comparison.theirs.name)
        curves = {label: [(result.test, result.rule) for result in side] for label, side in shared.items()}
        for each in evaluate([comparison], curves, metric, RESAMPLES):
            yield {
                "claim": comparison.claim,
                "ours": str(comparison.ours),
                "theirs": comparison.rival,
                "axis": comparison.axis,
                "speedup": each.speedup,
                **_judged(each.interval),
                "unfit": reasons(comparison.claim, shared),
            }
    for claim, ours, theirs, stages, what in EXITS_COMPARED:
        shared = _shared(results, ours, theirs)
        if shared:
            sides = ([result.test for result in shared[label]] for label in (ours, theirs))
            yield {
                "claim": claim,
                "ours": f"{ours}{what}",
                "theirs": f"{theirs}{what}",
                "axis": "exits",
                "speedup": 1.0,
                **_judged(mean_over_exits(*sides, metric, RESAMPLES, stages)),
                "unfit": reasons(claim, shared),
            }


_EVERY, _LAST = slice(None), slice(-1, None)
EXITS_COMPARED = (
    ("B1a", badge.METHOD.title, pabee.METHOD.title, _EVERY, ", mean over exits"),
    ("B1b", badge.METHOD.title, pabee.METHOD.title, _LAST, ", last exit"),
    ("B2", badge.METHOD.title, bypass_label("wide-head"), _EVERY, ", mean over exits"),
    ("H1a", hash_label("random-type"), hash_label("random-occurrence"), _EVERY, ""),
    *(
        ("H1b", hash_label("random-type"), hash_label(function), _EVERY, "")
        for function in ("frequency", "mutual-information", "cluster")
    ),
)
"""Claims that compare answers rather than rules: id, both sides, which exits, and what that is called."""


def _judged(interval: Interval) -> dict[str, float]:
    return {**_numbers(interval, "difference", "low", "high"), "seeds": interval.seeds, "units": interval.units}


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
            "steps": run.history.steps.sum(),
            "learning_rate": run.setting.learning_rate,
            "seconds": run.history.seconds.sum(),
            "torch": made["packages"]["torch"],
            # The tables have a commit of their own.
            **{f"run_{name}": made[name] for name in ("commit", "device", "precision", "threads", "time")},
        }


READERS: dict[str, Callable[[Results], Rows]] = {
    "curves": curves,
    "points": points,
    "scores": scores,
    "gate": gate,
    "treatments": took,
    "costs": costs,
    "runs": provenance,
}
"""Table -> what reads it from the results of one task alone; claims need two of these, the search has another profile,
and times are measured apart."""


def search(setting: Setting) -> Rows:
    """The area under each method's curve on DEV, from the highest FLOPs speed-up that all of its trials reach to 1x,
    for every trial of the search that was run, and how far it is above the default's; of one model that has no curve (a
    window of HashEE, the plain model) its score."""
    rules = {entry.label: entry.rule for entry in entries_for(setting.task, setting.backbone)}
    budget = budget_for(SEARCHED, setting.backbone)
    for label, trials in search_of(budget).items():
        tried = [(trial, run) for trial in trials if (run := trial.wanted.find(setting))]
        standard = [run for trial, run in tried if _is_default(trial, run)]
        # Defaults are runs of the study, too: alone they are no search.
        if not standard or len(standard) == len(tried):
            continue
        rule = rules[label] if standard[0].dev.stages > 1 else fixed()
        curves = [tradeoff.sweep(run.dev, rule, run.metric) for _, run in tried]
        reached = max(1 / curve.flops_speedup.max() for curve in curves)
        has_area = reached < 1 and standard[0].dev.stages > 1
        for (trial, run), curve in zip(tried, curves, strict=True):
            if has_area:
                gap = area_difference(run.metric, (run.dev, rule), (standard[0].dev, rule), reached)
            else:
                sides = ([each.dev.predictions[-1].numpy()] for each in (run, standard[0]))
                gap = difference_interval(run.metric, *sides, run.dev.labels.numpy(), resamples=200)
            yield {
                "task": setting.task,
                "seed": setting.seed,
                "method": label,
                "what": trial.what,
                "value": trial.value,
                "dev_area": tradeoff.area(curve, low=reached) if has_area else curve.score.iloc[-1],
                **_numbers(gap, "over_default", "over_default_low", "over_default_high"),
                "dev_samples": run.dev.samples,
                # The one option that the study takes from its budget.
                "in_use": trial.value == budget.diversities[0]
                if trial.what == "diversity"
                else _is_default(trial, run),
            }


def _is_default(trial: Trial, run: Run) -> bool:
    default = run.method.options.to_dict()
    return all(by == 1 for by in trial.wanted.times.values()) and default.get(trial.what, trial.value) == trial.value


def measure(profile: str, setting: Setting) -> pd.DataFrame:
    """Wall-clock of every method and baseline but random exits against the plain model, on the threshold (or model)
    that dev says gives 2x in FLOPs.

    Columns as in `COLUMNS["times"]`: layer and FLOPs speed-up are those of the very sentences that were timed. Both
    take turns, so that whatever else the machine does hits both; nothing else should run.
    """
    plain_run = find(finetuned.METHOD, setting)
    if plain_run is None:
        raise InputError(f"the plain model of {setting.task}, seed {setting.seed}, is not trained; time needs it")
    plain, rows, machine = Runtime(plain_run.model(), fixed()), [], environment()
    for entry in entries_for(setting.task, setting.backbone):
        result = result_of(entry, profile, setting)
        if result is None or entry.kind in (CONTROL, HEADROOM) or entry.label in (PLAIN, RANDOM):
            continue
        run = min(result.runs, key=lambda run: abs(_own_speedup(entry, run) - TIMED_SPEEDUP))
        rule, threshold = _own_rule(entry, run), NEVER
        if entry.trained_for is not None and run.dev.stages > 1:
            threshold = entry.trained_for
        elif len(result.runs) == 1:
            threshold = tradeoff.threshold_for_speedup(run.dev, rule, TIMED_SPEEDUP)
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


def _own_rule(entry: Entry, run: Run) -> Rule:
    """The rule of one run: that of its paper, where it is one point of a curve that no rule runs through."""
    if entry.tuned:
        return entry.tuned(run)
    return run.method.own_rule if entry.trained_for is not None else entry.rule


def _own_speedup(entry: Entry, run: Run) -> float:
    """The FLOPs speed-up of a run that is one point of a curve, on dev."""
    evidence = run.dev
    if entry.trained_for is not None and evidence.stages > 1:
        evidence = tradeoff.settled(evidence, _own_rule(entry, run), entry.trained_for)
    return float(evidence.reference["flops"].mean() / evidence.cost["flops"][-1].mean())


def _numbers(interval: Interval, *names: str) -> dict[str, float]:
    """Estimate, low and high end under three names."""
    return dict(zip(names, (interval.estimate, interval.low, interval.high), strict=True))


def _about(result: Result) -> dict[str, Any]:
    return {"seed": result.setting.seed, "method": result.entry.label, "kind": result.entry.kind}


def _each(results: Results) -> Iterator[Result]:
    return (result for of_entry in results.values() for result in of_entry)


def write(frames: dict[str, pd.DataFrame], folder: Path) -> None:
    """Each table as `folder/study-NAME.csv`, whole or not at all.

    Rows of other tasks and encoders that stand there already stay: a study grows task by task. Of the same task and
    encoder they are replaced; clocks and the search, which are made apart, only by new ones.
    """
    made = _grounds(frames["runs"])
    for name, frame in frames.items():
        replaced = _grounds(frame) if name in ("times", "search") else made
        old = read_table(name, folder)
        kept = old[[ground not in replaced for ground in zip(old.backbone, old.task, strict=True)]]
        whole = pd.concat([part for part in (kept, frame) if len(part)] or [frame])
        with atomic_write(folder / f"study-{name}.csv") as partial:
            whole.to_csv(partial, index=False, float_format="%.5g")


def _grounds(frame: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(frame.backbone, frame.task, strict=True))
