"""Evidence of tokens: what every stage said of the next word, without keeping what it said of all words.

Thirty stages times ten thousand tokens times fifty thousand words would be sixty terabytes. What rules read is kept
instead: the best word, how probable it and the second best are, the entropy, the probability of the right word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence, entropy_of

Look = Literal["head", "shortlist", "state"]
"""What a rule looks at before it decides: all words, some words, or the state alone. A look through the head of a small
model costs as much as many of its layers."""


@dataclass(frozen=True)
class TokenPrices:
    """What a token spends besides its layers, in FLOPs: `head`, one look at all words; `shortlist`, one at some;
    `fill`, keys and values of one layer made of a state that has left; `exit`, an exit's own map."""

    head: float = 0.0
    shortlist: float = 0.0
    fill: float = 0.0
    exit: float = 0.0


@dataclass(frozen=True)
class TokenEvidence(Evidence):
    """What S stages said of N tokens.

    `logits` (S, N, 3) are the log-probabilities of the best word, of the second best, and of all others together.
    `extras` hold "word" (the best), "entropy" (of all words, over ln V), "label" (log p of the right word), "position"
    (how many words stand before this one), "layers" (FLOPs of the layers so far), and what a model adds: "similarity",
    "sure", "policy".
    `ids` are text number times `PLACES` plus position, `groups` the texts.
    """

    prices: TokenPrices = field(default_factory=TokenPrices)

    @property
    def predictions(self) -> Int[Tensor, "stages units"]:
        """(S, N): the best word."""
        return self.extras["word"].long()

    @property
    def entropy(self) -> Float[Tensor, "stages units"]:
        """H(p) / ln V over all words, in [0, 1]."""
        return self.extras["entropy"].double()

    @property
    def confidence(self) -> Float[Tensor, "stages units"]:
        """The best word's probability."""
        return self.logits[..., 0].double().exp()

    @property
    def margin(self) -> Float[Tensor, "stages units"]:
        """Probability of the best word minus that of the second best."""
        return self.confidence - self.logits[..., 1].double().exp()

    @property
    def log_probabilities(self) -> Tensor:
        """Not kept.

        Raises:
            InputError: always; a rule on whole distributions has nothing to read here.
        """
        raise InputError(
            "evidence of tokens keeps the two best words only, not whole distributions; use margin, confidence, "
            "entropy, similarity or a learned rule"
        )

    def priced(self, look: Look) -> TokenEvidence:
        """The same with what a rule of that look spends: layers, the exits' maps on the way, looks, and the keys and
        values of the layers above. Who only looks at states, or at some words, asks the whole head once, at the end."""
        number = torch.arange(1, self.stages + 1, dtype=torch.float64)[:, None]
        top = torch.tensor(self.layers, dtype=torch.float64)[:, None] == self.reference_layers
        looks = {
            "head": number * self.prices.head,
            "state": torch.ones_like(number) * self.prices.head,
            # At the top nothing is left to decide.
            "shortlist": (number - top.double()) * self.prices.shortlist + self.prices.head,
        }[look]
        # Who does not look at words needs only the map of the exit at which it leaves.
        maps = self.prices.exit * (number - top.double() if look != "state" else 1 - top.double())
        above = self.reference_layers - torch.tensor(self.layers, dtype=torch.float64)[:, None]
        flops = self.extras["layers"].double() + maps + looks + above * self.prices.fill
        return replace(self, cost={**self.cost, "flops": flops})

    def at(self, stages: Sequence[int]) -> TokenEvidence:
        """The same with some of the exits only (stage numbers from 0, the top among them); price it afterwards. What
        was measured from the exit before, "similarity", is gone unless all stay.

        Raises:
            InputError: the top is not among them, or none is.
        """
        kept = sorted(set(stages))
        if not kept or kept[-1] != self.stages - 1:
            raise InputError(f"the top, stage {self.stages - 1}, always answers: it must be among the stages {kept}")
        return replace(
            self,
            logits=self.logits[kept],
            cost={kind: tensor[kept] for kind, tensor in self.cost.items()},
            layers=tuple(self.layers[stage] for stage in kept),
            extras={
                name: tensor[kept]
                for name, tensor in self.extras.items()
                if name != "similarity" or len(kept) == self.stages
            },
        )


PLACES = 10_000
"""More than a text has words: a unit's id is its text's number times this, plus its position."""


def signals_of(
    logits: Float[Tensor, "units words"],
    labels: Int[Tensor, " units"] | None = None,
    shortlist: Int[Tensor, " some"] | None = None,
) -> tuple[Float[Tensor, "units 3"], dict[str, Tensor]]:
    """What is kept of a stage's logits: `TokenEvidence.logits`, and the extras that come from them. With a shortlist
    also "short margin", the margin of a softmax over those words alone."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    best = log_p.topk(2, dim=-1)
    others = torch.log1p(-best.values.exp().sum(dim=-1).clamp(max=1 - 1e-7))
    extras = {
        "word": best.indices[:, 0],
        "entropy": (entropy_of(log_p) / math.log(logits.shape[-1])).clamp(0, 1),
    }
    if labels is not None:
        extras["label"] = log_p.gather(1, labels[:, None])[:, 0]
    if shortlist is not None:
        extras["short margin"] = short_margin(logits[:, shortlist])
    return torch.cat([best.values, others[:, None]], dim=-1), extras


def short_margin(logits: Float[Tensor, "units words"]) -> Float[Tensor, " units"]:
    """Probability of the best of some words minus that of the second best, these words alone."""
    best = torch.softmax(logits.float(), dim=-1).topk(2, dim=-1).values
    return best[:, 0] - best[:, 1]
