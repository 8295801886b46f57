"""Early Exiting with Ensemble Internal Classifiers (Sun, Zhou, Liu, Zhang, Jiang, Cao, Huang and Qiu, 2021).

Every layer gets an internal classifier, and those that have answered so far are read as an ensemble, which is good when
its members are right and err on different samples. So training adds to the cross entropy of all classifiers a reward
for being unlike the most similar earlier one. At inference they vote: a sample leaves when some class has v votes, and
the majority is the answer. Patience asks for t agreements in a row, votes need no row, so v = t + 1 is never later.

    loss   L = sum_i alpha_i CE(p_i, y) - lambda sum_{i>=2} min_{j<i} CE(p_i, p_j)      (equation 14, as others cite it)
    rule   V_i(c) = #{j <= i : argmax p_j = c}; leave when max_c V_i(c) >= v, answer argmax_c V_i(c)

    symbol     variable                  meaning
    n          model.stages              number of internal classifiers
    lambda     diversity                 weight of the diversity term
    CE(p, q)   cross_entropies           - sum_c p(c) ln q(c); gradients go to both sides
    alpha_i    weights                   of CE(p_i, y): 1, or proportional to i as in PABEE
    V_i(c)     readiness of vote()       votes of class c after classifier i
    v          threshold                 votes needed, 1 to n

The loss as published has no lower bound, however small lambda is. Take two classes, let classifier 1 say the right one
with a margin of a logits and classifier 2 with a doubt of e: then CE(p_2, p_1) = e a + ln(1 + exp(-a)), and the
derivative of L in e is 1 / (1 - e) - lambda a. Once a exceeds 1 / lambda, classifier 2 gains by doubting, beyond
2 / lambda by being wrong, and the more, the surer classifier 1 is. So each CE(p_i, p_j) is clipped from above at
`bound` times ln C, its value where p_j is uniform: pairs beyond that get no further push. `bound=None` is the loss as
published.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting.rules import own_logits, vote
from eeutils.models.exits import MultiExitModel
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.papers import pabee
from eeutils.training.loop import Phase, Weights, answer_loss, over_exits
from eeutils.training.method import Method, Options
from eeutils.training.settings import Setting


@dataclass(frozen=True)
class EnsembleOptions(Options):
    """What may be varied."""

    diversity: float = 0.1  # lambda
    bound: float | None = 1.0  # no pair counts more than that many times ln C; None for the term as published
    # Each sample's own most similar earlier classifier, as the equation reads, or the most similar on average.
    per: Literal["sample", "batch"] = "sample"
    last: bool = True  # whether the last classifier is pushed away, too
    weights: Weights = "uniform"  # alpha_i

    def __post_init__(self) -> None:
        if not 0 <= self.diversity < math.inf:
            raise InputError(f"diversity is the weight lambda of the diversity term, 0 or more; got {self.diversity}")
        if self.bound is not None and not 0 < self.bound < math.inf:
            raise InputError(f"bound is a positive number, in units of ln C, or None for no bound; got {self.bound}")


def build(setting: Setting, classes: int, options: EnsembleOptions) -> MultiExitModel:
    """PABEE's model: what differs is the objective. An error for regression, where there is nothing to vote on."""
    if classes == 1:
        raise InputError("ensemble exits vote on classes and this task is a regression; use pabee")
    return pabee.build(setting, classes, pabee.METHOD.options)


def cross_entropies(logits: Float[Tensor, "stages batch classes"]) -> Float[Tensor, "stages stages batch"]:
    """CE(p_i, p_j) of all pairs of classifiers, in nats, for each sample."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -torch.einsum("ibc,jbc->ijb", log_p.exp(), log_p)


def diversity_term(
    logits: Float[Tensor, "stages batch classes"], options: EnsembleOptions = EnsembleOptions()
) -> Float[Tensor, ""]:
    """sum_{i>=2} min_{j<i} CE(p_i, p_j), the mean over the batch, as `bound`, `per` and `last` have it."""
    pairs = cross_entropies(logits)
    if options.bound is not None:
        # Before any mean, so that one sample's disagreement cannot pay for the others.
        pairs = pairs.clamp(max=options.bound * math.log(logits.shape[-1]))
    if options.per == "batch":
        pairs = pairs.mean(dim=-1, keepdim=True)
    pushed = range(1, len(logits) if options.last else len(logits) - 1)
    return sum((pairs[i, :i].amin(dim=0).mean() for i in pushed), start=logits.new_zeros(()))


def ensemble_loss(options: EnsembleOptions, model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """sum_i alpha_i CE(p_i, y) - lambda * diversity_term. The alpha_i have mean 1, so that lambda keeps its meaning."""
    losses = answer_loss(answers.logits, batch.labels)
    weighted = len(losses) * over_exits(losses, options.weights)
    return weighted - options.diversity * diversity_term(answers.logits, options)


METHOD = Method(
    name="ensemble",
    title="ensemble exits",
    citation="Sun et al., Early Exiting with Ensemble Internal Classifiers, arXiv 2105.13792, 2021",
    build=build,
    phases=lambda options: [Phase("joint", partial(ensemble_loss, options))],
    rules={"vote": vote(), "vote, current answer": replace(vote(), name="vote, current answer", answers=own_logits)},
    options=EnsembleOptions(),
)
