"""Which encoders read the same token ids."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from eeutils.models.backbone import load_tokenizer


def same_vocabulary(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids for every text: the same pieces, normalisation and special tokens."""

    def essence(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
        steps = json.loads(tokenizer.backend_tokenizer.to_str())
        # How far the last call cut and padded is kept there, too, and says nothing about the vocabulary.
        rest = {name: value for name, value in steps.items() if name not in ("truncation", "padding")}
        return rest, tokenizer.pad_token_id, tokenizer.model_input_names

    return essence(one) == essence(other)


def encodings(names: Sequence[str]) -> tuple[int, ...]:
    """For each encoder the number of its vocabulary; the last one's, the reference's, is 0."""
    return _places(tuple(names))[0]


def tokenizers_of(names: Sequence[str]) -> tuple[PreTrainedTokenizerBase, ...]:
    """One tokenizer for each vocabulary of the encoders, the last one's, the reference's, first."""
    return _places(tuple(names))[1]


@lru_cache
def _places(names: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[PreTrainedTokenizerBase, ...]]:
    known: list[PreTrainedTokenizerBase] = []
    places = []
    for name in names[::-1]:
        tokenizer = load_tokenizer(name)
        place = next((at for at, other in enumerate(known) if same_vocabulary(tokenizer, other)), len(known))
        if place == len(known):
            known.append(tokenizer)
        places.append(place)
    return tuple(places[::-1]), tuple(known)
