"""HashEE for generation (Sun et al., Findings of ACL 2022): the tokens that are *read* stop at hashed layers.

The paper hashes the encoder's tokens of a summarisation model. A decoder that reads a prompt and writes on is the same
thing with one stack: while the prompt is read, every token stops after the layer that its id names, and what comes of
it goes up as keys and values for what is written later, in full. Training continues from the fine-tuned decoder with
the schedule switched on, so that training and use stop the same tokens at the same layers.

    read      h_i^l = Layer_l(h^{l-1})_i if l <= g(x_i), else h_i^{l-1};  keys and values of all tokens at every layer
    loss      -sum_t log p(w_t | w_{<t}, prompt read under g)
    cost      sum_i [ g(x_i) (layer + keys seen by i) + (L - g(x_i)) fill ] + head

    symbol   variable          meaning
    g        TokenSchedule     token id -> last layer
    L        decoder.depth     layers; the last token of a prompt runs them all, for it gives the first word
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import pandas as pd
from torch import nn

from eeutils.data.samples import Samples
from eeutils.exiting.token_evidence import TokenEvidence
from eeutils.models.generate import Generator, Outcome
from eeutils.models.reading import HashReader
from eeutils.models.schedule import make_schedule
from eeutils.models.token_exits import TokenExitModel
from eeutils.models.token_record import record_tokens
from eeutils.training import loop
from eeutils.training.decoders import (
    DecoderRun,
    finetuned,
    load_or_make,
    next_word_loss,
    plain_model,
    prompts_of,
    read_weights,
    tokenizer_of,
    trained_dtype,
)
from eeutils.training.loop import Phase
from eeutils.training.settings import Setting

SHARE = 0.5
"""Of the training pairs: so many are seen again, with the schedule switched on."""

PLACING = 300
"""So many training prompts place a window: what reading costs is known before anything runs."""

Window = tuple[int, int]
"""First and last layer at which an ordinary token of a prompt may stop."""


def reader_of(model: TokenExitModel, setting: Setting, function: str, first_in_full: bool = True) -> HashReader:
    """A decoder that reads in full yet, with the order of its vocabulary made from the training prompts: `under` gives
    it a window.

    Args:
        model: whose decoder it takes over.
        function: one of `schedule.FUNCTIONS`.
        first_in_full: whether the first token of a text runs all layers.
    """
    decoder = model.decoder
    schedule = make_schedule(
        function,
        training_prompts(setting),
        decoder.model.get_input_embeddings().weight,
        decoder.depth,
        first=decoder.depth,
        special=tokenizer_of(setting).all_special_ids,
        seed=setting.seed,
    )
    return HashReader(decoder, schedule, first_in_full)


@lru_cache(maxsize=4)
def untouched(setting: Setting, function: str) -> HashReader:
    """`reader_of` the fine-tuned decoder in the arithmetic of its training, to be used under any window."""
    return reader_of(plain_model(setting), setting, function).to(trained_dtype()).eval()


@lru_cache(maxsize=4)
def training_prompts(setting: Setting) -> Samples:
    """What is read of the training pairs, the question included."""
    pairs = prompts_of(setting, "train")
    tokens = tuple(
        tuple(token for token, kind in zip(text, types, strict=True) if kind == 0)
        for text, types in zip(pairs.tokens, pairs.types, strict=True)
    )
    return Samples(tokens, None, None, pairs.ids, pairs.padding)


def window_for(reader: HashReader, setting: Setting, speedup: float, alike: bool = False) -> Window:
    """The window whose reading of training prompts comes nearest to so many times fewer FLOPs; one of a single layer,
    so that all ordinary tokens stop `alike`, if asked for."""
    single = [(layer, layer) for layer in range(1, reader.decoder.depth + 1)] if alike else None
    return reader.window_at(speedup, training_prompts(setting).tokens[:PLACING], single)


@dataclass(frozen=True)
class HashRun(DecoderRun):
    """A decoder that reads under a schedule, and what it said: trained with it, or the fine-tuned one as it is."""

    function: str
    window: Window
    trained: bool

    @cached_property
    def model(self) -> HashReader:
        """In evaluation mode and in the arithmetic of its training."""
        if not self.trained:
            model = untouched(self.setting, self.function)
            return model.under(model.schedule.window(*self.window))
        model = reader_of(plain_model(self.setting), self.setting, self.function)
        model = model.under(model.schedule.window(*self.window))
        read_weights(model, self.directory)
        return model.to(trained_dtype()).eval()

    def texts(self, split: str, progress: bool = True) -> Outcome:
        """What it writes on a split, every word in full."""
        return self.written_by(split, self._how, lambda: Generator(self.model, tokenizer_of(self.setting)), progress)

    def evidence(self, split: str, progress: bool = True) -> TokenEvidence:
        """What it says of the words of a split's own targets, recorded once."""
        texts = prompts_of(self.setting, split)
        return self.recorded(split, [self._how], lambda: record_tokens(self.model, texts, progress=progress))

    @property
    def _how(self) -> dict[str, object]:
        return {"read": self.function, "window": self.window}


def as_it_is(setting: Setting, function: str, window: Window) -> HashRun:
    """The fine-tuned decoder under a schedule that it was not trained with."""
    return HashRun(finetuned(setting), setting, function, window, trained=False)


def hashed(setting: Setting, function: str, window: Window, *, progress: bool = True) -> HashRun:
    """The fine-tuned decoder, trained for half as many steps again with a schedule switched on; the window (L, L) is
    the control that reads in full. Trained when not there yet."""
    plain = finetuned(setting, progress=progress)

    def train(work: Path) -> tuple[nn.Module, dict[str, pd.DataFrame]]:
        model = reader_of(plain_model(setting), setting, function)
        model = model.under(model.schedule.window(*window))
        pairs = prompts_of(setting, "train")
        seen = pairs.take(range(math.ceil(SHARE * len(pairs))))
        phases = [Phase("fine-tune under a schedule", next_word_loss)]
        return model, {"history": loop.fit(model, phases, seen, setting, work, progress=progress)}

    options = {"function": function, "window": window, "share": SHARE, "starts_from": plain.name}
    return HashRun(load_or_make("decoder-hashed", setting, options, train), setting, function, window, True)
