"""DE3-BERT: Distance-Enhanced Early Exiting for BERT based on Prototypical Networks (He et al., arXiv 2402.05948).

A sample that lies close to the prototype of the class it is given is more likely to be right than one between two
classes, whatever the classifier's entropy says of it. So every exit gets, beside its classifier, a linear map into a
metric space and one learnable prototype for each class there. A distance-aware regulariser (DAR) draws samples to the
prototype of their class while encoder, classifiers and prototypes are trained together. At inference the ratio of two
distances is a second indicator of doubt, and a sample leaves when the weighted harmonic mean of both is small.

    space   e_l = W_l h_l,   d_l(c) = |e_l - mu_{l,c}|
    loss    L = sum_l w_l (CE_l + alpha DAR_l) / sum_l w_l
            DAR_l = -log( exp(-d_l(y)^2) / sum_c exp(-d_l(c)^2) ) + d_l(y)^2
    ratio   DR_l = (1 + (r1 - r2) / max(r1, r2)) / 2
    rule    leave at the first l with (lambda + 1) / (lambda / DR_l + 1 / H_l) < tau, H_l the entropy over ln C

    symbol    variable                   meaning
    W_l       space.metric               linear map of exit l; no bias, which the prototypes would take up
    mu_{l,c}  space.prototypes           prototype of class c at exit l
    d_l(c)    extras["distances"]        Euclidean distance, not squared: DR is a ratio of distances
    r1, r2    rules.distance_ratio       distance to the prototype of the predicted class, to the nearest other one
    alpha     weight                     how much the regulariser counts
    w_l       layer_weights              l as in PABEE ("depth"), or 1 ("uniform")
    lambda    rules.harmonic's weight    0 leaves the entropy alone, infinity the distance ratio

The text that we have gives ratio and rule; the form of the DAR, the size of the space and all weights are our choice.
Why the second term of the DAR: the first is linear in the place of a sample, so it drives the surest ones far beyond
their prototype, where r1 / r2 tends to 1 and the ratio takes them for doubtful.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eeutils.backbone import load_backbone
from eeutils.batching import Batch, Samples
from eeutils.errors import InputError, unknown
from eeutils.evidence import Evidence, record_features
from eeutils.exits import Answer, Answers, Exit, ExitState, MultiExitModel, MultiStageModel, Pooler
from eeutils.method import Method
from eeutils.papers import pabee
from eeutils.rules import distance_ratio, entropy, harmonic
from eeutils.settings import Setting
from eeutils.tradeoff import Metric
from eeutils.training import Objective, Phase, answer_loss, depth_weighted


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


class PrototypeExit(Exit):
    """An exit whose pooled vector is read twice: by the classifier, and by the metric space.

    The extra "distances" (B, C) goes with each answer.
    """

    def __init__(self, width: int, classes: int, pool: str, pooler: nn.Module, dimension: int) -> None:
        super().__init__(width, classes, pool, pooler)
        # Off the books of the random numbers: the classifiers then start as PABEE's do with the same seed.
        with torch.random.fork_rng(devices=[]):
            self.space = PrototypeSpace(width, classes, dimension)

    def forward(self, state: ExitState) -> tuple[Answer, Mapping[str, Tensor]]:
        features = self.dropout(self.features(state))
        return Answer(self.classifier(features), {"distances": self.space(features)}), state.carried

    def flops(self, tokens: Int[Tensor, " samples"]) -> Float[Tensor, " samples"]:
        classes, dimension = self.space.prototypes.shape
        to_space = 2 * self.space.metric.in_features * dimension
        return super().flops(tokens) + to_space + 3 * classes * dimension  # subtract, square, add


def build(setting: Setting, classes: int, dimension: int, **training: object) -> MultiExitModel:
    """PABEE's exits, one pooler for all layers, each with a metric space of `dimension` numbers.

    The pooler is shared as in PABEE, so that the two methods differ in the metric space alone.

    Raises:
        InputError: a regression, which has no classes to have prototypes.
    """
    if classes < 2:
        raise InputError(f"DE3-BERT needs classes for its prototypes and task {setting.task!r} is a regression")
    backbone = load_backbone(setting.backbone)
    pooler = Pooler(backbone)
    layers = range(1, backbone.depth + 1)
    exits = {layer: PrototypeExit(backbone.width, classes, setting.pool, pooler, dimension) for layer in layers}
    return MultiExitModel(backbone, exits)


def regulariser(
    distances: Float[Tensor, "stages batch classes"], labels: Int[Tensor, " batch"], kind: str
) -> Float[Tensor, "stages batch"]:
    """The distance-aware regulariser of each sample at each exit, in one of four forms; the distances enter squared.

    "pull" is the cross entropy of softmax(-d^2) plus d(y)^2; "prototypical" the cross entropy alone; "hinge" wants
    d(y)^2 smaller than the nearest other by 1; "ratio" is d(y)^2 over the nearest other.

    Raises:
        InputError: an unknown kind.
    """
    squared = distances.float().square()
    labelled = nn.functional.one_hot(labels, squared.shape[-1]).bool()
    own = squared.masked_fill(~labelled, 0).sum(dim=-1)
    other = squared.masked_fill(labelled, torch.inf).amin(dim=-1)
    kinds = {
        "prototypical": lambda: answer_loss(-squared, labels),
        "pull": lambda: answer_loss(-squared, labels) + own,
        "hinge": lambda: (own - other + 1).relu(),
        "ratio": lambda: own / other.clamp(min=1e-6),
    }
    if kind not in kinds:
        raise unknown("regulariser", kind, kinds)
    return kinds[kind]()


def mean_over_exits(losses: Float[Tensor, "stages batch"], layer_weights: str) -> Float[Tensor, ""]:
    """sum_l w_l L_l / sum_l w_l, L_l the mean over the batch.

    Raises:
        InputError: unknown layer weights.
    """
    means = {"depth": depth_weighted, "uniform": torch.mean}
    if layer_weights not in means:
        raise unknown("layer_weights", layer_weights, means)
    return means[layer_weights](losses)


def joint_loss(weight: float, dar: str, layer_weights: str) -> Objective:
    """CE + alpha DAR of all exits."""

    def objective(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        cross_entropy = answer_loss(answers.logits, batch.labels)
        pull = regulariser(answers.extras["distances"], batch.labels, dar)
        return mean_over_exits(cross_entropy + weight * pull, layer_weights)

    return objective


def phases(dimension: int, weight: float, dar: str, layer_weights: str) -> list[Phase]:
    """One phase, everything trained together."""
    return [Phase("joint", joint_loss(weight, dar, layer_weights))]


RULES = {
    "hybrid": replace(harmonic(distance_ratio(), entropy()), name="hybrid"),
    "entropy": entropy(),
    "distance ratio": distance_ratio(),
}

METHOD = Method(
    name="de3bert",
    title="DE3-BERT",
    citation="He et al., DE3-BERT: Distance-Enhanced Early Exiting for BERT based on Prototypical Networks, arXiv 2024",
    build=build,
    phases=phases,
    rules=RULES,
    options={"dimension": 64, "weight": 1.0, "dar": "pull", "layer_weights": "depth"},
)


# ---- Ablations: the same metric space beside an encoder that never felt it, and prototypes that are class means ----


def spaces(model: MultiExitModel) -> list[nn.Module]:
    """The metric spaces with their prototypes: all that the ablation trains."""
    return [model.exits[str(layer)].space for layer in model.layers]


def nearest_prototype_score(evidence: Evidence, metric: Metric) -> float:
    """The mean score over exits when the nearest prototype answers: what the metric space alone has learned."""
    nearest = evidence.extras["distances"].argmin(dim=-1).numpy()
    labels = evidence.labels.numpy()
    return sum(float(metric(answers, labels)) for answers in nearest) / len(nearest)


def space_phases(dimension: int, weight: float, dar: str, layer_weights: str) -> list[Phase]:
    """One phase on a frozen PABEE model: the metric spaces learn, and nothing else feels it."""

    def objective(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        losses = regulariser(answers.extras["distances"], batch.labels, dar)
        return mean_over_exits(losses, layer_weights)

    return [Phase("metric spaces", objective, trains=spaces, learning_rate=1e-3, monitor=nearest_prototype_score)]


UNREGULARISED = replace(
    METHOD,
    name="de3bert_unregularised",
    title="DE3-BERT without its regulariser",
    phases=space_phases,
    starts_from=pabee.METHOD,
)
"""The ablation: PABEE's model as it is, with metric spaces and prototypes learned afterwards."""


@torch.no_grad()
def embed(model: MultiExitModel, samples: Samples, batch_size: int = 64) -> Float[Tensor, "stages samples dimension"]:
    """Where each exit's metric space puts each sample, in the samples' own order."""
    features = record_features(model, samples, batch_size)
    device = next(model.parameters()).device
    return torch.stack(
        [space.metric(each.to(device)).cpu() for space, each in zip(spaces(model), features, strict=True)]
    )


def class_means(
    embedded: Float[Tensor, "stages samples dimension"], labels: Int[Tensor, " samples"], classes: int
) -> Float[Tensor, "stages classes dimension"]:
    """Post-hoc prototypes: the mean of each class, to be taken over TRAINING samples.

    Raises:
        InputError: a class without a sample.
    """
    counts = torch.bincount(labels, minlength=classes)
    if (counts == 0).any():
        raise InputError(f"class {int(counts.argmin())} has no sample, so it has no mean; give more samples")
    return torch.stack([embedded[:, labels == number].mean(dim=1) for number in range(classes)], dim=1)


def with_prototypes(
    evidence: Evidence,
    embedded: Float[Tensor, "stages samples dimension"],
    prototypes: Float[Tensor, "stages classes dimension"],
) -> Evidence:
    """The same evidence with the distances to other prototypes; `embedded` are its samples, in its order."""
    distances = torch.stack([distances_between(*each) for each in zip(embedded, prototypes, strict=True)])
    return replace(evidence, extras={**evidence.extras, "distances": distances})


def distances_between(
    points: Float[Tensor, "batch dimension"], prototypes: Float[Tensor, "classes dimension"]
) -> Float[Tensor, "batch classes"]:
    """Euclidean distances. Not torch.cdist, whose way of computing hangs on the size of the batch."""
    return torch.linalg.vector_norm(points[:, None] - prototypes, dim=-1)
