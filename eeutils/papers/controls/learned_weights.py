"""What L2W-DEN's network says of easy and of hard samples, for notebook 12."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, bootstrap
from eeutils.papers.l2w import weights_of
from eeutils.training.loop import answer_loss
from eeutils.training.runs import Run


@dataclass(frozen=True)
class Weighed:
    """What a trained weight network says of samples, and how hard these are.

    Attributes:
        weights: (exits, samples).
        hardness: (samples,), the mean loss over all exits.
    """

    weights: Float[Tensor, "exits samples"]
    hardness: Float[Tensor, " samples"]

    def by_quarter(self) -> pd.DataFrame:
        """The mean weight at each exit of the easiest quarter, the hardest, and those between: columns exit, weight,
        low and high (the middle half of the samples), samples."""
        place = self.hardness.argsort(stable=True).argsort() / len(self.hardness)
        parts = {
            "easiest quarter": place < 0.25,
            "between": (place >= 0.25) & (place < 0.75),
            "hardest quarter": place >= 0.75,
        }
        rows = []
        for name, chosen in parts.items():
            for exit_, weights in enumerate(self.weights[:, chosen], start=1):
                low, high = weights.quantile(0.25).item(), weights.quantile(0.75).item()
                rows.append({"exit": exit_, "weight": weights.mean().item(), "low": low, "high": high, "samples": name})
        return pd.DataFrame(rows)

    def rank_correlation(self, exit_: int, resamples: int = 1000) -> Interval:
        """Of a sample's hardness with its weight at an exit (from 0, or from the end): Spearman's."""
        hardness, weights = self.hardness.numpy(), self.weights[exit_].numpy()

        def rank(_: int, rows: np.ndarray) -> float:
            if np.ptp(weights[rows]) == 0:
                return 0.0  # all alike: nothing goes with anything
            return float(stats.spearmanr(hardness[rows], weights[rows]).statistic)

        return bootstrap(rank, len(hardness), resamples=resamples)


def turned(interval: Interval) -> Interval:
    """The same of the other sign: what goes with hardness goes against ease."""
    return replace(interval, estimate=-interval.estimate, low=-interval.high, high=-interval.low)


def weighed(run: Run, evidence: Evidence) -> Weighed:
    """The weights that a run of L2W-DEN ends with, for the samples of an evidence of it."""
    return Weighed(weights_of(run.model(), evidence).clone(), answer_loss(evidence.logits, evidence.labels).mean(dim=0))


def weights_over_training(run: Run) -> pd.DataFrame:
    """Mean weights of the easier and of the harder half of the batches: columns step, weight, exit, samples."""
    steps, means = run.model().trail.read()
    return pd.DataFrame(
        [
            {"step": step, "weight": weight, "exit": f"exit {number}", "samples": half}
            for step, halves in zip(steps.tolist(), means.tolist(), strict=True)
            for half, by_exit_ in zip(("easier half", "harder half"), halves, strict=True)
            for number, weight in enumerate(by_exit_, start=1)
        ]
    )
