"""A small self-attention over the tokens of a sentence: what the exits of FastBERT and the gates and exits of SmartBERT
read with, instead of a pooler on one token.

States are brought down to a small width first, so that reading a whole sentence costs a few hundredths of a layer. Its
FLOPs grow with the square of the length, and are counted so.
"""

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eeutils.errors import InputError, unknown
from eeutils.models.cost import exact, linear_flops
from eeutils.models.exits import POOLS, Carried, Exit, ExitState

INNER = 128
"""The width at which both papers attend."""


class SmallAttention(nn.Module):
    """tanh(W h) of every token, self-attention over the real ones, and one vector of what came of it.

    No residual and no norm. As published every token asks, though the first alone is read where `pool` is "cls".

    Args:
        width: D, of the states that are read.
        heads: of the attention.
        pool: which position is read afterwards: the first token ("cls"), or the mean over real tokens ("mean").
        inner: width of the attention; the heads share it.
        projects: whether a linear map follows the heads, as in FastBERT; SmartBERT has none.
        dropout: on the attention weights; active in training only.

    Raises:
        InputError: an unknown pool, or heads that cannot share the width.
    """

    def __init__(
        self, width: int, heads: int, pool: str, inner: int = INNER, *, projects: bool = False, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise unknown("pool", pool, POOLS)
        if heads < 1 or inner % heads:
            raise InputError(f"{heads} heads cannot share a width of {inner}; choose a divisor of {inner}")
        self.heads, self.pool, self.inner, self.rate = heads, pool, inner, dropout
        self.down = nn.Linear(width, inner)
        self.query, self.key, self.value = (nn.Linear(inner, inner) for _ in range(3))
        self.project = nn.Linear(inner, inner) if projects else nn.Identity()

    def reduced(self, states: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens inner"]:
        """tanh(W h): the tokens as the attention finds them."""
        return torch.tanh(self.down(states))

    def forward(
        self, states: Float[Tensor, "batch tokens width"], attention_mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch inner"]:
        """One vector a sentence; what is padding (mask false) is neither attended to nor read."""
        return self.attend(self.reduced(states), attention_mask)

    def attend(
        self, reduced: Float[Tensor, "batch tokens inner"], attention_mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch inner"]:
        """The same from tokens that are reduced already."""
        query, key, value = (
            part(reduced).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if bool(attention_mask.all()) else attention_mask[:, None, None, :],
            dropout_p=self.rate if self.training else 0.0,
        )
        tokens = self.project(attended.transpose(1, 2).flatten(2))
        if self.pool == "cls":
            return tokens[:, 0]
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weights).sum(dim=1) / weights.sum(dim=1)

    def flops(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """For samples of T tokens each: T of each linear map, and 4 T^2 inner for the attention."""
        return exact(tokens * (self._each + 4 * self.inner * tokens))

    @cached_property
    def _each(self) -> int:
        return linear_flops(self)


class AttentionExit(Exit):
    """An exit that reads the sentence by a small self-attention, then Linear and tanh at its width, then one linear map
    to the classes.

    Args:
        width: D.
        classes: C, 1 for regression.
        heads, pool, inner, projects: as of `SmallAttention`.
        dropout: probability, on attention weights and before the classifier; active in training only.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        pool: str,
        heads: int,
        inner: int = INNER,
        *,
        projects: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(inner, classes, pool, nn.Sequential(nn.Linear(inner, inner), nn.Tanh()), dropout)
        self.attention = SmallAttention(width, heads, pool, inner, projects=projects, dropout=dropout)

    def read(self, state: ExitState) -> tuple[Float[Tensor, "batch inner"], Carried]:
        return self.pooler(self.attention(state.hidden.states, state.hidden.attention_mask)), state.carried

    @cached_property
    def plain_flops(self) -> int:
        """Of the plain model's one head, a pooler and a linear map at full width: speed-ups are measured against it
        whatever the exits are."""
        width = self.attention.down.in_features
        return 2 * width * (width + self.classifier.out_features)

    def flops(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return self.attention.flops(tokens) + linear_flops(self.pooler) + linear_flops(self.classifier)
