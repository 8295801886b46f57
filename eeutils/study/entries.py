"""What the study runs: the lines of the scoreboard, and the runs that each of them needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from eeutils.data.specs import spec_of
from eeutils.errors import unknown
from eeutils.exiting.evidence import Evidence, as_stages
from eeutils.exiting.rules import Rule, entropy, fixed, oracle, random
from eeutils.exiting.tradeoff import Metric
from eeutils.models.backbone import config_of
from eeutils.papers import badge, cascadebert, consistentee, de3bert, deebert, ensemble, finetuned, hashee, pabee
from eeutils.papers.budgets import Budget, budget_of
from eeutils.papers.comparisons import PLAIN
from eeutils.training.method import Method
from eeutils.training.runs import Run, find, load_or_train, metric_of
from eeutils.training.settings import Setting, learns_slowly

Wanted = list[tuple[Method, dict[str, Any]]]
"""The runs that an entry needs: methods with the options that differ from their defaults."""

METHOD, BASELINE, HEADROOM = "method", "baseline", "headroom"
"""Kinds of entries: as published; what a method must beat; what needs the labels."""


@dataclass(frozen=True)
class Entry:
    """One line of the scoreboard.

    Attributes:
        label: as in tables and figures.
        wanted: what the profile can afford -> the runs; several, of one stage each, are points of one curve.
        rule: when samples leave.
        kind: `METHOD`, `BASELINE` or `HEADROOM`.
        regression: whether it means anything when the answer is one number.
        trained_for: the one threshold that the training is meant for; None where any threshold is as good.
    """

    label: str
    wanted: Callable[[Budget], Wanted]
    rule: Rule
    kind: str = METHOD
    regression: bool = False
    trained_for: float | None = None


def _one(method: Method) -> Callable[[Budget], Wanted]:
    return lambda budget: [(method, {})]


def _cascade(budget: Budget) -> Wanted:
    return [(cascadebert.METHOD, budget.cascade)]


def _shallow_models(budget: Budget) -> Wanted:
    return [*((finetuned.METHOD, {"layers": layers}) for layers in budget.shallow_depths), (finetuned.METHOD, {})]


def _schedules(budget: Budget) -> Wanted:
    """A model for each window of layers; the plain model is the slow end."""
    schedules = ({"first": first, "last": last} for first, last in budget.windows)
    return [*((hashee.METHOD, options) for options in schedules), (finetuned.METHOD, {})]


def _as_published(method: Method, **more: Any) -> Entry:
    """A method with its own rule, the first that it names."""
    return Entry(method.title, more.pop("wanted", _one(method)), next(iter(method.rules.values())), **more)


FIXED, RANDOM, SHALLOW = "fixed exits", "random exits", "k-layer models"
ENTRIES = (
    _as_published(deebert.METHOD),
    _as_published(pabee.METHOD, regression=True),
    _as_published(badge.METHOD),
    _as_published(cascadebert.METHOD, wanted=_cascade),
    _as_published(de3bert.METHOD),
    _as_published(consistentee.METHOD, trained_for=consistentee.OPERATING_POINT),
    Entry(hashee.METHOD.title, _schedules, fixed(), regression=True),
    _as_published(ensemble.METHOD),
    Entry("PABEE's exits, entropy", _one(pabee.METHOD), entropy(), BASELINE),
    Entry(FIXED, _one(pabee.METHOD), fixed(), BASELINE, regression=True),
    Entry(RANDOM, _one(pabee.METHOD), random(), BASELINE, regression=True),
    Entry(SHALLOW, _shallow_models, fixed(), BASELINE, regression=True),
    Entry(PLAIN, _one(finetuned.METHOD), fixed(), BASELINE, regression=True),
    Entry("oracle", _one(pabee.METHOD), oracle(), HEADROOM),
)
"""Every line of the scoreboard. Fixed, random and oracle exits are those of PABEE's checkpoint."""


def entries_for(task: str, backbone: str) -> list[Entry]:
    """The entries that have a meaning there: rules on numbers for a regression, a cascade where a smaller encoder is
    known."""
    regression = spec_of(task).kind == "regression"
    cascades = backbone in cascadebert.SMALLER
    return [
        entry
        for entry in ENTRIES
        if (entry.regression or not regression) and (cascades or entry.label != cascadebert.METHOD.title)
    ]


def method_names(task: str, backbone: str) -> list[str]:
    """The methods that are trained there, one job each."""
    # They are the same for every profile and depth, and to know the depth would take the encoder's files.
    wanted = [run for entry in entries_for(task, backbone) for run in entry.wanted(budget_of("quick", 12))]
    return list(dict.fromkeys(method.name for method, _ in wanted))


RATES = (0.5, 1.0, 2.0)
"""The search trains with these multiples of the setting's learning rate, and dev compares them."""


def searched_methods(tasks: Sequence[str], backbone: str) -> dict[str, list[str]]:
    """What the search trains at every rate, with one seed: all methods on the first task, and the k-layer models alone
    on the tasks that have a rate of their own."""
    first = {tasks[0]: method_names(tasks[0], backbone)}
    own = [task for task in tasks[1:] if learns_slowly(task, backbone)]
    return first | {task: [finetuned.METHOD.name] for task in own}


def at_rate(setting: Setting, multiple: float) -> Setting:
    """The setting with a multiple of its learning rate; a phase with a rate of its own keeps it."""
    return replace(setting, learning_rate=multiple * setting.learning_rate)


def train(profile: str, setting: Setting, name: str) -> None:
    """Train what the study needs of one method and is not there yet.

    Raises:
        InputError: a method that the study does not have for this task and backbone.
    """
    task, backbone = setting.task, setting.backbone
    if name not in (names := method_names(task, backbone)):
        raise unknown(f"method of the study on {task}", name, names)
    for entry in entries_for(task, backbone):
        for method, options in entry.wanted(_budget(profile, backbone)):
            if method.name == name:
                load_or_train(method, setting, **options)


@dataclass(frozen=True)
class Result:
    """An entry's trained runs of one task and seed, and what they say together: several runs are its stages."""

    entry: Entry
    setting: Setting
    runs: tuple[Run, ...]

    @property
    def dev(self) -> Evidence:
        """Evidence on dev."""
        return self.runs[0].dev if len(self.runs) == 1 else as_stages([run.dev for run in self.runs])

    @property
    def test(self) -> Evidence:
        """Evidence on test."""
        return self.runs[0].test if len(self.runs) == 1 else as_stages([run.test for run in self.runs])

    @property
    def metric(self) -> Metric:
        """The headline metric, in its fastest form: see `metric_for_resamples`."""
        return metric_for_resamples(self.setting.task)


def result_of(entry: Entry, profile: str, setting: Setting) -> Result | None:
    """An entry's runs, or None where one of them has not been trained."""
    wanted = entry.wanted(_budget(profile, setting.backbone))
    runs = [find(method, setting, **options) for method, options in wanted]
    return Result(entry, setting, tuple(runs)) if all(runs) else None


def with_parents(runs: Iterable[Run]) -> list[Run]:
    """Runs and those that they start from, each once."""
    unique = {}
    for run in runs:
        unique[run.directory] = run
        parent = run.method.starts_from and find(run.method.starts_from, run.setting)
        unique |= {other.directory: other for other in with_parents([parent])} if parent else {}
    return list(unique.values())


def metric_for_resamples(task: str) -> Metric:
    """The headline metric, for callers that ask for it a million times.

    Of two classes Matthews' correlation is Pearson's, which is much faster than scikit-learn's.
    """
    spec = spec_of(task)
    return _phi if spec.metrics[0] == "matthews" and len(spec.class_names) == 2 else metric_of(task)


def _phi(predictions: np.ndarray, labels: np.ndarray) -> float:
    if (predictions == predictions[0]).all() or (labels == labels[0]).all():
        return 0.0  # undefined; as in `metrics`
    return float(np.corrcoef(predictions, labels)[0, 1])


@lru_cache
def _budget(profile: str, backbone: str) -> Budget:
    return budget_of(profile, config_of(backbone).num_hidden_layers)
