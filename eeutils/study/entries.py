"""What the study runs: the lines of the scoreboard, the runs that each of them needs, and the search before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from eeutils.data.specs import spec_of
from eeutils.errors import unknown
from eeutils.exiting.evidence import Evidence, as_stages
from eeutils.exiting.learned import learned_rule
from eeutils.exiting.rules import Rule, entropy, fixed, oracle, random
from eeutils.exiting.tradeoff import Metric, settled
from eeutils.models.backbone import config_of, width_of
from eeutils.models.schedule import FUNCTIONS
from eeutils.papers import (
    badge,
    berxit,
    cascadebert,
    consistentee,
    de3bert,
    deebert,
    ensemble,
    fastbert,
    finetuned,
    hashee,
    l2w,
    pabee,
    pceebert,
    smartbert,
)
from eeutils.papers.baselines import LINEAR
from eeutils.papers.budgets import Budget, budget_of
from eeutils.papers.comparisons import ALL_EXITS, CONSTANT, FIXED, NO_TERM, PLAIN, PROTOTYPES, SUM, UNREGULARISED
from eeutils.papers.controls import prototypes_afterwards, second_indicator
from eeutils.training.method import Method
from eeutils.training.runs import Run, find, load_or_train, metric_of
from eeutils.training.settings import BASE_WIDTH, Setting


@dataclass(frozen=True)
class Wanted:
    """One run that an entry needs: a method, its options where they differ from the defaults, and what the setting's
    numbers are multiplied by."""

    method: Method
    options: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    def setting(self, setting: Setting) -> Setting:
        """The setting of the run: of those that it starts from, too."""
        scaled = {name: type(getattr(setting, name))(by * getattr(setting, name)) for name, by in self.times.items()}
        return replace(setting, **scaled)

    def train(self, setting: Setting) -> Run:
        """The run, trained if it is not there yet."""
        return load_or_train(self.method, self.setting(setting), **self.options)

    def find(self, setting: Setting) -> Run | None:
        """The run if it is there."""
        return find(self.method, self.setting(setting), **self.options)


METHOD, BASELINE, CONTROL, HEADROOM = "method", "baseline", "control", "headroom"
"""Kinds of entries: as published; what a method must beat; what takes a method apart; what needs the labels."""


@dataclass(frozen=True)
class Entry:
    """One line of the scoreboard.

    Attributes:
        label: as in tables and figures.
        wanted: what the profile can afford -> the runs; several, of one stage each, are points of one curve.
        rule: when samples leave.
        kind: `METHOD`, `BASELINE`, `CONTROL` or `HEADROOM`.
        regression: whether it means anything when the answer is one number.
        trained_for: the one threshold that a training is meant for: its runs are the points of a curve; None where any
            threshold is as good.
        reads: the evidence that is judged, from what was recorded.
        tuned: the rule of one run, where a number in it is chosen on that run's dev.
        blind: whether its stages look at no sample, so that a blind policy may be made of them.
    """

    label: str
    wanted: Callable[[Budget], list[Wanted]]
    rule: Rule
    kind: str = METHOD
    regression: bool = False
    trained_for: float | None = None
    reads: Callable[[Evidence], Evidence] = lambda evidence: evidence
    tuned: Callable[[Run], Rule] | None = None
    blind: bool = True


def _one(method: Method, *, times: dict[str, float] | None = None, **options: Any) -> Callable[[Budget], list[Wanted]]:
    return lambda budget: [Wanted(method, options, times or {})]


def _cascade(**options: Any) -> Callable[[Budget], list[Wanted]]:
    return lambda budget: [Wanted(cascadebert.METHOD, budget.cascade | options)]


def _ensemble(budget: Budget) -> list[Wanted]:
    return [Wanted(ensemble.METHOD, {"diversity": budget.diversities[0]})]


def _policies(price: float = 1.0, **options: Any) -> Callable[[Budget], list[Wanted]]:
    """A model for each weight of speed, times `price`; the plain model is the slow end."""
    return lambda budget: [
        *(
            Wanted(consistentee.METHOD, {"speed_weight": round(price * weight, 3), **options})
            for weight in budget.speed_weights
        ),
        Wanted(finetuned.METHOD),
    ]


def _shallow_models(budget: Budget) -> list[Wanted]:
    shallow = [Wanted(finetuned.METHOD, {"layers": layers}) for layers in budget.shallow_depths]
    return [*shallow, Wanted(finetuned.METHOD)]


def _schedules(budget: Budget) -> list[Wanted]:
    """A model for each window of layers; the plain model is the slow end."""
    windows = [Wanted(hashee.METHOD, {"first": first, "last": last}) for first, last in budget.windows]
    return [*windows, Wanted(finetuned.METHOD)]


def _as_published(method: Method, **more: Any) -> Entry:
    """A method with its own rule."""
    return Entry(method.title, more.pop("wanted", _one(method)), method.own_rule, **more)


RANDOM, SHALLOW = "random exits", "k-layer models"
PABEE_ENTROPY = "PABEE's exits, entropy"
LEARNED = "PABEE's exits, best learned rule"
TWICE = {"epochs": 2.0}


def bypass_label(wiring: str) -> str:
    """What the control is called whose bypasses are wired that way."""
    return f"BADGE, {wiring}"


def hash_label(function: str) -> str:
    """What the control is called in which tokens are ordered by that function and share all layers."""
    return f"HashEE, {function}"


_OPERATING = consistentee.OPERATING_POINT
ENTRIES = (
    _as_published(deebert.METHOD),
    _as_published(pabee.METHOD, regression=True),
    _as_published(badge.METHOD),
    _as_published(cascadebert.METHOD, wanted=_cascade()),
    _as_published(de3bert.METHOD, tuned=second_indicator.tuned),
    # A policy looks at the sample, a schedule at its words.
    Entry(consistentee.METHOD.title, _policies(), fixed(), trained_for=_OPERATING, blind=False),
    Entry(hashee.METHOD.title, _schedules, fixed(), regression=True, blind=False),
    _as_published(ensemble.METHOD, wanted=_ensemble),
    # Who is at a layer was decided by gates, which look at the sample.
    _as_published(smartbert.METHOD, blind=False),
    _as_published(l2w.METHOD),
    _as_published(berxit.METHOD, regression=True),
    _as_published(fastbert.METHOD),
    _as_published(pceebert.METHOD, tuned=pceebert.tuned),
    Entry(PABEE_ENTROPY, _one(pabee.METHOD), entropy(), BASELINE),
    Entry(LEARNED, _one(pabee.METHOD), entropy(), BASELINE, regression=True, tuned=lambda run: learned_rule(run.dev)),
    Entry(LINEAR, _one(deebert.METHOD, poolers="none"), entropy(), BASELINE),
    Entry(FIXED, _one(pabee.METHOD), fixed(), BASELINE, regression=True),
    Entry(RANDOM, _one(pabee.METHOD), random(), BASELINE, regression=True),
    Entry(SHALLOW, _shallow_models, fixed(), BASELINE, regression=True),
    Entry(PLAIN, _one(finetuned.METHOD), fixed(), BASELINE, regression=True),
    # As many steps as those methods take that start from another one.
    Entry("PABEE's exits, entropy, twice the steps", _one(pabee.METHOD, times=TWICE), entropy(), CONTROL),
    Entry("plain model, twice the steps", _one(finetuned.METHOD, times=TWICE), fixed(), CONTROL, regression=True),
    # What is the rule, what the training, what the capacity.
    Entry("PABEE's exits, own poolers, entropy", _one(pabee.METHOD, poolers="own"), entropy(), CONTROL),
    Entry("DeeBERT, shared pooler", _one(deebert.METHOD, poolers="shared"), entropy(), CONTROL),
    *(
        Entry(
            bypass_label(wiring),
            _one(badge.METHOD, wiring=wiring),
            badge.METHOD.own_rule,
            CONTROL,
        )
        for wiring in badge.WIRINGS
        if wiring not in (badge.METHOD.options.wiring, "none")
    ),
    Entry(NO_TERM, _cascade(weight=0.0), cascadebert.METHOD.own_rule, CONTROL),
    Entry(
        UNREGULARISED,
        _one(prototypes_afterwards.UNREGULARISED),
        prototypes_afterwards.UNREGULARISED.own_rule,
        CONTROL,
        tuned=second_indicator.tuned,
    ),
    Entry(PROTOTYPES, _one(de3bert.METHOD), entropy(), CONTROL, reads=prototypes_afterwards.prototypes_answer),
    Entry(ALL_EXITS, _policies(consistent="all exits"), fixed(), CONTROL, trained_for=_OPERATING),
    # A constant price of the same mean: that of 1 - ML / L on the movie sentences, which notebook 05 computes.
    Entry(CONSTANT, _policies(price=0.72, hardness="constant"), fixed(), CONTROL, trained_for=_OPERATING),
    *(Entry(hash_label(name), _one(hashee.METHOD, function=name), fixed(), CONTROL) for name in FUNCTIONS),
    Entry(SUM, _one(ensemble.METHOD, diversity=0.0), ensemble.METHOD.own_rule, CONTROL),
    Entry("oracle", _one(pabee.METHOD), oracle(), HEADROOM),
)
"""Every line of the scoreboard. Fixed, random and oracle exits are those of PABEE's checkpoint."""

CONTROLLED_TASKS = ("movie",)
"""Where controls are trained, too, with small encoders: they ask what a method is made of, which one task can tell."""


def entries_for(task: str, backbone: str) -> list[Entry]:
    """The entries that have a meaning there: rules on numbers for a regression, a cascade where a smaller encoder is
    known, controls on `CONTROLLED_TASKS` with encoders below base size."""
    regression = spec_of(task).kind == "regression"
    cascades = backbone in cascadebert.SMALLER
    controlled = task in CONTROLLED_TASKS and width_of(backbone) < BASE_WIDTH
    return [
        entry
        for entry in ENTRIES
        if (entry.regression or not regression)
        and (cascades or entry.label not in (cascadebert.METHOD.title, NO_TERM))
        and (controlled or entry.kind != CONTROL)
    ]


def method_names(task: str, backbone: str) -> list[str]:
    """The methods that are trained there, one job each."""
    # They are the same for every profile and depth, and to know the depth would take the encoder's files.
    wanted = [run for entry in entries_for(task, backbone) for run in entry.wanted(budget_of("quick", 12))]
    return list(dict.fromkeys(run.method.name for run in wanted))


@dataclass(frozen=True)
class Trial:
    """One try of the search: what is varied, its value, and the run."""

    what: str
    value: float | str
    wanted: Wanted


def _rates(method: Method, values: Iterable[float], **options: Any) -> list[Trial]:
    return [Trial("learning rate, times", by, Wanted(method, options, {"learning_rate": by})) for by in values]


def _heads(method: Method, values: Iterable[float]) -> list[Trial]:
    return [Trial("rate of heads, times", by, Wanted(method, {}, {"head_rate": by})) for by in values]


def _options(method: Method, name: str, values: Iterable[Any], **options: Any) -> list[Trial]:
    return [Trial(name, value, Wanted(method, options | {name: value})) for value in values]


def search_of(budget: Budget) -> dict[str, list[Trial]]:
    """The search of each method: its learning rate, and what its paper leaves open or we do, as many trials for each.

    The default stands in both lists. One seed, the first task, and dev decides.
    """
    rates = (0.5, 1.0, 2.0)
    window = {"last": budget.windows[1][1]}
    return {
        deebert.METHOD.title: [*_rates(deebert.METHOD, rates), *_heads(deebert.METHOD, (1.0, 3.0, 10.0, 30.0))],
        pabee.METHOD.title: [*_rates(pabee.METHOD, rates), *_heads(pabee.METHOD, (1.0, 3.0, 10.0, 30.0))],
        badge.METHOD.title: [
            *_rates(badge.METHOD, rates),
            *_options(badge.METHOD, "scale", (1.0, 4.0, 16.0)),
            *_options(badge.METHOD, "rank", (128,)),
        ],
        cascadebert.METHOD.title: [
            *_rates(cascadebert.METHOD, rates, **budget.cascade),
            *_options(cascadebert.METHOD, "weight", (0.1, 0.5, 1.0, 2.0), **budget.cascade),
        ],
        de3bert.METHOD.title: [
            *_rates(de3bert.METHOD, rates),
            *_options(de3bert.METHOD, "weight", (0.001, 0.01, 0.1, 1.0)),
        ],
        hashee.METHOD.title: [
            *_rates(hashee.METHOD, rates, **window),
            *_options(hashee.METHOD, "buckets", ("mass", "types"), **window),
            *_options(hashee.METHOD, "function", ("frequency", "mutual-information"), **window),
        ],
        ensemble.METHOD.title: [
            *_rates(ensemble.METHOD, rates),
            *_options(ensemble.METHOD, "diversity", (0.1, 0.3, 1.0, 3.0)),
        ],
        smartbert.METHOD.title: [
            *_rates(smartbert.METHOD, rates),
            *_options(smartbert.METHOD, "lamada", (0.004, 0.04, 0.4, 4.0)),
        ],
        l2w.METHOD.title: [*_rates(l2w.METHOD, rates), *_options(l2w.METHOD, "eps", (0.0, 0.3, 0.8, 1.2))],
        berxit.METHOD.title: [*_rates(berxit.METHOD, rates), *_heads(berxit.METHOD, (1.0, 3.0, 10.0, 30.0))],
        fastbert.METHOD.title: [*_rates(fastbert.METHOD, rates), *_heads(fastbert.METHOD, (1.0, 3.0, 10.0, 30.0))],
        PLAIN: _rates(finetuned.METHOD, rates),
    }


def train(profile: str, setting: Setting, name: str) -> None:
    """Train what the study needs of one method and is not there yet.

    Raises:
        InputError: a method that the study does not have for this task and backbone.
    """
    task, backbone = setting.task, setting.backbone
    if name not in (names := method_names(task, backbone)):
        raise unknown(f"method of the study on {task}", name, names)
    for entry in entries_for(task, backbone):
        for wanted in entry.wanted(budget_for(profile, backbone)):
            if wanted.method.name == name:
                wanted.train(setting)


SEARCHED = "quick"
"""The profile of the search: its runs at the defaults are those of the notebooks."""


def train_search(setting: Setting, name: str) -> None:
    """Train the trials of one method that are not there yet; the setting is of the profile `SEARCHED`."""
    for trials in search_of(budget_for(SEARCHED, setting.backbone)).values():
        for trial in trials:
            if trial.wanted.method.name == name:
                trial.wanted.train(setting)


@dataclass(frozen=True)
class Result:
    """An entry's trained runs of one task and seed, and what they say together: several runs are its stages."""

    entry: Entry
    setting: Setting
    runs: tuple[Run, ...]

    @property
    def dev(self) -> Evidence:
        """Evidence on dev."""
        return self._evidence("dev")

    @property
    def test(self) -> Evidence:
        """Evidence on test."""
        return self._evidence("test")

    def _evidence(self, split: str) -> Evidence:
        of_runs = [self.entry.reads(getattr(run, split)) for run in self.runs]
        if self.entry.trained_for is not None:
            rules = [run.method.own_rule for run in self.runs]
            of_runs = [
                settled(evidence, rule, self.entry.trained_for) if evidence.stages > 1 else evidence
                for evidence, rule in zip(of_runs, rules, strict=True)
            ]
        return of_runs[0] if len(of_runs) == 1 else as_stages(of_runs)

    @cached_property
    def rule(self) -> Rule:
        """When samples leave."""
        return self.entry.tuned(self.runs[0]) if self.entry.tuned else self.entry.rule

    @property
    def metric(self) -> Metric:
        """The headline metric, in its fastest form: see `metric_for_resamples`."""
        return metric_for_resamples(self.setting.task)


def result_of(entry: Entry, profile: str, setting: Setting) -> Result | None:
    """An entry's runs, or None where one of them has not been trained."""
    runs = [wanted.find(setting) for wanted in entry.wanted(budget_for(profile, setting.backbone))]
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


_phi.averages = False  # see `tradeoff.averages`


@lru_cache
def budget_for(profile: str, backbone: str) -> Budget:
    """What a profile can afford with an encoder."""
    return budget_of(profile, config_of(backbone).num_hidden_layers)
