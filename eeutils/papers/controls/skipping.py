"""SmartBERT's gates beside gates that look at nothing, for notebook 11: the same model under other decisions, and who
skips what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from eeutils.exiting.evidence import Evidence, as_stages
from eeutils.exiting.intervals import Interval, bootstrap, mean_interval
from eeutils.models.gates import THRESHOLD, AsTrained, BlindGate, GatedModel
from eeutils.models.record import record, record_features
from eeutils.training.probes import fit_probes, learned_exits, probe_evidence
from eeutils.training.runs import Run, as_trained

QUANTILES = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
"""Of the gates on dev: the thresholds at which skipping alone is a curve, beside the one that gates are trained for."""


def skip_rates(evidence: Evidence) -> Float[Tensor, " layers"]:
    """The share of the samples that skip each layer."""
    return evidence.extras["skipped"].mean(dim=1)


def layers_skipped(evidence: Evidence) -> Float[Tensor, " samples"]:
    """How many layers each sample skips where nobody leaves."""
    return evidence.extras["skipped"].sum(dim=0)


def most_skipped(rates: Float[Tensor, " layers"]) -> tuple[int, ...]:
    """The k layers (from 1) that are skipped most, k what a sample skips on average, rounded: one at least, and one at
    least is left."""
    k = min(max(round(float(rates.sum())), 1), len(rates) - 1)
    return tuple(sorted(int(layer) + 1 for layer in rates.argsort(descending=True, stable=True)[:k]))


def dropping(model: GatedModel, layers: Sequence[int], only_last_exit: bool = False) -> GatedModel:
    """The same model with the same layers skipped by everybody, at no cost of gates."""
    gates = [BlindGate(float(layer in layers)) for layer in range(1, model.backbone.depth + 1)]
    return model.with_gates(gates, only_last_exit=only_last_exit)


def record_coins(
    run: Run, rates: Float[Tensor, " layers"], seed: int, model: GatedModel | None = None, only_last_exit: bool = False
) -> Evidence:
    """The same model on test where a coin decides for each sample and layer, as often heads as the layer is skipped:
    what the gates know of a sample is gone, how much they skip is not."""
    model = model or run.model()
    coins = model.with_gates([BlindGate(rate) for rate in rates.tolist()], only_last_exit=only_last_exit)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return record(coins, run.samples("test"))


@dataclass(frozen=True)
class Alone:
    """Layers skipped and nobody leaving, as curves: each a pass a point, read with `rules.fixed()`.

    Attributes:
        gates: at several thresholds of the gates.
        coins: coins that skip each layer as often as the gates do on dev at these thresholds.
        dropped: the k layers that gates skip most on dev, skipped by everybody, k from 0 to all but one.
    """

    gates: Evidence
    coins: Evidence
    dropped: Evidence


def skipping_alone(run: Run) -> Alone:
    """The three on test, the last exit the only one that is there."""
    model, dev, test = run.model(), run.samples("dev"), run.samples("test")
    every = run.dev.extras["gate"].flatten().double().numpy()
    thresholds = sorted({*np.quantile(every, QUANTILES).round(6).tolist(), THRESHOLD})
    gates, coins = [], []
    for number, threshold in enumerate(thresholds):
        under = list(model.gates)
        rates = skip_rates(record(model.with_gates(under, threshold=threshold), dev))
        gates.append(record(model.with_gates(under, only_last_exit=True, threshold=threshold), test))
        coins.append(record_coins(run, rates, number, model, only_last_exit=True))
    order = skip_rates(run.dev).argsort(descending=True, stable=True) + 1
    subsets = [order[:k].tolist() for k in range(model.backbone.depth)]
    dropped = [record(dropping(model, layers, only_last_exit=True), test) for layers in subsets]
    return Alone(*(as_stages(_without_extras(parts)) for parts in (gates, coins, dropped)))


def _without_extras(parts: Sequence[Evidence]) -> list[Evidence]:
    # The layers below the answer name a stage in figures; here they are those that run on average.
    return [
        Evidence(
            part.logits,
            part.ids,
            part.cost,
            part.reference,
            (round(float(part.cost["layers"].mean())),),
            part.labels,
        )
        for part in parts
    ]


def learned(run: Run) -> pd.DataFrame:
    """The gate of fairness: every exit against a linear probe on what it reads, both as stage 2 trains exits, on the
    path of the hard gates and for everybody. As `Run.learned`, which reads models without gates."""
    model = AsTrained(run.model())
    train = run.samples("train")
    with as_trained(next(model.parameters()).device):
        probes = fit_probes(record_features(model, train)[1], train.labels)
    exits, features = record_features(model, run.samples("dev"))
    return learned_exits(exits, probe_evidence(probes, features, exits), run.metric)


def checked(runs: Mapping[str, Run]) -> tuple[pd.DataFrame, dict[str, str]]:
    """`learned` of several runs as a table, a cross where an exit is below its probe; and name -> why no verdict may
    count it. An exit whose layer everybody skips is never asked, and need not have learned."""
    rows, unfit = {}, {}
    for name, run in runs.items():
        gate, history = learned(run), run.history
        asked = skip_rates(run.dev).numpy() < 1
        asked[-1] = True
        lost = gate.layer[~gate.learned.to_numpy() & asked]
        cells = {
            f"exit {row.layer}": ("never asked" if not used else f"{row.exit:.3f}")
            + ("" if row.learned or not used else f" ✗ ({row.probe:.3f})")
            for row, used in zip(gate.itertuples(), asked, strict=True)
        }
        if len(lost):
            unfit[name] = f"{name} has not learned what its vectors can tell at layer {', '.join(map(str, lost))}"
        rows[name] = {"steps": history.steps.sum(), "seconds": round(history.seconds.sum()), **cells}
    return pd.DataFrame.from_dict(rows, orient="index"), unfit


def exits_as_trained(run: Run) -> Evidence:
    """What every exit says of every test sample on the path of the hard gates, those included who skip its layer."""
    return record(AsTrained(run.model()), run.samples("test"))


def paths(evidence: Evidence, most: int = 8) -> pd.DataFrame:
    """The commonest sets of skipped layers: share of the samples, their mean length in FLOPs of the plain model over
    the mean of all, and the share of right answers where nobody leaves."""
    skipped = evidence.extras["skipped"].bool().T
    right = (evidence.predictions[-1] == evidence.labels).double()
    size = evidence.reference["flops"] / evidence.reference["flops"].mean()
    each, of_sample, counts = torch.unique(skipped, dim=0, return_inverse=True, return_counts=True)
    rows = []
    for number in counts.argsort(descending=True, stable=True)[:most].tolist():
        own = of_sample == number
        rows.append(
            {
                "skipped layers": _named(each[number], evidence.layers),
                "share": float(own.double().mean()),
                "size of a sentence": float(size[own].mean()),
                "right": float(right[own].mean()),
            }
        )
    return pd.DataFrame(rows)


def _named(skips: Bool[Tensor, " layers"], layers: Sequence[int]) -> str:
    return ", ".join(str(layer) for layer, skip in zip(layers, skips.tolist(), strict=True) if skip) or "none"


def rates_by(evidence: Evidence, groups: Mapping[str, Bool[Tensor, " samples"]]) -> pd.DataFrame:
    """Which share of some groups of samples skips each layer: a row a group."""
    skipped = evidence.extras["skipped"]
    rows = {name: skipped[:, chosen].mean(dim=1).numpy() for name, chosen in groups.items()}
    layers = pd.Index(evidence.layers, name="layer skipped")
    return pd.DataFrame.from_dict(rows, orient="index", columns=layers).rename_axis("sentences")


def goes_with(evidence: Evidence, trait: Sequence[float]) -> Interval:
    """Pearson's correlation of the number of skipped layers with a trait of the samples; NaN where one is constant."""
    skips, other = layers_skipped(evidence).double().numpy(), np.asarray(trait, dtype=float)

    def statistic(_: int, rows: np.ndarray) -> float:
        one, two = skips[rows], other[rows]
        return float(np.corrcoef(one, two)[0, 1]) if one.std() > 0 and two.std() > 0 else float("nan")

    return bootstrap(statistic, len(skips), resamples=300)


def steps_of_rates(runs: Sequence[Run]) -> list[Interval]:
    """How many more layers a test sample skips under each run than under the one before, paired over samples."""
    counts = [layers_skipped(run.test).double().numpy() for run in runs]
    return [mean_interval(more, resamples=300) for more in (second - first for first, second in pairwise(counts))]
