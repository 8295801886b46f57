"""What decides whether early exiting is worth it on one's own data: the score that is kept, and the time saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from eeutils.data.specs import TaskSpec, spec_of
from eeutils.data.tasks import Task, task_of
from eeutils.deploy.weights import save_pretrained, thresholds
from eeutils.exiting.comparisons import over_blind
from eeutils.exiting.intervals import Interval, bootstrap, score_interval
from eeutils.exiting.rules import NEVER, fixed
from eeutils.exiting.tradeoff import Metric, at_threshold, decide
from eeutils.models.backbone import load_tokenizer
from eeutils.models.runtime import Runtime
from eeutils.papers import finetuned
from eeutils.papers.controls.clocks import measured
from eeutils.training.runs import Run, load_or_train
from eeutils.training.settings import Setting
from eeutils.trial.recommended import METHOD, rule_for

PLAIN = "plain model"

STEPS = 188
"""So many steps a training takes at least, those of the profile `quick`: a small table is gone over more often ..."""

EPOCHS = 30
"""... but not more often than that."""

TIMED = {1: 64, 32: 256}
"""Batch size -> how many test texts are timed."""


@dataclass(frozen=True)
class Trial:
    """A task of one's own, and the two models that were trained on it."""

    setting: Setting
    plain: Run
    early: Run

    @property
    def task(self) -> Task:
        """The data."""
        return task_of(self.setting.task, self.setting.train_size, self.setting.test_size)

    @property
    def spec(self) -> TaskSpec:
        """What the task is."""
        return spec_of(self.setting.task)

    @property
    def same_answer(self) -> float:
        """The score on test of giving everybody the same answer, the most frequent one of train."""
        labels = np.array(self.task.test["label"])
        answer = pd.Series(self.task.train["label"]).mode().iloc[0]
        return float(self.early.metric(np.full_like(labels, answer), labels))


def setting_of(profile: str, task: str, backbone: str, seed: int) -> Setting:
    """A profile's setting, with more epochs where the table is so small that a profile's would be a few steps.

    Raises:
        InputError: an unknown profile or backbone, or a task that cannot be read.
    """
    setting = Setting.from_profile(profile, task, backbone, seed)
    if profile == "smoke":
        return setting
    per_epoch = -(-len(task_of(task, setting.train_size, setting.test_size).train) // setting.batch_size)
    return replace(setting, epochs=max(setting.epochs, min(EPOCHS, -(-STEPS // per_epoch))))


def train(setting: Setting, tell: Callable[[str], None] = lambda _: None) -> Trial:
    """Both models, trained or loaded; `tell` is given a sentence before each."""
    runs = []
    for name, method in ((PLAIN, finetuned.METHOD), (f"exits on all layers ({METHOD.title})", METHOD)):
        tell(f"training the {name}, or loading it where it is there")
        runs.append(load_or_train(method, setting))
    return Trial(setting, *runs)


def table(trial: Trial) -> pd.DataFrame:
    """What decides, one row a speed-up asked for, the plain model first.

    Returns:
        Columns asked (in FLOPs), threshold (chosen on dev), flops_speedup (measured on test), score, kept (of the plain
        model's score) and over_blind (at exactly the asked speed-up, minus the best of all policies that look at no
        text), each with _low and _high; NaN where there is none.
    """
    metric, test, rule = trial.early.metric, trial.early.test, rule_for(trial.early.test.regression)
    labels, plain = test.labels.numpy(), trial.plain.test.predictions[-1].numpy()
    score = score_interval(metric, [plain], labels)
    rows = [{"asked": 1.0, "threshold": NEVER, "flops_speedup": 1.0} | _columns("score", score)]
    checkpoints = [(run.dev, run.test) for run in (trial.early, trial.plain)]
    for speedup, threshold in thresholds(trial.early.dev, rule).items():
        answers = decide(test, rule, threshold).predictions.numpy()
        point = at_threshold(test, rule, metric, threshold)
        rows.append(
            {"asked": speedup, "threshold": threshold, "flops_speedup": point["flops_speedup"]}
            | _columns("score", score_interval(metric, [answers], labels))
            | _columns("kept", _kept(metric, answers, plain, labels))
            | _columns("over_blind", over_blind((test, rule), [checkpoints], speedup, metric))
        )
    return pd.DataFrame(rows)


def times(trial: Trial, rounds: int = 3) -> pd.DataFrame:
    """Milliseconds a text of the plain model and at each speed-up, taking turns in one run: columns batch, asked, ms,
    and speedup with the slowest and the fastest round; 1x is the plain model."""
    samples, tokenizer = trial.early.samples("test"), load_tokenizer(trial.setting.backbone)
    rule, model = rule_for(trial.early.test.regression), trial.early.model()
    sides = {PLAIN: (Runtime(trial.plain.model(), fixed(), NEVER, tokenizer), samples)}
    chosen = thresholds(trial.early.dev, rule)
    for speedup, threshold in chosen.items():
        sides[f"{speedup:g}x"] = (Runtime(model, rule, threshold, tokenizer), samples)
    clock = measured(sides, PLAIN, TIMED, rounds).set_index(["batch", "model"])
    rows = []
    for batch in TIMED:
        rows.append({"batch": batch, "asked": 1.0, "ms": clock["plain model, ms a sample"][batch].iloc[0]})
        for speedup in chosen:
            one = clock.loc[(batch, f"{speedup:g}x")]
            speeds = one[["measured speed-up", "slowest round", "fastest round"]].tolist()
            named = dict(zip(("speedup", "slowest", "fastest"), speeds, strict=True))
            rows.append({"batch": batch, "asked": speedup, "ms": one["ms a sample"], **named})
    return pd.DataFrame(rows)


def _kept(metric: Metric, ours: np.ndarray, plain: np.ndarray, labels: np.ndarray) -> Interval | None:
    """Our score as a share of the plain model's, on the same draws of texts; None where that has learned nothing."""

    def share(_: int, rows: np.ndarray) -> float:
        whole = metric(plain[rows], labels[rows])
        return metric(ours[rows], labels[rows]) / whole if whole > 0 else math.nan

    found = bootstrap(share, len(labels))
    return found if math.isfinite(found.estimate) else None


def _columns(name: str, interval: Interval | None) -> dict[str, float]:
    numbers = (interval.estimate, interval.low, interval.high) if interval else (math.nan,) * 3
    return dict(zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True))


def save(trial: Trial, points: pd.DataFrame, clock: pd.DataFrame, folder: Path) -> None:
    """Keep both tables as csv, and the model for `deploy.from_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    points.to_csv(folder / "scores.csv", index=False, float_format="%.6g")
    clock.to_csv(folder / "times.csv", index=False, float_format="%.6g")
    save_pretrained(trial.early, folder / "model", rule_for(trial.early.test.regression))
