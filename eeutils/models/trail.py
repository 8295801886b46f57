"""What a training looked like on the way, kept in the model's own state, so that an interruption loses none of it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Trail(nn.Module):
    """Means of a tensor over stretches of a training of unknown length: at most `slots` of them, all equally long.

    When all are full, each two become one, and from then on a stretch is twice as long.

    Args:
        shape: of the tensor that every step adds.
        slots: an even number.
    """

    def __init__(self, *shape: int, slots: int = 32) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(slots, *shape))
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))
        self.register_buffer("stretch", torch.ones((), dtype=torch.long))

    def add(self, values: Float[Tensor, "*shape"]) -> None:
        """One more step."""
        slots = len(self.means)
        if int(self.taken) == slots * int(self.stretch):
            halved = self.means.unflatten(0, (slots // 2, 2)).mean(dim=1)
            self.means.copy_(torch.cat([halved, torch.zeros_like(halved)]))
            self.stretch *= 2
        slot, within = divmod(int(self.taken), int(self.stretch))
        self.means[slot] += (values.detach() - self.means[slot]) / (within + 1)
        self.taken += 1

    def read(self) -> tuple[Int[Tensor, " filled"], Float[Tensor, "filled *shape"]]:
        """The step at which each stretch ends, counted from 1, and its mean; the last may be shorter."""
        filled = -(-int(self.taken) // int(self.stretch))
        ends = (torch.arange(1, filled + 1) * int(self.stretch)).clamp(max=int(self.taken))
        return ends, self.means[:filled].cpu()
