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
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from eeutils.backbone import load_backbone
from eeutils.batching import Batch
from eeutils.errors import InputError, unknown
from eeutils.evidence import Evidence
from eeutils.exits import Answers, MultiExitModel, MultiStageModel, shared_pooler_exits
from eeutils.method import Method
from eeutils.rules import own_logits, vote
from eeutils.settings import Setting
from eeutils.training import Phase, answer_loss

WEIGHTS = ("uniform", "depth")
PER = ("sample", "batch")


def build(setting: Setting, classes: int, **options: object) -> MultiExitModel:
    """A classifier on every layer and one pooler for all, as in PABEE: what differs is the objective.

    Raises:
        InputError: for regression, where there is nothing to vote on.
    """
    if classes == 1:
        raise InputError("ensemble exits vote on classes and this task is a regression; use pabee")
    backbone = load_backbone(setting.backbone)
    return MultiExitModel(backbone, shared_pooler_exits(backbone, classes, setting.pool))


def cross_entropies(logits: Float[Tensor, "stages batch classes"]) -> Float[Tensor, "stages stages batch"]:
    """CE(p_i, p_j) of all pairs of classifiers, in nats, for each sample."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -torch.einsum("ibc,jbc->ijb", log_p.exp(), log_p)


def diversity_term(
    logits: Float[Tensor, "stages batch classes"], bound: float | None = 1.0, per: str = "sample", last: bool = True
) -> Float[Tensor, ""]:
    """sum_{i>=2} min_{j<i} CE(p_i, p_j), the mean over the batch.

    Args:
        logits: what all classifiers say.
        bound: no pair counts more than that many times ln C; None for the term as published.
        per: "sample" looks for each sample's own most similar earlier classifier, as the equation reads and whatever
            else is in the batch; "batch" for the one that is most similar on average.
        last: whether the last classifier is pushed away, too.
    """
    pairs = cross_entropies(logits)
    if bound is not None:
        # Before any mean, so that one sample's disagreement cannot pay for the others.
        pairs = pairs.clamp(max=bound * math.log(logits.shape[-1]))
    if per == "batch":
        pairs = pairs.mean(dim=-1, keepdim=True)
    pushed = range(1, len(logits) if last else len(logits) - 1)
    return sum((pairs[i, :i].amin(dim=0).mean() for i in pushed), start=logits.new_zeros(()))


def ensemble_loss(
    model: MultiStageModel,
    answers: Answers,
    batch: Batch,
    *,
    diversity: float = 0.1,
    bound: float | None = 1.0,
    per: str = "sample",
    last: bool = True,
    weights: str = "uniform",
) -> Tensor:
    """sum_i alpha_i CE(p_i, y) - lambda * diversity_term. The alpha_i have mean 1, so that lambda keeps its meaning."""
    losses = answer_loss(answers.logits, batch.labels).mean(dim=1)
    alpha = torch.ones_like(losses) if weights == "uniform" else torch.arange(1, len(losses) + 1).to(losses)
    right = (alpha / alpha.mean() * losses).sum()
    return right - diversity * diversity_term(answers.logits, bound, per, last)


def phases(diversity: float, bound: float | None, per: str, last: bool, weights: str) -> list[Phase]:
    """One phase, everything trained together.

    Raises:
        InputError: a lambda below 0, a bound that is not positive, or an unknown `per` or `weights`.
    """
    if not 0 <= diversity < math.inf:
        raise InputError(f"diversity is the weight lambda of the diversity term, 0 or more; got {diversity}")
    if bound is not None and not 0 < bound < math.inf:
        raise InputError(f"bound is a positive number, in units of ln C, or None for no bound; got {bound}")
    if per not in PER:
        raise unknown("per", per, PER)
    if weights not in WEIGHTS:
        raise unknown("weights", weights, WEIGHTS)
    objective = partial(ensemble_loss, diversity=diversity, bound=bound, per=per, last=last, weights=weights)
    return [Phase("joint", objective)]


def agreement(evidence: Evidence) -> Float[Tensor, "stages stages"]:
    """The share of samples on which two classifiers give the same answer, for all pairs."""
    said = evidence.predictions
    return (said[:, None] == said[None, :]).double().mean(dim=-1)


def error_correlation(evidence: Evidence) -> Float[Tensor, "stages stages"]:
    """The correlation of being wrong, for all pairs of classifiers; NaN where one is always right or always wrong.

    Agreement falls when classifiers merely get worse; this asks whether they err on the SAME samples.
    """
    if evidence.labels is None:
        raise InputError("whether two classifiers err together needs labels, and this evidence has none")
    return torch.corrcoef((evidence.predictions != evidence.labels).double())


METHOD = Method(
    name="ensemble",
    title="ensemble exits",
    citation="Sun et al., Early Exiting with Ensemble Internal Classifiers, arXiv 2105.13792, 2021",
    build=build,
    phases=phases,
    rules={"vote": vote(), "vote, current answer": replace(vote(), name="vote, current answer", answers=own_logits)},
    options={"diversity": 0.1, "bound": 1.0, "per": "sample", "last": True, "weights": "uniform"},
)
