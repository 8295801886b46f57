"""A decoder that reads by a schedule: each token of the text to be read stops at a layer that its id names.

What has stopped is frozen, as a word that leaves early is: its state goes up as it is, and every layer above makes keys
and values of it. What is written runs in full. So does the last token of a prompt, for it gives the first word, and by
choice the first one: in decoders much attention rests there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from eeutils.errors import InputError
from eeutils.models.decoder import Cache, Decoder
from eeutils.models.schedule import TokenSchedule, windows
from eeutils.models.token_exits import TokenExitModel, TokenState


@dataclass(frozen=True)
class ReadState(TokenState):
    """The tokens on their way, and how many layers each of them runs, (B, T); 0 for padding."""

    run: Int[Tensor, "batch tokens"]


class HashReader(TokenExitModel):
    """A decoder, a schedule for what it reads, and no exit but the top.

    Args:
        decoder: the model.
        schedule: token id -> last layer.
        first_in_full: whether the first token of a text runs all layers.

    Raises:
        InputError: a schedule for another number of layers or another vocabulary.
    """

    def __init__(self, decoder: Decoder, schedule: TokenSchedule, first_in_full: bool = True) -> None:
        super().__init__(decoder)
        if (schedule.depth, len(schedule.ranks)) != (decoder.depth, decoder.vocabulary):
            raise InputError(
                f"a schedule for {schedule.depth} layers and {len(schedule.ranks)} token ids does not fit a decoder of "
                f"{decoder.depth} layers and {decoder.vocabulary} token ids; make it for this decoder"
            )
        self.first_in_full, self._schedule = first_in_full, schedule
        # Saved with the weights, for a trained model is of no use under another order; and kept as bits, for a cast to
        # half precision must not move anybody's layer.
        self.register_buffer("rank_bits", schedule.ranks.float().view(torch.int32).clone())

    @property
    def schedule(self) -> TokenSchedule:
        """The schedule in use."""
        return replace(self._schedule, ranks=self.rank_bits.view(torch.float32))

    def under(self, schedule: TokenSchedule) -> HashReader:
        """The same weights under another schedule."""
        other = HashReader(self.decoder, schedule, self.first_in_full)
        other.reference_layers = self.reference_layers
        return other.to(self.rank_bits.device).train(self.training)

    def layers_read(self, input_ids: Tensor, mask: Tensor) -> Int[Tensor, "batch tokens"]:
        last = torch.zeros_like(mask, dtype=torch.bool)
        last[:, -1] = True
        return self._run(input_ids, mask.bool(), last)

    def begin(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, cache: Cache | None = None
    ) -> ReadState:
        state, mask = super().begin(input_ids, attention_mask, token_type_ids, cache), attention_mask.bool()
        run = self._run(input_ids, mask, state.units | (token_type_ids == 1))
        return ReadState(state.flow, state.units, state.left, state.stage_states, run)

    def run_to(self, stage: int, state: ReadState) -> ReadState:
        flow = state.flow
        for layer in range(self.layers[stage - 1] if stage else 0, self.layers[stage]):
            flow = self.decoder.run_layer(layer, flow, (state.run > layer) & ~state.left)
        return replace(state, flow=flow)

    def window_at(
        self, speedup: float, prompts: Sequence[Sequence[int]], among: Sequence[tuple[int, int]] | None = None
    ) -> tuple[int, int]:
        """The window of layers whose reading of these prompts comes nearest to so many times fewer FLOPs than that of
        the whole model.

        Args:
            speedup: 1 or more.
            prompts: token ids.
            among: windows to choose from, those of `schedule.windows` unless given.

        Raises:
            InputError: a speed-up below 1.
        """
        if speedup < 1:
            raise InputError(f"a speed-up of reading is 1 or more; got {speedup}")
        whole = self.reading_under((self.decoder.depth, self.decoder.depth), prompts)
        return min(
            among or windows(self.decoder.depth),
            key=lambda window: abs(whole / self.reading_under(window, prompts) - speedup),
        )

    def reading_under(self, window: tuple[int, int], prompts: Sequence[Sequence[int]]) -> float:
        """What reading all of these prompts costs with another window of layers."""
        return float(self.under(self.schedule.window(*window)).reading_flops(prompts).sum())

    def _run(
        self, input_ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"], in_full: Tensor
    ) -> Int[Tensor, "batch tokens"]:
        if self.first_in_full:
            in_full = in_full | (mask & (mask.cumsum(dim=1) == 1))
        return self.schedule.layers_of(input_ids, mask).masked_fill(in_full & mask, self.decoder.depth)
