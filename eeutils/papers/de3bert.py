"""DE3-BERT: Distance-Enhanced Early Exiting for BERT based on Prototypical Networks (He et al., arXiv 2402.05948).

A sample that lies close to the prototype of the class it is given is more likely to be right than one between two
classes, whatever the classifier's entropy says of it. So every exit gets, beside its classifier, a linear map into a
metric space and one learnable prototype for each class there. A distance regulariser (the paper's DAR) draws samples to
the prototype of their class while encoder, classifiers and prototypes are trained together. At inference the ratio of
two distances is a second indicator of doubt, and a sample leaves when the weighted harmonic mean of both is small.

    space   e_l = W_l h_l,   d_l(c) = |e_l - mu_{l,c}|
    loss    L = sum_l w_l (CE_l + alpha R_l) / sum_l w_l
            R_l = -log( exp(-d_l(y)^2) / sum_c exp(-d_l(c)^2) ) + d_l(y)^2
    ratio   DR_l = (1 + (r1 - r2) / max(r1, r2)) / 2
    rule    leave at the first l with (lambda + 1) / (lambda / DR_l + 1 / H_l) < tau, H_l the entropy over ln C

    symbol    variable                   meaning
    W_l       space.metric               linear map of exit l; no bias, which the prototypes would take up
    mu_{l,c}  space.prototypes           prototype of class c at exit l
    d_l(c)    extras["distances"]        Euclidean distance, not squared: DR is a ratio of distances
    r1, r2    rules.distance_ratio       distance to the prototype of the predicted class, to the nearest other one
    R_l       distance_regulariser       draws a sample to the prototype of its class
    alpha     weight                     how much the regulariser counts
    w_l       layer_weights              l as in PABEE ("depth"), or 1 ("uniform")
    lambda    rules.harmonic's weight    0 leaves the entropy alone, infinity the distance ratio

The text that we have gives ratio and rule; the form of the regulariser R, the size of the space and all weights are our
choice. Why the second term of R: the first is linear in the place of a sample, so it drives the surest ones far beyond
their prototype, where r1 / r2 tends to 1 and the ratio takes them for doubtful.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting.rules import distance_ratio, entropy, harmonic
from eeutils.models.backbone import load_backbone
from eeutils.models.cost import linear_flops
from eeutils.models.exits import Exit, MultiExitModel, Pooler
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.training.loop import Phase, Weights, answer_loss, over_exits
from eeutils.training.method import Method, Options
from eeutils.training.settings import Setting

Regulariser = Literal["pull", "prototypical", "hinge", "ratio"]


@dataclass(frozen=True)
class De3Options(Options):
    """What may be varied."""

    dimension: int = 64  # of the metric spaces
    weight: float = 1.0  # alpha
    regulariser: Regulariser = "pull"  # its form, see `distance_regulariser`
    layer_weights: Weights = "depth"  # w_l


class PrototypeSpace(nn.Module):
    """A linear map into a metric space, and a learnable prototype of each class there."""

    def __init__(self, width: int, classes: int, dimension: int) -> None:
        super().__init__()
        self.metric = nn.Linear(width, dimension, bias=False)
        self.prototypes = nn.Parameter(torch.empty(classes, dimension))
        nn.init.orthogonal_(self.prototypes)  # at first all classes are equally far from each other

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        """Euclidean distances to the prototypes."""
        return distances_between(self.metric(features), self.prototypes)


def distances_between(
    points: Float[Tensor, "batch dimension"], prototypes: Float[Tensor, "classes dimension"]
) -> Float[Tensor, "batch classes"]:
    """Euclidean distances. Not torch.cdist, whose way of computing hangs on the size of the batch."""
    return torch.linalg.vector_norm(points[:, None] - prototypes, dim=-1)


class PrototypeExit(Exit):
    """An exit whose pooled vector is read by the classifier and by the metric space: the extra "distances" (B, C)."""

    def __init__(self, width: int, classes: int, pool: str, pooler: nn.Module, dimension: int) -> None:
        super().__init__(width, classes, pool, pooler)
        # Off the books of the random numbers: the classifiers then start as PABEE's do with the same seed.
        with torch.random.fork_rng(devices=[]):
            self.space = PrototypeSpace(width, classes, dimension)

    def answer(self, vector: Float[Tensor, "batch width"]) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
        dropped = self.dropout(vector)
        return self.classifier(dropped), {"distances": self.space(dropped)}

    def flops(self, tokens: Int[Tensor, " batch"]) -> int:
        distances = 3 * self.space.prototypes.numel()  # subtract, square, add
        return super().flops(tokens) + linear_flops(self.space.metric) + distances


def build(setting: Setting, classes: int, options: De3Options) -> MultiExitModel:
    """PABEE's exits, each with a metric space: the pooler is shared as there, so the methods differ in the space alone.

    An error for regression, where there are no classes to have prototypes.
    """
    if classes < 2:
        raise InputError(f"DE3-BERT needs classes for its prototypes and task {setting.task!r} is a regression")
    backbone = load_backbone(setting.backbone)
    parts = (backbone.width, classes, setting.pool, Pooler(backbone), options.dimension)
    return MultiExitModel(backbone, {layer: PrototypeExit(*parts) for layer in range(1, backbone.depth + 1)})


def distance_regulariser(
    distances: Float[Tensor, "stages batch classes"], labels: Int[Tensor, " batch"], kind: Regulariser
) -> Float[Tensor, "stages batch"]:
    """R of each sample at each exit, in one of four forms; the distances enter squared.

    "pull" is the cross entropy of softmax(-d^2) plus d(y)^2; "prototypical" the cross entropy alone; "hinge" wants
    d(y)^2 smaller than the nearest other by 1; "ratio" is d(y)^2 over the nearest other.
    """
    squared = distances.float().square()
    labelled = nn.functional.one_hot(labels, squared.shape[-1]).bool()
    own = squared.masked_fill(~labelled, 0).sum(dim=-1)
    other = squared.masked_fill(labelled, torch.inf).amin(dim=-1)
    return {
        "prototypical": lambda: answer_loss(-squared, labels),
        "pull": lambda: answer_loss(-squared, labels) + own,
        "hinge": lambda: (own - other + 1).relu(),
        "ratio": lambda: own / other.clamp(min=1e-6),
    }[kind]()


def joint_loss(options: De3Options, model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """CE + alpha R of all exits."""
    cross_entropy = answer_loss(answers.logits, batch.labels)
    pull = distance_regulariser(answers.extras["distances"], batch.labels, options.regulariser)
    return over_exits(cross_entropy + options.weight * pull, options.layer_weights)


METHOD = Method(
    name="de3bert",
    title="DE3-BERT",
    citation="He et al., DE3-BERT: Distance-Enhanced Early Exiting for BERT based on Prototypical Networks, arXiv 2024",
    build=build,
    phases=lambda options: [Phase("joint", partial(joint_loss, options))],
    rules={
        "hybrid": replace(harmonic(distance_ratio(), entropy()), name="hybrid"),
        "entropy": entropy(),
        "distance ratio": distance_ratio(),
    },
    options=De3Options(),
)
