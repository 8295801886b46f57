"""ConsistentEE's phase 2 by itself, for notebook 05.

The encoder is frozen, so what it says is computed once and policies are learned in a second: seeds, speed weights,
epochs and kinds of gradient can be compared that would otherwise take hours.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, bootstrap
from eeutils.exiting.rules import Rule, policy
from eeutils.exiting.tradeoff import Metric, at_speedup, at_threshold, decide
from eeutils.papers.consistentee import (
    ESTIMATES,
    OPERATING_POINT,
    Gradient,
    Hardness,
    log_leaving,
    memorized_layers,
    policy_network,
    rewards,
)
from eeutils.papers.treatments import COMMONEST
from eeutils.training.loop import answer_loss

Recorded = tuple[Evidence, Float[Tensor, "stages samples width"]]
"""What a model says of some samples, and the vectors that its exits read: `record_features` gives it."""


def few(recorded: Recorded, samples: int) -> Recorded:
    """The first so many samples: they are in no order."""
    evidence, features = recorded
    return evidence.take(torch.arange(min(samples, evidence.samples))), features[:, :samples]


def rewards_of(evidence: Evidence, speed_weight: float, hardness: Hardness = "memorized") -> Tensor:
    """What each sample would earn at each exit; a constant price is as high as the other one is on average."""
    memorized = memorized_layers(evidence)
    if hardness == "constant":
        speed_weight *= float((1 - memorized / evidence.layers[-1]).mean())
    losses = answer_loss(evidence.logits, evidence.labels)
    return rewards(losses, evidence.layers, memorized, speed_weight, hardness)


def learn_policies(
    features: Float[Tensor, "stages samples width"],
    reward: Float[Tensor, "stages samples"],
    *,
    gradient: Gradient,
    seed: int,
    epochs: int = 4,
    learning_rate: float = 3e-3,
    batch_size: int = 32,
    watch_every: int = 5,
) -> tuple[nn.ModuleList, pd.DataFrame]:
    """Phase 2 on frozen features.

    Returns:
        The policy networks, and a learning curve with one row every `watch_every` steps: step, reward (expected, over
        all samples and exits), layers (expected number of exits passed, the one taken included).
    """
    stages, samples, width = features.shape
    curve = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = nn.ModuleList(policy_network(width, stages - 1 - stage) for stage in range(stages))
        optimizer = torch.optim.AdamW(networks.parameters(), lr=learning_rate, weight_decay=0.01)
        steps = [rows for _ in range(epochs) for rows in torch.randperm(samples).split(batch_size)]
        for step, rows in enumerate(steps):
            if step % watch_every == 0:
                curve.append({"step": step, **_expected(networks, features, reward)})
            loss, _ = ESTIMATES[gradient](policy_logits(networks, features[:, rows]), reward[:, rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
            optimizer.step()
    curve.append({"step": len(steps), **_expected(networks, features, reward)})
    return networks, pd.DataFrame(curve)


def policy_logits(
    networks: nn.ModuleList, features: Float[Tensor, "stages samples width"]
) -> Float[Tensor, "stages samples"]:
    """The logit of leaving at each exit."""
    return torch.stack([network(vectors)[:, 0] for network, vectors in zip(networks, features, strict=True)])


@torch.no_grad()
def with_policies(
    evidence: Evidence, networks: nn.ModuleList, features: Float[Tensor, "stages samples width"]
) -> Evidence:
    """The same answers with other policies; `features` are of the evidence's samples, in its order."""
    return replace(evidence, extras={**evidence.extras, "policy": policy_logits(networks, features).sigmoid()})


def try_policies(
    seen: Recorded,
    asked: Recorded,
    weights: Iterable[float],
    seeds: Iterable[int],
    *,
    epochs: int,
    hardness: Hardness = "memorized",
) -> dict[tuple[float, int], Evidence]:
    """Policies learned from what was seen, one for each weight and seed, and what the asked samples do under them."""
    learned = {}
    for weight in weights:
        reward = rewards_of(seen[0], weight, hardness)
        for seed in seeds:
            networks, _ = learn_policies(
                seen[1], reward, gradient="sampled", seed=seed, epochs=epochs, watch_every=10**6
            )
            learned[weight, seed] = with_policies(asked[0], networks, asked[1])
    return learned


def points(policies: Mapping[tuple[float, int], Evidence], metric: Metric) -> pd.DataFrame:
    """The operating point of each policy: a row of a trade-off curve with its weight and seed, and the share of the
    commonest exit."""
    rows = []
    for (weight, seed), evidence in policies.items():
        row = at_threshold(evidence, policy(), metric, OPERATING_POINT)
        commonest = max(row[f"leave_{stage}"] for stage in range(1, evidence.stages + 1))
        rows.append({"weight": weight, "seed": seed, **row, "commonest": commonest})
    return pd.DataFrame(rows)


def gain_over(
    rule: Rule, policies: Mapping[tuple[float, int], Evidence], metric: Metric, resamples: int = 200
) -> Interval | None:
    """How much more policies score at their operating points than a rule does on the same exits at the same FLOPs:
    their mean, in its interval over the samples. Policies that are a fixed exit do not count; None where all are."""
    pairs = []
    for evidence, point in zip(policies.values(), points(policies, metric).itertuples(), strict=True):
        if point.commonest <= COMMONEST:
            answers = decide(evidence, policy(), OPERATING_POINT).predictions.numpy()
            pairs.append((answers, at_speedup(evidence, rule, point.flops_speedup)))
    if not pairs:
        return None
    labels = next(iter(policies.values())).labels.numpy()

    def gain(_: int, rows: np.ndarray) -> float:
        gains = [
            metric(answers[rows], labels[rows]) - reading.score(metric, labels, rows) for answers, reading in pairs
        ]
        return float(np.mean(gains))

    return bootstrap(gain, len(labels), resamples=resamples)


SEEN, UNSEEN = "seen in training", "not seen (dev)"


def seen_and_unseen(
    train: Recorded, dev: Recorded, asked: Recorded, weights: Iterable[float], seeds: Iterable[int], metric: Metric
) -> pd.DataFrame:
    """Policies learned from what phase 1 was trained on, and from as many samples that it was not: their speed-up and
    score by weight, means over seeds, with columns (flops_speedup or score, `SEEN` or `UNSEEN`)."""
    counted = min(train[0].samples, dev[0].samples)
    tables = {}
    for name, source in ((SEEN, train), (UNSEEN, dev)):
        learned = try_policies(few(source, counted), asked, weights, seeds, epochs=16)
        tables[name] = points(learned, metric).groupby("weight")[["flops_speedup", "score"]].mean()
    return pd.concat(tables, axis=1).swaplevel(axis=1).sort_index(axis=1)


def memorized_shares(by_name: Mapping[str, Evidence]) -> pd.DataFrame:
    """Shares of samples memorized at each layer, one row a layer and evidence: columns memorized layer, share of
    samples, of."""
    rows = []
    for name, evidence in by_name.items():
        memorized = memorized_layers(evidence)
        for layer in evidence.layers:
            share = float((memorized == layer).double().mean())
            rows.append({"memorized layer": layer, "share of samples": share, "of": name})
    return pd.DataFrame(rows)


@torch.no_grad()
def _expected(networks: nn.ModuleList, features: Tensor, reward: Tensor) -> dict[str, float]:
    probability = log_leaving(policy_logits(networks, features)).exp()
    numbers = torch.arange(1, len(reward) + 1, dtype=probability.dtype)[:, None]
    return {
        "reward": (probability * reward).sum(dim=0).mean().item(),
        "layers": (probability * numbers).sum(dim=0).mean().item(),
    }
