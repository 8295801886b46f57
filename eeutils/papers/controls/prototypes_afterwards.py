"""DE3-BERT's ablations: metric spaces beside an encoder that never felt them, prototypes that are class means."""

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eeutils.data.samples import Batch, Samples
from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.models.exits import MultiExitModel
from eeutils.models.record import record_features
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.papers import pabee
from eeutils.papers.de3bert import METHOD, De3Options, distance_regulariser, distances_between
from eeutils.training.loop import Phase, over_exits


def spaces(model: MultiExitModel) -> list[nn.Module]:
    """The metric spaces with their prototypes: all that the ablation trains."""
    return [model.exit_at(stage).space for stage in range(model.stages)]


def space_loss(options: De3Options, model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """The distance regulariser alone."""
    losses = distance_regulariser(answers.extras["distances"], batch.labels, options.regulariser)
    return over_exits(losses, options.layer_weights)


def space_phases(options: De3Options) -> list[Phase]:
    """One phase on a frozen PABEE model, at the rate of the joint training: the spaces learn, and nothing else feels
    it."""
    return [Phase("metric spaces", partial(space_loss, options), trains=spaces)]


UNREGULARISED = replace(
    METHOD,
    name="de3bert_unregularised",
    title="DE3-BERT without its regulariser",
    phases=space_phases,
    starts_from=pabee.METHOD,
)
"""The ablation: PABEE's model as it is, with metric spaces and prototypes learned afterwards."""


def prototypes_answer(evidence: Evidence) -> Evidence:
    """The decisive control: the prototypes as classifiers of their own, with logits -d^2, so that a sample can leave by
    the entropy of what they say and the linear classifiers are not asked."""
    return replace(evidence, logits=-evidence.extras["distances"].square())


@torch.no_grad()
def embed(model: MultiExitModel, samples: Samples, batch_size: int = 64) -> Float[Tensor, "stages samples dimension"]:
    """Where each exit's metric space puts each sample, in the samples' own order."""
    _, features = record_features(model, samples, batch_size)
    device = next(model.parameters()).device
    return torch.stack(
        [space.metric(each.to(device)).cpu() for space, each in zip(spaces(model), features, strict=True)]
    )


def class_means(
    embedded: Float[Tensor, "stages samples dimension"], labels: Int[Tensor, " samples"], classes: int
) -> Float[Tensor, "stages classes dimension"]:
    """Post-hoc prototypes: the mean of each class, none of them empty, to be taken over TRAINING samples."""
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
