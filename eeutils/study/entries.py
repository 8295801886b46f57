"""What the study runs: the lines of the scoreboard, and the runs that each of them needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from eeutils.backbone import load_backbone
from eeutils.errors import unknown
from eeutils.evidence import Evidence
from eeutils.method import Method
from eeutils.papers import badge, cascadebert, consistentee, de3bert, deebert, ensemble, finetuned, hashee, pabee
from eeutils.rules import Rule, entropy, fixed, oracle, random
from eeutils.runs import Run, load_or_train, metric_of, run_key, runs_dir
from eeutils.settings import Setting, learns_slowly
from eeutils.specs import spec_of
from eeutils.tradeoff import Metric

Wanted = list[tuple[Method, dict[str, Any]]]
"""The runs that an entry needs: methods with the options that differ from their defaults."""


METHOD, BASELINE, HEADROOM = "method", "baseline", "headroom"
"""Kinds of entries: as published; what a method must beat; what needs the labels."""


@dataclass(frozen=True)
class Entry:
    """One line of the scoreboard.

    Attributes:
        label: as in tables and figures.
        wanted: (profile, layers of the encoder) -> the runs; several, of one stage each, are points of one curve.
        rule: when samples leave.
        kind: `METHOD`, `BASELINE` or `HEADROOM`.
        regression: whether it means anything when the answer is one number.
        trained_for: the one threshold that the training is meant for; None where any threshold is as good.
    """

    label: str
    wanted: Callable[[str, int], Wanted]
    rule: Rule
    kind: str = METHOD
    regression: bool = False
    trained_for: float | None = None


def _one(method: Method) -> Callable[[str, int], Wanted]:
    return lambda profile, depth: [(method, {})]


def _shallow_models(profile: str, depth: int) -> Wanted:
    depths = [k for k in finetuned.baseline_depths(profile, depth) if k > 0]
    return [*((finetuned.METHOD, {"layers": layers}) for layers in depths), (finetuned.METHOD, {})]


def _schedules(profile: str, depth: int) -> Wanted:
    """A model for each window of layers; the plain model is the slow end."""
    windows = [(1, 1), (1, depth // 2), (1, depth), (1 + depth // 2, depth)]
    few = {"smoke": windows[2:3], "quick": windows[:3]}.get(profile, windows)
    chosen = [{"first": first, "last": None if last == depth else last} for first, last in few]
    return [*((hashee.METHOD, options) for options in chosen), (finetuned.METHOD, {})]


def _cascade(profile: str, depth: int) -> Wanted:
    # Five folds over five seeds are 25 trainings before the first one that counts.
    fewer = {"smoke": {"folds": 2, "repeats": 1}, "quick": {"folds": 2, "repeats": 2}}
    return [(cascadebert.METHOD, fewer.get(profile, {}))]


def _as_published(method: Method, **more: Any) -> Entry:
    """A method with its own rule, the first that it names."""
    return Entry(method.title, more.pop("wanted", _one(method)), next(iter(method.rules.values())), **more)


PLAIN, FIXED, RANDOM, SHALLOW = "plain model", "fixed exits", "random exits", "k-layer models"
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
    # The names are the same for every profile and depth, and the depth would take the encoder's weights to know.
    entries = entries_for(task, backbone)
    return list(dict.fromkeys(method.name for entry in entries for method, _ in entry.wanted("quick", 12)))


def methods_for(profile: str, task: str, backbone: str) -> dict[str, Wanted]:
    """Name of each method that is trained there -> its runs."""
    jobs: dict[str, Wanted] = {}
    for entry in entries_for(task, backbone):
        for method, options in entry.wanted(profile, _depth(backbone)):
            runs = jobs.setdefault(method.name, [])
            if (method, options) not in runs:
                runs.append((method, options))
    return jobs


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


def train(profile: str, setting: Setting, method: str) -> list[Run]:
    """Train what the study needs of one method, or load it.

    Raises:
        InputError: a method that the study does not have for this task and backbone.
    """
    jobs = methods_for(profile, setting.task, setting.backbone)
    if method not in jobs:
        raise unknown(f"method of the study on {setting.task}", method, jobs)
    return [load_or_train(wanted, setting, **options) for wanted, options in jobs[method]]


@dataclass(frozen=True)
class Result:
    """An entry's trained runs of one task and seed, and what they say together."""

    entry: Entry
    setting: Setting
    runs: tuple[Run, ...]

    @property
    def dev(self) -> Evidence:
        """Evidence on dev; several runs are its stages."""
        return self._joined([run.dev for run in self.runs])

    @property
    def test(self) -> Evidence:
        """Evidence on test; several runs are its stages."""
        return self._joined([run.test for run in self.runs])

    @staticmethod
    def _joined(parts: list[Evidence]) -> Evidence:
        return parts[0] if len(parts) == 1 else hashee.as_stages(parts)


def result_of(entry: Entry, profile: str, setting: Setting) -> Result | None:
    """An entry's runs, or None where one of them has not been trained."""
    found = [trained(method, setting, options) for method, options in entry.wanted(profile, _depth(setting.backbone))]
    return Result(entry, setting, tuple(run for run in found if run)) if all(found) else None


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


def with_parents(runs: Iterable[Run]) -> list[Run]:
    """Runs and those that they start from, each once."""
    unique = {}
    for run in runs:
        unique[run.directory] = run
        parent = run.method.starts_from and trained(run.method.starts_from, run.setting, {})
        unique |= {other.directory: other for other in with_parents([parent])} if parent else {}
    return list(unique.values())


def trained(method: Method, setting: Setting, options: dict[str, Any]) -> Run | None:
    """A run that is there already, or None: nothing is trained."""
    options = method.with_options(**options)
    key = run_key(method, setting, options)
    directory = next(runs_dir().glob(f"{method.name}*-{key[:10]}"), None)
    return None if directory is None else Run(directory, method, setting, options)


@lru_cache
def _depth(backbone: str) -> int:
    return load_backbone(backbone).depth
