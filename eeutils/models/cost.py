"""What a pass spends, counted where it is spent: layers, and floating point operations.

One multiply-add is two operations, as in `torch.utils.flop_counter`. Only matrix products are counted: they are more
than 99% of an encoder's work. Embedding look-ups are free. The formulas are held to torch's own counter in a test.
Costs are per sample and at the sample's own length, without padding.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Spent(NamedTuple):
    """What was spent on each of B units: a sample, or a token where tokens leave.

    `layers` (B,) transformer layers, a mean over a sample's tokens where they run different ones; `flops` (B,).
    """

    layers: Float[Tensor, "*shape"]
    flops: Float[Tensor, "*shape"]

    def plus(self, other: "Spent") -> "Spent":
        """Both together."""
        return Spent(self.layers + other.layers, self.flops + other.flops)

    def minus(self, other: "Spent") -> "Spent":
        """What was spent since `other`."""
        return Spent(self.layers - other.layers, self.flops - other.flops)

    def take(self, rows: Tensor) -> "Spent":
        """What was spent on some of the units."""
        return Spent(self.layers[rows], self.flops[rows])

    def cpu(self) -> "Spent":
        """The same numbers where evidence is kept."""
        return Spent(self.layers.cpu(), self.flops.cpu())


def exact(counts: Tensor) -> Float[Tensor, "*shape"]:
    """Counts in the precision of costs: double, in which FLOPs are exact, where the device has it."""
    return counts.to(torch.float32 if counts.device.type == "mps" else torch.float64)


def layer_flops(
    width: int,
    inner: int,
    tokens: Float[Tensor, " units"] | Int[Tensor, " units"],
    active: Int[Tensor, " units"] | None = None,
) -> Float[Tensor, " units"]:
    """One transformer layer of width D on T tokens, a of which are active (all, unless given).

    Keys and values are made of all tokens, 4D^2 each; query and output (4D^2), attention (4TD) and the feed-forward
    pair of width F (4DF) are computed for the active ones. Where none is active the layer is not run.
    """
    running = tokens if active is None else active
    flops = 4 * width**2 * tokens + running * (4 * width * tokens + (4 * width**2 + 4 * width * inner))
    return exact(flops if active is None else flops * (active > 0))


def linear_flops(module: nn.Module) -> int:
    """All linear maps of a module, each applied once to one vector per sample: the cost of an exit head."""
    return sum(2 * part.in_features * part.out_features for part in module.modules() if isinstance(part, nn.Linear))
