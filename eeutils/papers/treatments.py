"""Did the treatment take? Before a claim about an idea is judged, the idea must have done something to the model.

A bypass that adds nothing, a diversity term that makes no exits differ, a difficulty term that is not learned, a policy
that sends everybody to one exit: a verdict on them would be about the training, not about the paper. Each has a check
on dev or on the training samples, never on test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from eeutils.exiting.calibration import agreement
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import paired_difference
from eeutils.exiting.rules import policy
from eeutils.exiting.tradeoff import decide
from eeutils.models.exits import pool_tokens
from eeutils.papers.badge import BypassExit
from eeutils.papers.cascadebert import annotate, difficulty_loss
from eeutils.papers.consistentee import OPERATING_POINT, log_leaving
from eeutils.papers.l2w import weights_of
from eeutils.training.runs import Run

BYPASS_SHARE = 0.05
"""A bypass must add that much of its block's length to what the exit reads."""

COMMONEST, INFORMATION = 0.9, 0.1
"""A policy must send no more than that share to one exit (gates: to one set of skipped layers), and its exits must tell
that much (nats) of the sample."""

WEIGHT = 0.05
"""Learned weights must be that far from 1, the mean over samples and exits."""

BEHIND = 0.02
"""The nearest prototype may answer that much worse than the classifiers do, the mean over exits."""


@dataclass(frozen=True)
class Treatment:
    """A check and what came out: what was measured, in words with its number, and whether it is enough."""

    name: str
    found: str
    took: bool

    @property
    def unfit(self) -> dict[str, str]:
        """Name -> why no verdict may count it; empty where the treatment took."""
        return {} if self.took else {self.name: f"the treatment did not take: {self.found}"}


@torch.no_grad()
def bypass(run: Run, samples: int = 256) -> Treatment:
    """BADGE: the length of what the bypass adds over that of what its block gives, mean over dev samples and exits."""
    model, few = run.model(), run.samples("dev")
    few = few.take(range(min(samples, len(few))))
    batch, shares = few.batch(range(len(few))).to(next(model.parameters()).device), []
    state = model.begin(*batch.inputs)
    for stage in range(model.stages):
        state, reader = model.reach(stage, state), model.exit_at(stage)
        if isinstance(reader, BypassExit):
            block = pool_tokens(state.hidden, reader.pool).norm(dim=-1)
            shares.append((reader.beside(state).norm(dim=-1) / block).mean().item())
        state = replace(state, carried=reader.read(state)[1])
    share = float(np.mean(shares or [0.0]))
    found = f"the bypass adds {share:.1%} of the length of what its block gives ({BYPASS_SHARE:.0%} needed)"
    return Treatment(run.method.title, found, share >= BYPASS_SHARE)


def diversity(with_term: Run, without: Run) -> Treatment:
    """Ensemble exits: by how much the exits disagree more with the term than without, pairs of exits on dev."""

    def disagreement(evidence: Evidence, rows: np.ndarray) -> float:
        same = agreement(evidence.take(torch.from_numpy(rows)))
        return 1 - float((same.sum() - len(same)) / (len(same) * (len(same) - 1)))

    more = paired_difference(disagreement, [with_term.dev], [without.dev], with_term.dev.samples, resamples=200)
    found = f"two exits disagree on {more} more of dev with the diversity term than without (above 0 needed)"
    return Treatment(with_term.method.title, found, more.low > 0)


def difficulty(with_term: Run, without: Run) -> Treatment:
    """CascadeBERT: the difficulty term on the training samples, of the model that learned it and of the one that did
    not."""
    ids, hard = annotate(with_term.setting, with_term.options)["difficulty"]
    of = dict(zip(ids.tolist(), hard.bool().tolist(), strict=True))

    def term(run: Run) -> float:
        chosen = torch.tensor([of[number] for number in run.train.ids.tolist()])
        return float(difficulty_loss(run.train.confidence[0], chosen, with_term.options.margin, "all"))

    ours, theirs = term(with_term), term(without)
    found = (
        f"the difficulty term ends at {ours:.3f} where it is learned and at {theirs:.3f} where it is not "
        "(a tenth less needed)"
    )
    return Treatment(with_term.method.title, found, ours <= 0.9 * theirs)


def collapse(run: Run) -> Treatment:
    """ConsistentEE: the share of dev that leaves at the commonest exit, and the mutual information of exit and sample
    under the policy's own probabilities."""
    return collapse_in(run.method.title, run.dev)


def collapse_in(name: str, evidence: Evidence) -> Treatment:
    """The same of whoever left under a policy in some evidence."""
    stages = decide(evidence, policy(), OPERATING_POINT).stages
    commonest = float(torch.bincount(stages, minlength=evidence.stages).max() / evidence.samples)
    p = log_leaving(evidence.extras["policy_logit"].double()).exp()
    information = float(_entropy(p.mean(dim=1)) - _entropy(p).mean())
    found = (
        f"{commonest:.0%} leave at the commonest exit (at most {COMMONEST:.0%}) and exits tell {information:.2f} nats "
        f"of the sample (at least {INFORMATION:g})"
    )
    return Treatment(name, found, commonest <= COMMONEST and information >= INFORMATION)


def collapse_of_most(runs: Sequence[Run]) -> Treatment:
    """`collapse` of several models that are points of one curve: it needs points that are no single exit, most of
    them."""
    checks = [collapse(run) for run in runs]
    took = sum(check.took for check in checks) > len(checks) / 2
    return Treatment(runs[0].method.title, "; ".join(check.found for check in checks), took)


def prototypes(run: Run) -> Treatment:
    """DE3-BERT: how much worse the nearest prototype answers than the classifiers do, mean over exits, on dev."""
    labels, sides = run.dev.labels.numpy(), (run.dev.extras["distances"].argmin(dim=-1), run.dev.predictions)
    nearest, linear = (float(np.mean([run.metric(answers, labels) for answers in side.numpy()])) for side in sides)
    found = f"the nearest prototype scores {nearest:.3f} and the classifiers {linear:.3f} (at most {BEHIND:g} less)"
    return Treatment(run.method.title, found, nearest >= linear - BEHIND)


def gates(run: Run) -> Treatment:
    """SmartBERT: which share of dev skips each layer by the decisions in use, and how many samples skip the same set of
    layers: gates that skip nothing, or the same for all, have not told samples apart."""
    skipped = run.dev.extras["skipped"]
    rates, layers = ", ".join(f"{rate:.0%}" for rate in skipped.mean(dim=1).tolist()), float(skipped.sum(dim=0).mean())
    commonest = float(torch.unique(skipped.T, dim=0, return_counts=True)[1].max() / run.dev.samples)
    found = (
        f"gates skip {layers:.1f} of {len(skipped)} layers ({rates} of the samples at layers 1 to {len(skipped)}), and "
        f"{commonest:.0%} skip the commonest set of layers (at most {COMMONEST:.0%})"
    )
    return Treatment(run.method.title, found, commonest <= COMMONEST)


def sample_weights(run: Run) -> Treatment:
    """L2W-DEN: how far the weights that the network ends with are from 1, the mean over training samples and exits."""
    away = float((weights_of(run.model(), run.train) - 1).abs().mean())
    found = f"weights are {away:.2f} away from 1 on average ({WEIGHT:g} needed)"
    return Treatment(run.method.title, found, away >= WEIGHT)


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return -torch.special.xlogy(p, p).sum(dim=0)
