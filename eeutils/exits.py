"""Models that can answer at several points, and the exit heads that let an encoder do so.

A stage is a point where a model can answer. Everything downstream (evidence, rules, trade-off, runtime) sees a model
only through `MultiStageModel`: begin, run one stage, keep some rows, go on. Here the stages are exits on the layers of
one encoder; a row of complete models is another implementation of the same calls.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eeutils.backbone import Backbone, Hidden
from eeutils.batching import Samples
from eeutils.cost import embedding_flops, layer_flops, linear_flops
from eeutils.errors import InputError, unknown

POOLS = ("cls", "mean")


class Answer(NamedTuple):
    """What one stage says of B samples: `logits` (B, C), C = 1 for regression, and named extras (B, ...)."""

    logits: Float[Tensor, "batch classes"]
    extras: dict[str, Tensor] = {}  # noqa: RUF012 (a NamedTuple default; never written to)


class Answers(NamedTuple):
    """What all stages say of B samples: `logits` (S, B, C) and extras (S, B, ...)."""

    logits: Float[Tensor, "stages batch classes"]
    extras: dict[str, Tensor] = {}  # noqa: RUF012


class MultiStageModel(nn.Module, ABC):
    """A model that can answer after each of several stages.

    Attributes:
        layers: cumulative number of transformer layers run when stage s answers, one entry a stage.
        reference_layers: layers of the plain model that the speed-up is measured against.
    """

    layers: tuple[int, ...]
    reference_layers: int

    @property
    def stages(self) -> int:
        """S, the number of stages."""
        return len(self.layers)

    @abstractmethod
    def begin(self, *inputs: Tensor | None) -> Any:
        """The state before the first stage, from `Batch.inputs`: token ids, attention mask, token types or None."""

    @abstractmethod
    def step(self, stage: int, state: Any) -> tuple[Any, Answer]:
        """Run stage number `stage` (from 0) on the samples in `state`."""

    @abstractmethod
    def select(self, state: Any, rows: Int[Tensor, " rows"]) -> Any:
        """The state with the given samples only."""

    @abstractmethod
    def cost(self, samples: Samples) -> Float[Tensor, "stages samples"]:
        """Cumulative FLOPs of each sample when stage s answers, all heads on the way included."""

    @abstractmethod
    def reference_cost(self, samples: Samples) -> Float[Tensor, " samples"]:
        """FLOPs of the plain model with its one head: the numerator of the FLOPs speed-up."""

    def layers_run(self, samples: Samples) -> Float[Tensor, "stages samples"]:
        """Layers that each sample has run when stage s answers: the same for all, unless tokens stop on their own."""
        return torch.tensor(self.layers, dtype=torch.float64)[:, None].expand(-1, len(samples))

    def forward(self, *inputs: Tensor | None) -> Answers:
        """All stages of all samples; `inputs` as for `begin`."""
        state = self.begin(*inputs)
        answers = []
        for stage in range(self.stages):
            state, answer = self.step(stage, state)
            answers.append(answer)
        return stack(answers)


def stack(answers: list[Answer]) -> Answers:
    """Stage by stage answers as one tensor each.

    Raises:
        InputError: stages that do not give the same extras.
    """
    names = answers[0].extras.keys()
    if any(answer.extras.keys() != names for answer in answers):
        raise InputError(f"every stage must give the same extras; got {[sorted(answer.extras) for answer in answers]}")
    return Answers(
        torch.stack([answer.logits for answer in answers]),
        {name: torch.stack([answer.extras[name] for answer in answers]) for name in names},
    )


@dataclass(frozen=True)
class ExitState:
    """What an exit may look at: the state after its layer, the state before it, and what earlier exits carried along.

    `carried` holds tensors whose first dimension is the sample: they follow the samples when a batch is re-packed.
    """

    hidden: Hidden
    before: Hidden
    carried: Mapping[str, Tensor] = field(default_factory=dict)


def pool_tokens(hidden: Hidden, pool: str) -> Float[Tensor, "batch width"]:
    """One vector per sample: the first token's state ("cls") or the mean over real tokens ("mean")."""
    if pool == "cls":
        return hidden.states[:, 0]
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

    def features(self, state: ExitState) -> Float[Tensor, "batch width"]:
        """The vector that the linear map reads."""
        return self.pooler(pool_tokens(state.hidden, self.pool))

    def forward(self, state: ExitState) -> tuple[Answer, Mapping[str, Tensor]]:
        """The answer, and what to carry to the next exit."""
        return Answer(self.classifier(self.dropout(self.features(state)))), state.carried

    @property
    def plain_flops(self) -> int:
        """FLOPs of pooler and classifier: what the plain model's one head costs too."""
        return linear_flops(self.pooler) + linear_flops(self.classifier)

    def flops(self, tokens: Int[Tensor, " samples"]) -> Float[Tensor, " samples"]:
        """FLOPs of all that stands between a layer and this exit's answer, for samples of that many tokens."""
        return torch.full(tokens.shape, float(self.plain_flops), dtype=torch.float64)


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
        # Keyed by layer, so that a plain model's one head has the same name as the last exit of a multi-exit model.
        self.exits = nn.ModuleDict({str(layer): exits[layer] for layer in self.layers})

    def begin(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> ExitState:
        hidden = self.backbone.embed(input_ids, attention_mask, token_type_ids)
        return ExitState(hidden, hidden)

    def step(self, stage: int, state: ExitState) -> tuple[ExitState, Answer]:
        start = self.layers[stage - 1] if stage else 0
        before = hidden = state.hidden
        for layer in range(start, self.layers[stage]):
            before, hidden = hidden, self.backbone.run_layer(layer, hidden)
        answer, carried = self.exits[str(self.layers[stage])](ExitState(hidden, before, state.carried))
        return ExitState(hidden, before, carried), answer

    def select(self, state: ExitState, rows: Int[Tensor, " rows"]) -> ExitState:
        hidden = self.backbone.select(state.hidden, rows)
        carried = {name: tensor[rows] for name, tensor in state.carried.items()}
        # The state before the last layer is never read again: the next step replaces it.
        return replace(state, hidden=hidden, before=hidden, carried=carried)

    def cost(self, samples: Samples) -> Float[Tensor, "stages samples"]:
        tokens = samples.lengths
        layer = layer_flops(self.backbone, tokens)
        running, costs = embedding_flops(self.backbone, tokens), []
        for stage, depth in enumerate(self.layers):
            new_layers = depth - (self.layers[stage - 1] if stage else 0)
            running = running + new_layers * layer + self.exits[str(depth)].flops(tokens)
            costs.append(running)
        return torch.stack(costs)

    def reference_cost(self, samples: Samples) -> Float[Tensor, " samples"]:
        tokens = samples.lengths
        layers = self.reference_layers * layer_flops(self.backbone, tokens)
        return embedding_flops(self.backbone, tokens) + layers + self.exits[str(self.layers[-1])].plain_flops


def shared_pooler_exits(backbone: Backbone, classes: int, pool: str) -> dict[int, Exit]:
    """An exit on every layer with ONE pooler for all, as PABEE, F-PABEE and ConsistentEE have it."""
    pooler = Pooler(backbone)
    return {layer: Exit(backbone.width, classes, pool, pooler) for layer in range(1, backbone.depth + 1)}


def own_pooler_exits(backbone: Backbone, classes: int, pool: str) -> dict[int, Exit]:
    """An exit on every layer, each with a pooler of its own, as DeeBERT and BERxiT have it."""
    return {layer: Exit(backbone.width, classes, pool, Pooler(backbone)) for layer in range(1, backbone.depth + 1)}
