"""LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding (Elhoushi et al., ACL 2024): its training.

The layers themselves learn to be read early. Here in the light form that a library uses, which looks through the head
twice a step and not at every layer: one exit at a time, in turn, beside the top, and no layer dropout. It goes on from
a fine-tuned decoder and the exits that were learned on it frozen: for a decoder that no exit had ever read, as many
steps were far too few. The paper's exits own nothing but the norm and the head of all; these keep their low-rank maps,
which learn along.

    loss      L = (e CE_l + CE_L) / (1 + e),  l the next exit at every step

    symbol   variable     meaning
    e        EARLY        weight of the exit
    l        turn         which exit is next
    CE_L     losses[-1]   cross entropy of the top
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from eeutils.data.samples import Batch
from eeutils.models.decoder import Decoder, load_decoder
from eeutils.models.stages import Answers, MultiStageModel, stack
from eeutils.models.token_exits import TokenExitModel, next_words
from eeutils.training import loop
from eeutils.training.decoders import (
    ExitRun,
    gate_words,
    load_or_make,
    prompts_of,
    read_weights,
    with_exits,
    written_states,
)
from eeutils.training.loop import Phase, answer_loss
from eeutils.training.recorded_exits import linear_maps
from eeutils.training.settings import Setting

EARLY = 1.0


class RotatingExits(TokenExitModel):
    """A decoder whose exits take turns while it trains: a step answers at one of them and at the top, two stages; in
    evaluation mode all answer."""

    def __init__(self, decoder: Decoder, exits: tuple[int, ...], rank: int) -> None:
        super().__init__(decoder, exits, rank)
        # With the weights, so that a resumed training goes on with the exit whose turn it is.
        self.register_buffer("turn", torch.zeros((), dtype=torch.long))

    def forward(self, *inputs: Tensor | None) -> Answers:
        if not self.training:
            return super().forward(*inputs)
        early, top = int(self.turn) % (self.stages - 1), self.stages - 1
        self.turn += 1
        state, answers = self.begin(*inputs), []
        for stage in range(self.stages):
            if stage in (early, top):
                state, answer = self.step(stage, state)
                answers.append(answer)
            else:
                state = self.run_to(stage, state)
        return stack(answers)


def rotating_loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """L over all words to be written."""
    early, top = answer_loss(answers.logits, next_words(batch.input_ids, batch.token_type_ids)).mean(dim=1)
    return (EARLY * early + top) / (1 + EARLY)


@dataclass(frozen=True)
class SkipRun(ExitRun):
    """A decoder that was trained on with all exits in turn, and what it said."""

    def built(self) -> TokenExitModel:
        """A new model with the trained weights, in single precision."""
        model = RotatingExits(load_decoder(self.setting.backbone), self.exits, self.rank)
        read_weights(model, self.directory)
        return model


def trained(setting: Setting, exits: tuple[int, ...] | None = None, *, progress: bool = True) -> SkipRun:
    """The fine-tuned decoder and its exits, trained on with exits in turn, for as many steps as the fine-tuning had;
    trained when not there yet.

    Args:
        exits: layers, every third unless given.
    """
    start = with_exits(setting, exits, progress=progress)

    def train(work: Path) -> tuple[nn.Module, dict[str, pd.DataFrame]]:
        learned = start.built()
        model = RotatingExits(learned.decoder, start.exits, start.rank)
        model.maps = learned.maps
        phase = Phase("exits in turn", rotating_loss)
        history = loop.fit(model, [phase], prompts_of(setting, "train"), setting, work, progress=progress)
        linear = linear_maps(written_states(model, setting, "train", progress)[0])
        return model, {"history": history, "gate-words": gate_words(model, linear, setting, progress)}

    options = {"exits": start.exits, "early": EARLY, "starts_from": start.directory.name}
    return SkipRun(load_or_make("decoder-layerskip", setting, options, train), setting, start.exits, start.rank)
