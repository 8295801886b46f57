"""Exits on the layers of one encoder: the heads, and the model that asks them one after the other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eeutils.errors import InputError, unknown
from eeutils.models.backbone import Backbone, Hidden
from eeutils.models.cost import Spent, linear_flops
from eeutils.models.stages import Answer, MultiStageModel

POOLS = ("cls", "mean")

Carried = Mapping[str, Tensor]
"""What exits hand on to later ones: tensors whose first dimension is the sample."""


@dataclass(frozen=True)
class ExitState:
    """What an exit may look at: the state after its layer, the state before it, and what earlier exits carried along.

    `carried` follows the samples when a batch is re-packed.
    """

    hidden: Hidden
    before: Hidden
    carried: Carried = field(default_factory=dict)


def pool_tokens(hidden: Hidden, pool: str) -> Float[Tensor, "batch width"]:
    """One vector per sample: the first token's state ("cls") or the mean over real tokens ("mean")."""
    if pool == "cls":
        return hidden.states[:, 0]
    if not hidden.padded:
        return hidden.states.sum(dim=1) / hidden.states.shape[1]
    weights = hidden.attention_mask.unsqueeze(-1).to(hidden.states.dtype)
    return (hidden.states * weights).sum(dim=1) / weights.sum(dim=1)


class Pooler(nn.Module):
    """BERT's pooler, tanh(Wx + b), on one vector per sample; starts from the pre-trained pooler where there is one."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.dense = nn.Linear(backbone.width, backbone.width)
        if backbone.pretrained_pooler is not None:
            self.dense.load_state_dict(backbone.pretrained_pooler.state_dict())

    def forward(self, vector: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return torch.tanh(self.dense(vector))


class Exit(nn.Module):
    """An exit (off-ramp, internal classifier): pool the tokens, optional pooler, dropout, one linear map.

    A paper's exit overrides what it changes: `read`, from a state to the vector that is judged, or `answer`, from that
    vector to what is said of it.

    Args:
        width: D.
        classes: C, 1 for regression.
        pool: "cls" or "mean".
        pooler: applied to the pooled vector; pass one module to several exits to share it, as PABEE does.
        dropout: probability; active in training only.
    """

    def __init__(
        self, width: int, classes: int, pool: str, pooler: nn.Module | None = None, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise unknown("pool", pool, POOLS)
        self.pool = pool
        self.pooler = pooler if pooler is not None else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes)

    def read(self, state: ExitState) -> tuple[Float[Tensor, "batch width"], Carried]:
        """The vector that is judged, and what to carry to the next exit."""
        return self.pooler(pool_tokens(state.hidden, self.pool)), state.carried

    def answer(self, vector: Float[Tensor, "batch width"]) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
        """Logits and named extras."""
        return self.classifier(self.dropout(vector)), {}

    def forward(self, state: ExitState, earlier: Spent | None = None) -> tuple[ExitState, Answer]:
        """The state with what is carried on, and the answer with what it cost: the layers since the answer before, by
        which `earlier` was spent, and this exit."""
        vector, carried = self.read(state)
        logits, extras = self.answer(vector)
        spent = state.hidden.spent if earlier is None else state.hidden.spent.minus(earlier)
        tokens = state.hidden.tokens  # alone: what is counted later must not hold on to the states
        with_exit = Spent.later(lambda: (spent.layers, spent.flops + self.flops(tokens)))
        return ExitState(state.hidden, state.before, carried), Answer(logits, with_exit, extras)

    @cached_property
    def plain_flops(self) -> int:
        """FLOPs of pooler and classifier: what the plain model's one head costs too."""
        return linear_flops(self.pooler) + linear_flops(self.classifier)

    def flops(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, " batch"] | int:
        """FLOPs of all that stands between a layer and this exit's answer, for samples of that many tokens; one number
        where they are the same for all."""
        return self.plain_flops


class MultiExitModel(MultiStageModel):
    """One encoder with exits on some or all of its layers.

    Args:
        backbone: the encoder.
        exits: layer (from 1) -> exit. The deepest one always answers; layers beyond it never run.
    """

    def __init__(self, backbone: Backbone, exits: Mapping[int, Exit]) -> None:
        super().__init__()
        if not exits or not all(1 <= layer <= backbone.depth for layer in exits):
            raise InputError(f"exits stand on layers 1 to {backbone.depth} of this encoder; got {sorted(exits)}")
        self.backbone = backbone
        self.layers = tuple(sorted(exits))
        self.reference_layers = backbone.depth
        self.classes = exits[self.layers[-1]].classifier.out_features
        # Keyed by layer, so that a plain model's one head has the same name as the last exit of a multi-exit model.
        self.exits = nn.ModuleDict({str(layer): exits[layer] for layer in self.layers})

    def exit_at(self, stage: int) -> Exit:
        """The exit of stage number `stage` (from 0, or from the end if negative)."""
        return self.exits[str(self.layers[stage])]

    def begin(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> ExitState:
        hidden = self.backbone.embed(input_ids, attention_mask, token_type_ids)
        return ExitState(hidden, hidden)

    def reach(self, stage: int, state: ExitState) -> ExitState:
        """The state as the exit of that stage sees it, its layers run."""
        before = hidden = state.hidden
        for layer in range(self.layers[stage - 1] if stage else 0, self.layers[stage]):
            before, hidden = hidden, self.backbone.run_layer(layer, hidden)
        return ExitState(hidden, before, state.carried)

    def step(self, stage: int, state: ExitState) -> tuple[ExitState, Answer]:
        # What was spent before the first stage, on the embeddings, is the first stage's.
        return self.exit_at(stage)(self.reach(stage, state), state.hidden.spent if stage else None)

    def leave(self, state: ExitState, done: Bool[Tensor, " batch"]) -> ExitState:
        rows = (~done).nonzero().flatten()
        hidden = self.backbone.take(state.hidden, rows)
        # The state before the last layer is never read again: the next step replaces it.
        return ExitState(hidden, hidden, {name: tensor[rows] for name, tensor in state.carried.items()})

    def reference(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Spent:
        return with_head(self.backbone.whole_pass(attention_mask, self.reference_layers), self.exit_at(-1))


def with_head(spent: Spent, head: Exit) -> Spent:
    """What a plain model spends: all of its layers, and one plain head."""
    return Spent.later(lambda: (spent.layers, spent.flops + head.plain_flops))


Poolers = Literal["own", "shared", "none"]
"""Before their classifiers exits have a pooler each (DeeBERT, BERxiT), one for all (PABEE, F-PABEE, ConsistentEE), or
none: then an exit is linear (COSEE)."""


def exits_on_all_layers(backbone: Backbone, classes: int, pool: str, poolers: Poolers) -> dict[int, Exit]:
    """An exit on every layer, with poolers of that kind."""
    one = Pooler(backbone) if poolers == "shared" else None
    return {
        layer: Exit(backbone.width, classes, pool, Pooler(backbone) if poolers == "own" else one)
        for layer in range(1, backbone.depth + 1)
    }
