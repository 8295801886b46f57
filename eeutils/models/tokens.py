"""One encoder whose tokens stop at layers that a schedule names before the network runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from eeutils.errors import InputError
from eeutils.models.backbone import Backbone, Hidden
from eeutils.models.cost import Spent
from eeutils.models.exits import Exit, ExitState, with_head
from eeutils.models.schedule import TokenSchedule, windows
from eeutils.models.stages import Answer, MultiStageModel


@dataclass(frozen=True)
class HashState:
    """The hidden states, and how many layers each token runs; 0 for padding."""

    hidden: Hidden
    layers: Int[Tensor, "batch tokens"]


class HashExitModel(MultiStageModel):
    """One encoder, one head, and a schedule that says where each token stops.

    Args:
        backbone: the encoder.
        head: the one exit, at the top.
        schedule: token id -> last layer.
        drawn: in training every batch takes a window of the schedule at random, all of `windows` alike, so that one
            model can be used with any of them.
        packed: compute active tokens only; without it every layer runs on all tokens and what it says of frozen ones is
            thrown away. The answers are the same: this is the reference that the packed form is held to.

    Raises:
        InputError: a schedule for another number of layers or another vocabulary.
    """

    def __init__(
        self, backbone: Backbone, head: Exit, schedule: TokenSchedule, drawn: bool = False, packed: bool = True
    ) -> None:
        super().__init__()
        vocabulary = backbone.config.vocab_size
        if (schedule.depth, len(schedule.ranks)) != (backbone.depth, vocabulary):
            raise InputError(
                f"a schedule for {schedule.depth} layers and {len(schedule.ranks)} token ids does not fit an encoder "
                f"of {backbone.depth} layers and {vocabulary} token ids; make it for this encoder"
            )
        self.backbone, self.head, self.drawn, self.packed = backbone, head, drawn, packed
        self.layers, self.reference_layers = (backbone.depth,), backbone.depth
        self.classes = head.classifier.out_features
        self._schedule = schedule
        # Saved with the weights: a trained model is of no use under another order.
        self.register_buffer("ranks", schedule.ranks.clone())

    @property
    def schedule(self) -> TokenSchedule:
        """The schedule in use."""
        return replace(self._schedule, ranks=self.ranks)

    def under(self, schedule: TokenSchedule, packed: bool = True) -> HashExitModel:
        """The same weights under another schedule."""
        other = HashExitModel(self.backbone, self.head, schedule, packed=packed)
        other.reference_layers = self.reference_layers
        return other.to(self.ranks.device).train(self.training)

    def begin(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> HashState:
        schedule = self.schedule
        if self.training and self.drawn:
            choice = windows(self.backbone.depth)
            schedule = schedule.window(*choice[int(torch.randint(len(choice), ()))])
        hidden = self.backbone.embed(input_ids, attention_mask, token_type_ids)
        return HashState(hidden, schedule.layers_of(input_ids, attention_mask))

    def step(self, stage: int, state: HashState) -> tuple[HashState, Answer]:
        hidden = before = state.hidden
        for layer in range(self.backbone.depth):
            before, active = hidden, state.layers > layer
            if self.packed:
                hidden = self.backbone.run_layer(layer, before, active)
            else:
                states = self.backbone.run_layer(layer, before).states
                states = torch.where(active[..., None], states, before.states)
                hidden = replace(before, states=states, spent=self.backbone.spent_after(before, active))
        return replace(state, hidden=hidden), self.head(ExitState(hidden, before))[1]

    def leave(self, state: HashState, done: Bool[Tensor, " batch"]) -> HashState:
        rows = (~done).nonzero().flatten()
        columns = state.hidden.attention_mask[rows].any(dim=0)
        return HashState(self.backbone.take(state.hidden, rows), state.layers[rows][:, columns])

    def reference(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Spent:
        return with_head(self.backbone.whole_pass(attention_mask, self.reference_layers), self.head)
