"""Seconds of writing, ways in turns: what is counted in layers and FLOPs against what a clock says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from eeutils.exiting.intervals import Interval, bootstrap
from eeutils.models.generate import Generator
from eeutils.models.timing import race
from eeutils.models.token_exits import TokenExitModel
from eeutils.papers.self_speculation import bound, speculate
from eeutils.training.decoders import TARGET_TOKENS

Way = Callable[[list[int]], object]
"""Writes on from one prompt."""

MOST = TARGET_TOKENS + 1


def transformers_way(model: TokenExitModel, tokenizer: PreTrainedTokenizerBase, **asked: Any) -> Way:
    """The family's own model and transformers' own loop; what else is asked of it, by name."""

    def write(prompt: list[int]) -> object:
        ids = torch.tensor([prompt], device=model.decoder.head_weight.device)
        ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        mask = torch.ones_like(ids)
        return model.decoder.model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=MOST, **ends, **asked
        )

    return write


def transformers_drafting(model: TokenExitModel, tokenizer: PreTrainedTokenizerBase, layer: int, draft: int) -> Way:
    """transformers' own self-speculation: its first layers draft with the last norm and head, in a cache of their own,
    so that prompts are read twice and the lower layers run again when a draft is checked. An exit's map is not used."""
    inner = model.decoder.model
    plain = transformers_way(model, tokenizer, assistant_early_exit=layer)

    def write(prompt: list[int]) -> object:
        # The draft's length is read from the model's own settings; the same words given to generate() are ignored.
        kept, depth = inner.generation_config, inner.config.num_hidden_layers
        inner.generation_config = deepcopy(kept)
        inner.generation_config.num_assistant_tokens = draft
        inner.generation_config.num_assistant_tokens_schedule = "constant"
        inner.generation_config.assistant_confidence_threshold = 0.0
        level = transformers_logging.get_verbosity()
        # It hands its draft two kinds of settings at once, and warns of that itself.
        transformers_logging.set_verbosity_error()
        try:
            return plain(prompt)
        finally:
            transformers_logging.set_verbosity(level)
            # An error inside would leave the model with the layers of its draft.
            inner.generation_config, inner.config.num_hidden_layers = kept, depth

    return write


def way_of(generator: Generator) -> Way:
    """One of our generators."""
    return lambda prompt: generator.generate_tokens([prompt], MOST, batch_size=1)


def speculating(model: TokenExitModel, tokenizer: PreTrainedTokenizerBase, layer: int, draft: int) -> Way:
    """Self-speculation with that layer and draft."""
    return lambda prompt: speculate(model, tokenizer, [prompt], MOST, layer, draft)


def measured(ways: Mapping[str, Way], prompts: Sequence[list[int]], rounds: int, progress: str) -> pd.DataFrame:
    """Seconds a text of every way (rows: prompts; columns: ways), prompts included, the median of the rounds."""
    tracks = {name: [partial(way, prompt) for prompt in prompts] for name, way in ways.items()}
    seconds = race(tracks, rounds, torch.device("cpu"), progress=progress)
    return pd.DataFrame({name: np.median(each, axis=0) for name, each in seconds.items()})


def speedup(seconds: pd.DataFrame, plain: str, fast: str) -> Interval:
    """How many times faster all texts together are, over texts."""
    slow, quick = seconds[plain].to_numpy(), seconds[fast].to_numpy()
    return bootstrap(lambda _, rows: float(slow[rows].sum() / quick[rows].sum()), len(seconds))


def drafts(
    model: TokenExitModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    layers: Sequence[int],
    lengths: Sequence[int],
) -> pd.DataFrame:
    """Self-speculation over layers and draft lengths: the share of drafted words that are kept, words kept a round,
    how many of them any gain needs, and words a second."""
    rows = []
    head = model.costs.head / model.costs.layer
    for layer in layers:
        for draft in lengths:
            found = speculate(model, tokenizer, prompts, MOST, layer, draft, progress=True)
            rows.append(
                {
                    "layer": layer,
                    "draft": draft,
                    "acceptance": found.acceptance,
                    "kept a round": found.accepted / max(found.rounds, 1),
                    "needed": bound(model.decoder.depth, head, layer, draft),
                    "words a second": found.tokens_per_second,
                }
            )
    return pd.DataFrame(rows)
