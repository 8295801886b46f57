"""Layers saved against time saved, at batch size 1 and against the plain model: DeeBERT's Figure 3, for notebook 01."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval
from eeutils.exiting.rules import NEVER, Rule
from eeutils.exiting.tradeoff import decide
from eeutils.models.runtime import Runtime
from eeutils.models.timing import race
from eeutils.training.runs import Run

PLAIN = "plain"


@dataclass(frozen=True)
class Clocked:
    """Seconds of single sentences, of the plain model and of the runtime at several thresholds.

    Attributes:
        thresholds: those of the runtime; `NEVER` asks every exit and leaves at none.
        layers_saved: the share of all layers that each of them saves on these sentences.
        seconds: `PLAIN`, or a threshold's number -> (rounds, sentences).
    """

    thresholds: tuple[float, ...]
    layers_saved: Float[np.ndarray, " thresholds"]
    seconds: Mapping[str, Float[np.ndarray, "rounds sentences"]]

    @property
    def rounds(self) -> int:
        """How often every sentence was run."""
        return len(self.seconds[PLAIN])

    def milliseconds(self, threshold: float | None = None) -> float:
        """A sentence's, on average; of the plain model unless a threshold is given."""
        name = PLAIN if threshold is None else str(self.thresholds.index(threshold))
        return 1000 * self._time(name, np.arange(self.rounds))

    def time_saved(self, rounds: np.ndarray | None = None) -> Float[np.ndarray, " thresholds"]:
        """The share of the plain model's time that each threshold saves, below 0 where it costs time."""
        rounds = np.arange(self.rounds) if rounds is None else rounds
        early = np.array([self._time(str(number), rounds) for number in range(len(self.thresholds))])
        return 1 - early / self._time(PLAIN, rounds)

    def line(self, resamples: int = 1000, level: float = 0.95) -> tuple[Interval, Interval]:
        """Slope and intercept of time saved over layers saved, with intervals over thresholds and rounds drawn anew:
        those of a clock, which say nothing of another machine."""
        random, draws = np.random.default_rng(0), []
        for _ in range(resamples):
            chosen = random.integers(len(self.thresholds), size=len(self.thresholds))
            rounds = random.integers(self.rounds, size=self.rounds)
            draws.append(self._fit(chosen, self.time_saved(rounds)))
        estimate = self._fit(np.arange(len(self.thresholds)), self.time_saved())
        ends = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0) if np.isfinite(draws).any() else None
        lows, highs = (np.full(2, np.nan),) * 2 if ends is None else ends
        slope, intercept = (Interval(*map(float, three), level) for three in zip(estimate, lows, highs, strict=True))
        return slope, intercept

    def _time(self, name: str, rounds: np.ndarray) -> float:
        # The median over rounds: one that something else on the machine held up does not count.
        return float(np.median(self.seconds[name][rounds], axis=0).mean())

    def _fit(self, chosen: np.ndarray, saved: np.ndarray) -> tuple[float, float]:
        x, y = self.layers_saved[chosen], saved[chosen]
        if len(np.unique(x)) < 3:  # a line through two points fits whatever they are
            return np.nan, np.nan
        fit = stats.linregress(x, y)
        return fit.slope, fit.intercept


def clock(
    run: Run, plain: Run, rule: Rule, thresholds: Sequence[float], sentences: int = 40, rounds: int = 5
) -> Clocked:
    """Answer test sentences one at a time, by turns with the plain model and with the runtime at each threshold: about
    so many sentences, and of a small test set a tenth."""
    thresholds = tuple(dict.fromkeys([NEVER, *thresholds]))
    samples = run.samples("test")
    rows = range(0, len(samples), max(10, len(samples) // sentences))
    few, model = samples.take(rows), run.model()
    tracks = {PLAIN: Runtime(plain.model(), rule).calls(few, batch_size=1)}
    for number, threshold in enumerate(thresholds):
        tracks[str(number)] = Runtime(model, rule, threshold).calls(few, batch_size=1)
    seconds = race(tracks, rounds, next(model.parameters()).device, progress="sentences")
    evidence = run.test.take(torch.tensor(rows))
    layers = np.array([_mean_layers(evidence, rule, threshold) for threshold in thresholds])
    return Clocked(thresholds, 1 - layers / run.test.reference_layers, seconds)


def _mean_layers(evidence: Evidence, rule: Rule, threshold: float) -> float:
    stages = decide(evidence, rule, threshold).stages
    return float(evidence.cost["layers"].gather(0, stages[None]).double().mean())
