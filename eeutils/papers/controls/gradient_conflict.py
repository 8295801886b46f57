"""Do exits that are trained together pull the trunk in different directions? The control of notebook 02."""

import torch
from jaxtyping import Float
from torch import Tensor

from eeutils.data.samples import Batch, Samples
from eeutils.models.exits import MultiExitModel
from eeutils.training.loop import answer_loss


def gradient_products(model: MultiExitModel, batch: Batch) -> Float[Tensor, "blocks stages stages"]:
    """Inner products of the gradients of the exits' losses, block by block of the trunk.

    Entry (k, i, j) is <dL_i/dtheta_k, dL_j/dtheta_k>, theta_k the weights of block k; 0 where an exit stands below the
    block. Layers that share their weights (ALBERT) are one block. Without dropout, and the model is left as it was.
    """
    # As many blocks as there are sets of weights, in the order in which they first run.
    blocks = dict.fromkeys(model.backbone.layers)
    weights = [[weight for weight in block.parameters() if weight.requires_grad] for block in blocks]
    flat = [weight for block in weights for weight in block]
    was_training = model.training
    model.eval()
    losses = answer_loss(model(*batch.inputs).logits.float(), batch.labels).mean(dim=1)
    model.train(was_training)
    by_exit = [iter(torch.autograd.grad(loss, flat, retain_graph=True, materialize_grads=True)) for loss in losses]
    products = []
    for block in weights:
        gradients = torch.stack([torch.cat([next(parts).flatten() for _ in block]) for parts in by_exit]).double()
        products.append(gradients @ gradients.T)
    return torch.stack(products).cpu()


def cosines(products: Float[Tensor, "*shape blocks stages stages"]) -> Float[Tensor, "*shape stages stages"]:
    """Cosine of dL_i/dtheta and dL_j/dtheta over the given blocks that both exits use; NaN where there is none.

    Below 0 the two exits are in conflict: a step for one is a step against the other.
    """
    norms = products.diagonal(dim1=-2, dim2=-1)
    # The squared norm of gradient i over the blocks that gradient j reaches.
    squared = torch.einsum("...ki,...kj->...ij", norms, (norms > 0).to(norms.dtype))
    return products.sum(dim=-3) / (squared * squared.mT).sqrt()


def on_batches(
    model: MultiExitModel, samples: Samples, batches: int, batch_size: int = 32, seed: int = 0
) -> Float[Tensor, "batches blocks stages stages"]:
    """`gradient_products` on some batches of samples, drawn at random: the same ones for every model. Of few samples
    the batches are smaller."""
    device = next(model.parameters()).device
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    batch_size = max(1, min(batch_size, len(samples) // (10 * batches)))
    drawn = [samples.batch(rows.tolist()).to(device) for rows in order.split(batch_size)[:batches]]
    return torch.stack([gradient_products(model, batch) for batch in drawn])


def pairs_of(cosines: Float[Tensor, "batches stages stages"]) -> Float[Tensor, "batches pairs"]:
    """The cosines of all pairs of different exits, each pair once."""
    first, second = torch.triu_indices(cosines.shape[-1], cosines.shape[-1], offset=1)
    return cosines[:, first, second]


def opposed(pairs: Float[Tensor, "batches pairs"]) -> float:
    """The share of pairs in conflict; NaN where there is no pair."""
    known = pairs[pairs.isfinite()]
    return (known < 0).double().mean().item()
