"""LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding (Elhoushi et al., ACL 2024): its training.

All exits share the last norm and head, with nothing of their own; the layers learn to be read early. Here in the light
form that a library uses, which looks through the head twice a step and not at every layer: one exit at a time, in turn,
beside the top, and no layer dropout.

    loss      L = (e CE_l + CE_L) / (1 + e),  l the next exit at every step

    symbol   variable     meaning
    e        EARLY        weight of the exit
    l        turn         which exit is next
    CE_L     losses[-1]   cross entropy of the top
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from eeutils.data.samples import Batch
from eeutils.models.decoder import load_decoder
from eeutils.models.stages import Answers, MultiStageModel, stack
from eeutils.models.token_exits import TokenExitModel, next_words
from eeutils.training import loop
from eeutils.training.decoders import (
    ExitRun,
    gate_words,
    load_or_make,
    prompts_of,
    read_weights,
    trained_dtype,
    usual_exits,
    written_states,
)
from eeutils.training.loop import Phase, answer_loss
from eeutils.training.recorded_exits import linear_maps
from eeutils.training.settings import Setting

EARLY = 1.0


class RotatingExits(TokenExitModel):
    """A decoder whose exits take turns while it trains: a step answers at one of them and at the top, two stages; in
    evaluation mode all answer. The exits' maps stay what they begin as, the identity."""

    def __init__(self, decoder: nn.Module, exits: tuple[int, ...]) -> None:
        super().__init__(decoder, exits, rank=1)
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
    """A decoder that was fine-tuned with all exits in turn, and what it said."""

    @cached_property
    def model(self) -> TokenExitModel:
        """In evaluation mode and in the arithmetic of its training."""
        model = RotatingExits(load_decoder(self.setting.backbone), self.exits)
        read_weights(model, self.directory)
        return model.to(trained_dtype()).eval()


def trained(setting: Setting, exits: tuple[int, ...] | None = None, *, progress: bool = True) -> SkipRun:
    """The decoder fine-tuned with exits in turn, for as many steps as the plain one; trained when not there yet.

    Args:
        exits: layers, every third unless given.
    """
    depth = load_decoder(setting.backbone).depth
    every = exits or usual_exits(depth)

    def train(work: Path) -> tuple[nn.Module, dict[str, pd.DataFrame]]:
        model = RotatingExits(load_decoder(setting.backbone), every)
        phase = Phase("fine-tune with exits in turn", rotating_loss, lambda model: [model.decoder])
        history = loop.fit(model, [phase], prompts_of(setting, "train"), setting, work, progress=progress)
        linear = linear_maps(written_states(model, setting, "train", progress)[0])
        return model, {"history": history, "gate-words": gate_words(model, linear, setting, progress)}

    directory = load_or_make("decoder-layerskip", setting, {"exits": every, "early": EARLY}, train)
    return SkipRun(directory, setting, every, 1)
