"""How much could ANY causal rule gain on the same evidence? An estimate: the best rule that a dev set can teach.

At a price lambda for one pass of the plain model, a sample should leave exit s as soon as going on does not pay,
however cleverly it leaves later, at tau:

    max over tau > s of  E[v_tau - v_s - lambda (c_tau - c_s) | exits 1 .. s]  <=  0

v_s is what the answer of exit s is worth: 1 where it is right and 0 where it is wrong, of numbers minus the squared
error; c_s is the share of a plain pass that was spent by then. The left side falls as the price rises, so each sample
has at each exit ONE critical price, at which going on and leaving are alike. Readiness is minus that price: at the
threshold -lambda it is the rule that pays best for lambda, so one threshold sweeps the whole curve. Learned on dev:

    1. A judge, a classifier that reads ALL exits, says of samples that it has not seen how likely each class is. So the
       worth of an answer is a probability instead of 0 or 1: the same on average, with much less chance in it.
    2. ONE ridge regression for all exits guesses from the `signals` of the exits so far what going on pays, for a row
       of prices; where the guess falls through 0 is the critical price. The penalty is the one that earns most on
       samples that were left out; the largest leaves little but a constant for each exit, which is a blind policy.
    3. When a sample would leave later follows from the critical prices of later exits. It begins with "at the last
       exit", and a few rounds of steps 2 and 3 suffice.

All of it is cross-fitted: the readiness of a dev sample comes from a rule that has not seen it, so that thresholds may
be chosen on dev; that of any other sample is the mean over those rules. It is an estimate and no bound: another learner
or more dev samples may do better. Strictly above every rule is only the oracle, which needs the labels of what it
judges.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from eeutils.errors import InputError
from eeutils.exiting.comparisons import Curve, Curves, over_blind
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, bootstrap
from eeutils.exiting.rules import Rule
from eeutils.exiting.signals import all_at_once, signals
from eeutils.exiting.tradeoff import Checkpoint, Metric, at_speedup, blind_policy

NAME, ON_TEST = "best learned rule", "learned on test"

SMALLEST = 10
"""Samples, or groups of them, that a rule is learned from at least."""

PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Of the ridge, for each row."""

ROUNDS = 4
"""Of steps 2 and 3: more of them change nothing."""


def learned_rule(dev: Evidence, *, seed: int = 0, folds: int = 5) -> Rule:
    """The best learned rule: that of `learn`."""
    return learn(dev, seed=seed, folds=folds).rule


def learned_on_test(test: Evidence, *, seed: int = 0) -> Rule:
    """The same learner, for each half of TEST with the labels of the other half: headroom only. Where it is no better
    than the rule that was learned on dev, it is not dev's size that limits that one."""
    return replace(learn(test, seed=seed, folds=2).rule, name=ON_TEST, needs_labels=True)


def learn(dev: Evidence, *, seed: int = 0, folds: int = 5) -> Learned:
    """Learn when to leave.

    Args:
        dev: labelled evidence; its samples are told by their ids, their order does not matter.
        seed: decides which samples are left out together.
        folds: rules that are learned, each without one part of dev.

    Raises:
        InputError: no labels, one stage only, fewer than `SMALLEST` samples, or fewer than 2 folds.
    """
    if dev.labels is None or dev.stages < 2:
        raise InputError("a rule is learned from labelled evidence of 2 stages or more; give a run's dev evidence")
    groups = len(dev.ids if dev.groups is None else dev.groups.unique())
    if groups < SMALLEST or not 2 <= folds <= groups:
        raise InputError(
            f"a rule is learned from {SMALLEST} samples (groups of them) or more, in 2 folds or more and not more than "
            f"samples; got {groups} and {folds}"
        )
    dev = dev.take(dev.ids.argsort())
    fold = _folds(dev, folds, seed)
    parts = tuple(_learn(dev.take(torch.from_numpy(fold != left_out)), seed + 1) for left_out in range(folds))
    return Learned(parts, dev.ids, dev.logits[0].double(), torch.from_numpy(fold))


@dataclass(frozen=True)
class Learned:
    """Rules that were learned each without one part of dev.

    Attributes:
        parts: the rules.
        ids: (M,) of the dev samples, ascending.
        first: (M, C) what the first exit said of each of them.
        fold: (M,) which rule has not seen it.
    """

    parts: tuple[_Part, ...]
    ids: Tensor
    first: Tensor
    fold: Tensor

    @cached_property
    def rule(self) -> Rule:
        """Leave where the critical price is low enough."""
        return Rule(NAME, self.readiness, low=-math.inf, high=math.inf, regression=self.first.shape[-1] == 1)

    @property
    def judges(self) -> list[str]:
        """The judge that was chosen for each rule."""
        return [part.judge for part in self.parts]

    def readiness(self, evidence: Evidence) -> Float[Tensor, "stages units"]:
        """Minus the critical price: what going on may cost for a whole plain pass, in points of score. 0 at the last
        exit, behind which nothing can be gained.

        Raises:
            InputError: evidence of a model with other stages, classes or extras.
        """
        stages, classes = self.parts[0].stages, self.first.shape[-1]
        if evidence.stages > stages or evidence.classes != classes:
            raise InputError(
                f"this rule was learned on {stages} stages and {classes} classes, and the evidence has "
                f"{evidence.stages} and {evidence.classes}; learn it on dev evidence of the same run"
            )
        return self._from(signals(evidence), evidence)

    def reads(
        self, evidence: Evidence, together: Mapping[str, Sequence[str]] | None = None, seed: int = 0
    ) -> pd.DataFrame:
        """Which signals are read, at each exit but the last: how far the order of the samples by readiness changes when
        a signal is shuffled among them. 0 is not at all, 1 an order that has nothing to do with the one before (1 minus
        the rank correlation, and never more than 1).

        Args:
            evidence: of which the readiness is asked.
            together: name -> signals that are shuffled together; each by itself unless given. Signals that say the same
                share what they are worth, so those belong together.
            seed: of the shuffling.

        Returns:
            One row a name, one column an exit, named by its layer.
        """
        known = signals(evidence)
        order = torch.randperm(evidence.samples, generator=torch.Generator().manual_seed(seed))
        usual = _ranks(self._from(known, evidence))
        changes = {}
        for name, members in (together or {name: [name] for name in known}).items():
            shuffled = {each: values[:, order] if each in members else values for each, values in known.items()}
            alike = (usual * _ranks(self._from(shuffled, evidence))).sum(axis=1)[:-1]
            changes[name] = np.clip(1 - alike, 0, 1)
        frame = pd.DataFrame.from_dict(changes, orient="index", columns=list(evidence.layers[:-1]))
        return frame.rename_axis("signal")

    def _from(self, known: Mapping[str, Tensor], evidence: Evidence) -> Tensor:
        prices = torch.stack([part.prices(known) for part in self.parts])
        place = torch.searchsorted(self.ids, evidence.ids).clamp(max=len(self.ids) - 1)
        # A runtime numbers texts from 0, so an id alone makes no dev sample: what was said of it must be the same, too.
        alike = torch.isclose(self.first[place], evidence.logits[0].double(), rtol=1e-3, atol=1e-3).all(dim=-1)
        unseen = prices.gather(0, self.fold[place].expand(1, *prices.shape[1:]))[0]
        return -torch.where((self.ids[place] == evidence.ids) & alike, unseen, prices.mean(dim=0))


@dataclass(frozen=True)
class _Part:
    """One ridge regression on signals: their names, the stages of the model, middle (K,) and spread (K,) of signals
    over samples and exits, weights (K + S - 1, prices) of signals and exits, level (prices,); who judged, and the
    penalty."""

    names: tuple[str, ...]
    stages: int
    middle: Tensor
    spread: Tensor
    weights: Tensor
    level: Tensor
    judge: str
    penalty: float

    def prices(self, known: Mapping[str, Tensor]) -> Tensor:
        """(S, N): the critical price at each exit."""
        if missing := [name for name in self.names if name not in known]:
            raise InputError(
                f"this rule was learned with the signal {missing[0]!r}, and this evidence does not have it"
            )
        held = torch.stack([known[name] for name in self.names], dim=-1)
        rows = _rows((held[: self.stages - 1] - self.middle) / self.spread, self.stages)
        pays = (rows @ self.weights + self.level).movedim(-1, 0).numpy()
        early = torch.from_numpy(_critical(pays, _prices(self.stages)))
        return torch.cat([early, early.new_zeros(len(held) - len(early), held.shape[1])])


def _learn(dev: Evidence, seed: int, folds: int = 5) -> _Part:
    """One rule; judge and critical prices are made for samples that were left out of `folds`."""
    fold, known = _folds(dev, folds, seed), signals(dev)
    judge, likely = _judged(dev, fold, seed)
    held = torch.stack(list(known.values()), dim=-1)[:-1]
    middle, spread = held.mean(dim=(0, 1)), held.std(dim=(0, 1))
    spread = torch.where(spread > 1e-9, spread, torch.ones_like(spread))
    rows = _rows((held - middle) / spread, dev.stages).numpy()
    cost = (dev.cost["flops"].double() / dev.reference["flops"].double().mean()).numpy()
    worth, best = _worth(dev, likely), None
    for penalty in PENALTIES:
        *fitted, critical = _going_on(rows, worth, cost, fold, penalty)
        earned = _earned(critical, worth, cost)
        if best is None or earned > best[0]:
            best = (earned, *map(torch.from_numpy, fitted), penalty)
    return _Part(tuple(known), dev.stages, middle, spread, *best[1:3], judge, best[3])


def _folds(dev: Evidence, folds: int, seed: int) -> np.ndarray:
    """(N,) which samples are left out together: whole groups, by chance."""
    groups = np.unique((dev.ids if dev.groups is None else dev.groups).numpy(), return_inverse=True)[1]
    return (np.random.default_rng(seed).permutation(groups.max() + 1) % folds)[groups]


def _prices(stages: int) -> np.ndarray:
    """A row of prices for a whole plain pass, up to where a layer costs half a right answer. Below 0 one is paid to go
    on: for the slow end of the curve."""
    return np.concatenate([[-0.3, -0.1, -0.03, 0.0], np.geomspace(0.01, stages / 2, 18)])


def _rows(standardised: Tensor, stages: int) -> Tensor:
    """(s, N, K + S - 1): signals, and which exit it is, in numbers so large that no penalty weighs on them."""
    exits, units, _ = standardised.shape
    which = 30 * torch.eye(stages - 1, dtype=torch.float64)[:exits, None]
    return torch.cat([standardised, which.expand(-1, units, -1)], dim=-1)


def _judges(regression: bool, seed: int) -> dict[str, Callable[[], BaseEstimator]]:
    trees = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
    name, linear = ("ridge", Ridge(10.0)) if regression else ("logistic", LogisticRegression(C=0.1, max_iter=500))
    small = {"max_iter": 30, "max_depth": 2, "learning_rate": 0.2, "early_stopping": False, "random_state": seed}
    return {name: lambda: make_pipeline(StandardScaler(), linear), "boosted trees": lambda: trees(**small)}


def _judged(dev: Evidence, fold: np.ndarray, seed: int) -> tuple[str, np.ndarray]:
    """Step 1: the judge with the smaller log loss (squared error) on samples that it has not seen, and what it says of
    them: probabilities (N, C), or numbers (N,)."""
    read, labels = all_at_once(dev).numpy(), dev.labels.numpy()
    found = {}
    for name, make in _judges(dev.regression, seed).items():
        said = np.empty(len(labels) if dev.regression else (len(labels), dev.classes))
        for left_out in np.unique(fold):
            here = fold == left_out
            said[here] = _say(make(), read[~here], labels[~here], read[here], dev.classes)
        losses = (said - labels) ** 2 if dev.regression else -np.log(said[np.arange(len(labels)), labels])
        found[name] = (float(losses.mean()), said)
    best = min(found, key=lambda name: found[name][0])
    return best, found[best][1]


def _say(judge: BaseEstimator, read: np.ndarray, labels: np.ndarray, asked: np.ndarray, classes: int) -> np.ndarray:
    if classes == 1:
        return judge.fit(read, labels).predict(asked)
    present = np.unique(labels)
    said = np.full((len(asked), classes), 1e-6)  # a class that nobody has shown is next to impossible
    said[:, present] = 1.0
    if len(present) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            said[:, present] = judge.fit(read, labels).predict_proba(asked).clip(min=1e-6)
    return said / said.sum(axis=1, keepdims=True)


def _worth(dev: Evidence, likely: np.ndarray) -> np.ndarray:
    """v (S, N): the probability of each exit's answer; of a number minus its squared error, in variances of labels.

    Numbers are scored by a correlation, which sees them up to one line for all: so they are on the line that suits the
    last exit best. What the judge cannot know of a label is the same at all exits and drops out of differences.
    """
    answers = dev.predictions.double().numpy() if dev.regression else dev.predictions.numpy()
    if dev.regression:
        labels = dev.labels.double().numpy()
        slope = np.cov(answers[-1], labels)[0, 1] / max(float(answers[-1].var(ddof=1)), 1e-9)
        errors = slope * (answers - answers[-1].mean()) - (likely - labels.mean())
        return -np.square(errors) / max(float(labels.var()), 1e-9)
    return np.stack([likely[np.arange(len(likely)), answer] for answer in answers])


def _going_on(
    rows: np.ndarray, worth: np.ndarray, cost: np.ndarray, fold: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps 2 and 3: weights (K + S - 1, prices) and level of the ridge regression of what going on pays, and critical
    prices (S - 1, N) of samples that it was not fitted to."""
    (stages, units), prices = worth.shape, _prices(len(worth))
    each, pays = np.arange(units)[:, None], np.empty((stages - 1, units, len(prices)))
    critical = np.full((stages - 1, units), np.inf)
    for _ in range(ROUNDS):
        later = np.full((units, len(prices)), stages - 1)
        for stage in reversed(range(stages - 1)):
            dearer = cost[later, each] - cost[stage][:, None]
            pays[stage] = worth[later, each] - worth[stage][:, None] - prices * dearer
            later = np.where(critical[stage][:, None] <= prices, stage, later)
        guessed = np.empty_like(pays)
        for left_out in np.unique(fold):
            here = fold == left_out
            weights, level = _ridge(rows[:, ~here], pays[:, ~here], penalty)
            guessed[:, here] = rows[:, here] @ weights + level
        critical = _critical(np.moveaxis(guessed, -1, 0), prices)
    return *_ridge(rows, pays, penalty), critical


def _ridge(rows: np.ndarray, wanted: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and level of the ridge regression of (s, N, prices) on (s, N, K): one inverse for all prices."""
    x, y = (each.reshape(-1, each.shape[-1]) for each in (rows, wanted))
    middle, level = x.mean(axis=0), y.mean(axis=0)
    inner = (x - middle).T @ (x - middle) + penalty * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(inner, (x - middle).T @ (y - level))
    return weights, level - middle @ weights


def _earned(critical: np.ndarray, worth: np.ndarray, cost: np.ndarray) -> float:
    """What leaving by these critical prices earns: worth minus the price of what was spent, mean over samples and the
    prices of 0 and more."""
    prices = _prices(len(worth))
    prices = prices[prices >= 0]
    leaves = critical[..., None] <= prices
    leaves = np.concatenate([leaves, np.ones_like(leaves[:1])])
    at, each = leaves.argmax(axis=0), np.arange(worth.shape[1])[:, None]
    return float((worth[at, each] - prices * cost[at, each]).mean())


def _critical(pays: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """(...): the price at which what going on pays, (prices, ...), falls through 0, in proportion between two of them.

    It should fall as the price rises: noise that lifts it again does not count. Beyond the row of prices those come
    first that are farther beyond.
    """
    falling = np.minimum.accumulate(pays, axis=0)
    above = (falling > 0).sum(axis=0)
    low, high = np.clip(above - 1, 0, None), np.clip(above, None, len(prices) - 1)
    at_low, at_high = (np.take_along_axis(falling, place[None], axis=0)[0] for place in (low, high))
    drop = np.where(at_low > at_high, at_low - at_high, 1.0)
    beyond = [prices[0] + np.minimum(falling[0], 0), prices[-1] + np.maximum(falling[-1], 0)]
    between = prices[low] + (prices[high] - prices[low]) * at_low / drop
    return np.select([above == 0, above == len(prices)], beyond, between)


def _ranks(ready: Tensor) -> np.ndarray:
    """(S, N): ranks of the samples at each exit, of mean 0 and length 1, so that a rank correlation is a sum; 0 where
    all are alike."""
    ranks = rankdata(ready.numpy(), axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    return ranks / np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-9)


@dataclass(frozen=True)
class Share:
    """What our rule gains over the best blind policy, what the best learned rule gains, and the share that the one is
    of the other: None where the learned rule's gain is not told from 0, for then there is nothing to share."""

    gain: Interval
    possible: Interval
    share: Interval | None

    def __str__(self) -> str:
        return "not defined" if self.share is None else str(self.share)


def share_of_gain(
    ours: Curve | Curves,
    learned: Curve | Curves,
    blind: Sequence[Sequence[Checkpoint]],
    speedup: float,
    metric: Metric,
    axis: str = "flops",
    resamples: int = 1000,
) -> Share | None:
    """How much of what could be learned our rule gains at a speed-up; None where one of them does not reach it.

    The interval of the share s is that of (our gain - s x the learned gain), in units of the learned gain: paired over
    samples and seeds, and calm where a ratio of two bootstrapped numbers would not be.

    Args:
        ours, learned: a curve, or one for each seed.
        blind: for each seed the checkpoints whose stages a blind policy may use.
        speedup, metric, axis, resamples: as for `comparisons.over_blind`.

    Raises:
        InputError: as `comparisons.over_blind`.
    """
    gains = [over_blind(side, blind, speedup, metric, axis, resamples) for side in (ours, learned)]
    if None in gains:
        return None
    gain, possible = gains
    if not possible.low > 0:
        return Share(gain, possible, None)
    share = gain.estimate / possible.estimate
    by_seed = [[side] if isinstance(side[0], Evidence) else list(side) for side in (ours, learned)]
    mine, best = ([at_speedup(*curve, speedup, axis) for curve in side] for side in by_seed)
    none = [blind_policy(checkpoints, speedup, metric, axis) for checkpoints in blind]
    test = by_seed[0][0][0]
    labels, groups = test.labels.numpy(), None if test.groups is None else test.groups.numpy()

    def remainder(seed: tuple, rows: np.ndarray) -> float:
        of_rule, of_best, of_none = (reading.score(metric, labels, rows) for reading in seed)
        return of_rule - of_none - share * (of_best - of_none)

    seeds = list(zip(mine, best, none, strict=True))
    rest = bootstrap(
        lambda seed, rows: remainder(seeds[seed], rows), len(labels), len(seeds), resamples=resamples, groups=groups
    )
    low, high = (share + bound / possible.estimate for bound in (rest.low, rest.high))
    return Share(gain, possible, Interval(share, low, high, rest.level, rest.units, rest.seeds))
