"""One pass of a model over samples, kept: evidence for rules, features for heads that are learned afterwards."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from eeutils.data.samples import Samples, batches
from eeutils.exiting.evidence import Evidence, concatenate
from eeutils.models.exits import MultiExitModel
from eeutils.models.stages import MultiStageModel, on_cpu


@torch.inference_mode()
def record(model: MultiStageModel, samples: Samples, batch_size: int = 64, progress: bool = False) -> Evidence:
    """One pass of all stages over all samples, in evaluation mode and in the model's own precision.

    Samples run in order of length, so that little is padded, and stand in the evidence in their own order.

    Raises:
        InputError: there is no sample.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    parts = []
    for rows, batch in batches(samples, batch_size, progress="recording evidence" if progress else None):
        inputs = batch.to(device).inputs
        answers, reference = on_cpu(model.all_stages(*inputs)), model.reference(*inputs).cpu()
        cost = {kind: spent.cumsum(dim=0) for kind, spent in answers.spent.named().items()}
        parts.append(Evidence(answers.logits, rows, cost, reference.named(), model.layers, extras=answers.extras))
    model.train(was_training)
    whole = concatenate(parts, torch.arange(len(samples)))
    return replace(whole, ids=samples.ids, labels=samples.labels)


def record_features(
    model: MultiExitModel, samples: Samples, batch_size: int = 64, progress: bool = False
) -> tuple[Evidence, Float[Tensor, "stages samples width"]]:
    """Evidence, and from the same pass the vectors that the exits' classifiers read, in the samples' own order: for
    heads that are learned afterwards."""
    seen: list[Tensor] = []
    # Without dropout, as in evaluation mode, a classifier reads the very vector that its exit judges.
    hooks = [
        model.exit_at(stage).classifier.register_forward_pre_hook(lambda _, read: seen.append(read[0].float().cpu()))
        for stage in range(model.stages)
    ]
    try:
        evidence = record(model, samples, batch_size, progress)
    finally:
        for hook in hooks:
            hook.remove()
    by_stage = torch.stack([torch.cat(seen[stage :: model.stages]) for stage in range(model.stages)])
    order = torch.cat([rows for rows, _ in batches(samples, batch_size)])
    return evidence, by_stage[:, order.argsort()]
