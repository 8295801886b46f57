"""What several test modules build: evidence or answers from logits, one of every rule, a metric."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jaxtyping
import numpy as np
import torch
from torch import Tensor

from eeutils.exiting import rules
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.rules import Rule
from eeutils.models.cost import Spent
from eeutils.models.stages import Answers


@contextmanager
def untyped() -> Iterator[None]:
    """Signatures are not held to their types in here: where code is traced a size is a symbol, and no int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def make_evidence(
    logits: Tensor | Sequence,
    labels: Sequence | Tensor | None = None,
    *,
    ids: Sequence[int] | Tensor | None = None,
    layers: Sequence[int] | None = None,
    reference_layers: int | None = None,
    cost: Tensor | None = None,
    groups: Sequence[int] | Tensor | None = None,
    **extras: Tensor,
) -> Evidence:
    """Evidence from logits (S, N, C) alone; by default stage s has run s + 1 layers of 10 FLOPs, and heads of 1.

    `cost` are the FLOPs (S, N); those of the reference are 10 a layer and 1 for its head.
    """
    logits = torch.as_tensor(logits, dtype=torch.float32)
    stages, samples, _ = logits.shape
    layers = tuple(layers or range(1, stages + 1))
    depth = float(reference_layers or layers[-1])
    run = torch.tensor(layers[:stages], dtype=torch.float64)
    if cost is None:
        cost = (run * 10 + torch.arange(1, stages + 1))[:, None].expand(stages, samples)
    reference = {"layers": depth, "flops": 10 * depth + 1}
    return Evidence(
        logits,
        torch.arange(samples) if ids is None else torch.as_tensor(ids),
        {"layers": run[:, None].expand(-1, samples), "flops": cost},
        {kind: torch.full((samples,), spent, dtype=torch.float64) for kind, spent in reference.items()},
        layers,
        None if labels is None else torch.as_tensor(labels),
        extras,
        None if groups is None else torch.as_tensor(groups),
    )


def random_evidence(
    seed: int, stages: int, samples: int, classes: int, scale: float = 3.0, step: float | None = None
) -> Evidence:
    """Random logits, rounded to multiples of `step` so that ties happen; labels, a policy, uncertainties, distances
    (some 0)."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(stages, samples, classes, generator=generator)
    if step is not None:
        logits = (logits / step).round() * step
    labels = (
        torch.randn(samples, generator=generator)
        if classes == 1
        else torch.randint(classes, (samples,), generator=generator)
    )
    ids = torch.randperm(10 * samples, generator=generator)[:samples]
    policy = torch.rand(stages, samples, generator=generator)
    distances = (4 * torch.rand(stages, samples, classes, generator=generator)).round() / 2
    uncertainty = torch.rand(stages, samples, generator=generator)
    return make_evidence(logits, labels, ids=ids, policy=policy, distances=distances, uncertainty=uncertainty)


def answers_of(logits: Tensor, **extras: Tensor) -> Answers:
    """What a model that spends nothing would say, for losses: logits (S, B, C) and extras."""
    nothing = torch.zeros(logits.shape[:2])
    return Answers(logits, Spent(nothing, nothing), extras)


def every_rule() -> dict[str, Rule]:
    """Every rule, every kind of divergence, and some compositions; all of them mean something for classes."""
    divergences = [rules.divergence(kind, against) for kind in rules.DIVERGENCES for against in rules.AGAINST]
    whole = [
        rules.entropy(),
        rules.confidence(),
        rules.margin(),
        rules.patience(),
        *divergences,
        rules.sustained(rules.entropy(), 2),
        rules.sustained(rules.divergence("jsd"), 3),
        replace(rules.sustained(rules.vote(), 2), name="vote, sustained"),
        rules.vote(),
        rules.harmonic(rules.entropy(), rules.confidence(), 0.5),
        rules.harmonic(rules.sustained(rules.entropy(), 1), rules.policy(), 2.0),
        rules.harmonic(rules.confidence(), rules.sustained(rules.margin(), 2)),
        rules.harmonic(rules.distance_ratio(), rules.entropy()),
        rules.distance_ratio(),
        rules.policy(),
        rules.learned(),
        rules.fixed(),
        rules.random(7),
        rules.oracle(),
    ]
    return {rule.name: rule for rule in whole}


def regression_rules() -> dict[str, Rule]:
    """The rules that mean something when the answer is one number."""
    whole = [
        rules.patience(0.5),
        rules.divergence(),
        rules.divergence("kl", "max"),
        rules.sustained(rules.patience(0.5), 2),
        rules.policy(),
        rules.learned(),
        rules.fixed(),
        rules.random(7),
    ]
    return {rule.name: rule for rule in whole}


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of predictions that are right."""
    return float((predictions == labels).mean())


def negative_error(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Minus the mean absolute error: a score for regression, larger is better."""
    return -float(np.abs(predictions - labels).mean())


def interrupted_at(step: int, objective: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An objective whose training is interrupted at its given call (from 1)."""
    calls = 0

    def loss(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        return objective(*arguments)

    return loss
