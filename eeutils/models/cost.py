"""What a pass spends, counted where it is spent: layers, and floating point operations.

One multiply-add is two operations, as in `torch.utils.flop_counter`. Only matrix products are counted: they are more
than 99% of an encoder's work. Embedding look-ups are free. The formulas are held to torch's own counter in a test.
Costs are per sample and at the sample's own length, without padding.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Spent:
    """What was spent on each of B units: a sample, or a token where tokens leave.

    `layers` (B,) transformer layers, a mean over a sample's tokens where they run different ones; `flops` (B,). What
    follows from other counts is worked out when it is first looked at: a runtime whose rule does not ask what was
    spent does not count.
    """

    def __init__(self, layers: Float[Tensor, "*shape"], flops: Float[Tensor, "*shape"]) -> None:
        self._count = lambda: (layers, flops)

    @classmethod
    def later(cls, count: Callable[[], Iterable[Tensor]]) -> "Spent":
        """What `count` will give: layers and FLOPs."""
        spent = cls.__new__(cls)
        spent._count = count
        return spent

    @cached_property
    def _counted(self) -> tuple[Tensor, Tensor]:
        layers, flops = self._count()
        del self._count  # and with it what it was counted from
        return layers, flops

    @property
    def layers(self) -> Float[Tensor, "*shape"]:
        return self._counted[0]

    @property
    def flops(self) -> Float[Tensor, "*shape"]:
        return self._counted[1]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._counted)

    def named(self) -> dict[str, Tensor]:
        """Kind of cost -> what was spent of it."""
        return {"layers": self.layers, "flops": self.flops}

    def each(self, change: Callable[[Tensor], Tensor]) -> "Spent":
        """Both kinds, changed alike."""
        return Spent.later(lambda: map(change, self))

    def plus(self, other: "Spent") -> "Spent":
        """Both together."""
        return Spent.later(lambda: (self.layers + other.layers, self.flops + other.flops))

    def minus(self, other: "Spent") -> "Spent":
        """What was spent since `other`."""
        return Spent.later(lambda: (self.layers - other.layers, self.flops - other.flops))

    def take(self, rows: Tensor) -> "Spent":
        """What was spent on some of the units."""
        return self.each(lambda kind: kind[rows])

    def cpu(self) -> "Spent":
        """The same numbers where evidence is kept."""
        return self.each(Tensor.cpu)


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
