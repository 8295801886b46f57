"""What L2W-DEN's network says of easy and of hard samples, for notebook 12."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
from accelerate import Accelerator
from jaxtyping import Float
from scipy import stats
from torch import Tensor
from torch.func import functional_call

from eeutils.data.samples import Batch, LengthBuckets, Samples
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, bootstrap, mean_interval
from eeutils.models.exits import MultiExitModel
from eeutils.papers.l2w import Heard, L2wOptions, Parameters, meta_loss, through_pseudo_update, weights_of
from eeutils.training.loop import answer_loss, on_cpu
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

    def first_over_last(self, resamples: int = 1000) -> Interval:
        """The mean weight of the easiest quarter at the first exit minus that at the last."""
        easiest = self.hardness.argsort(stable=True)[: max(1, len(self.hardness) // 4)]
        gap = (self.weights[0] - self.weights[-1])[easiest].numpy()
        return mean_interval(gap, resamples=resamples)


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


def worth(model: MultiExitModel, samples: Samples, batches: int, options: L2wOptions) -> dict[str, Interval]:
    """What learned weights are worth by the measure that they are learned for, on samples that nobody was trained on.

    How much more M falls in one pseudo-update, to first order and in thousandths of a nat, than where all weights are
    1: with the learned weights; with each exit's mean weight for all samples; and the difference of both, which is what
    telling samples apart adds. Batches of 32, of which each half judges the other once.
    """
    device, falls = next(model.parameters()).device, []
    theta = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("weight_network.")}

    def heard_at(batch: Batch, rows: slice, parameters: Parameters) -> Heard:
        inputs = tuple(None if part is None else part[rows] for part in batch.inputs)
        logits = functional_call(model, parameters, inputs).logits.float()
        return answer_loss(logits, batch.labels[rows]), logits.softmax(dim=-1).amax(dim=-1)

    def judged_at(batch: Batch, rows: slice, parameters: Parameters) -> Tensor:
        return meta_loss(*heard_at(batch, rows, parameters), options.q)

    sampler, halves = LengthBuckets(samples.lengths, 32, seed=0), (slice(0, None, 2), slice(1, None, 2))
    sampler.start(0)
    with Accelerator(cpu=on_cpu()).autocast():
        for chosen in islice((rows for rows in sampler if len(rows) > 1), batches):
            batch = samples.batch(chosen).to(device)
            for ours, others in (halves, halves[::-1]):
                sides = partial(heard_at, batch, ours), lambda *_: 1.0, partial(judged_at, batch, others)
                heard, slope = through_pseudo_update(*sides, theta, options.rate)
                weights = model.weight_network(*heard).detach()
                fall = [-float((slope * (each - 1)).sum()) for each in (weights, weights.mean(dim=1, keepdim=True))]
                falls.append([*fall, fall[0] - fall[1]])
    found = 1000 * np.array(falls)
    names = ("learned weights", "each exit's mean weight", "telling samples apart")
    means = (bootstrap(lambda _, rows, column=column: column[rows].mean(), len(found)) for column in found.T)
    return {name: replace(mean, units=None) for name, mean in zip(names, means, strict=True)}
