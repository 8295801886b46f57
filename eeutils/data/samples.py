"""Sentences as token ids, and batches of sentences of like length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from eeutils.data.texts import is_empty
from eeutils.errors import InputError


class Batch(NamedTuple):
    """Token ids padded to the longest sample of the batch; `attention_mask` is 1 on real tokens.

    `notes` and `others` are as in `Samples`.
    """

    input_ids: Int[Tensor, "batch tokens"]
    attention_mask: Int[Tensor, "batch tokens"]
    token_type_ids: Int[Tensor, "batch tokens"] | None
    labels: Tensor | None
    ids: Int[Tensor, " batch"]
    notes: Mapping[str, Tensor] = {}
    others: tuple[Batch, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(*(send_to_device(part, device) for part in self))

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        """What a model's forward takes: token ids, mask and token types, then the same three of each of `others`."""
        own = (self.input_ids, self.attention_mask, self.token_type_ids)
        return own + tuple(part for other in self.others for part in other.inputs)


@dataclass(frozen=True)
class Samples:
    """Tokenised samples: token ids of each, and token types for pairs.

    Attributes:
        labels: (N,), or None where nobody knows them.
        ids: (N,) stable sample numbers; whatever is joined to samples is joined by them.
        padding: the id that fills up a batch.
        notes: name -> (N, ...) what else an objective must know of each sample, such as how difficult it is.
        others: the same samples in the vocabularies of other encoders, for a model that has several of them.
    """

    tokens: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...] | None
    labels: Tensor | None
    ids: Int[Tensor, " samples"]
    padding: int
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    others: tuple[Samples, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Int[Tensor, " samples"]:
        """Tokens of each sample, [CLS] and [SEP] included."""
        return torch.tensor([len(tokens) for tokens in self.tokens], dtype=torch.long)

    def take(self, rows: Sequence[int]) -> Samples:
        """Some of the samples, in the given order."""
        chosen = torch.as_tensor(list(rows))
        return Samples(
            tuple(self.tokens[row] for row in rows),
            None if self.types is None else tuple(self.types[row] for row in rows),
            None if self.labels is None else self.labels[chosen],
            self.ids[chosen],
            self.padding,
            {name: values[chosen] for name, values in self.notes.items()},
            tuple(other.take(rows) for other in self.others),
        )

    def with_notes(self, **notes: tuple[Tensor, Tensor]) -> Samples:
        """The same samples with notes, each given as (ids, values), one for every sample, and joined by id."""
        joined = dict(self.notes)
        for name, (ids, values) in notes.items():
            places = {number: place for place, number in enumerate(ids.tolist())}
            if len(places) != len(ids):
                raise InputError(f"note {name!r} has {len(ids)} values for {len(places)} ids; give each id one value")
            if missing := [number for number in self.ids.tolist() if number not in places]:
                raise InputError(
                    f"note {name!r} lacks {len(missing)} of {len(self)} samples, such as id {missing[0]}; make it from "
                    "the same task and split"
                )
            joined[name] = values[torch.tensor([places[number] for number in self.ids.tolist()])]
        return replace(self, notes=joined)

    def batch(self, rows: Sequence[int], pad_to: int | None = None) -> Batch:
        """The given samples, at least one, in a padded batch; `pad_to` pads further, as reference codes do to 128."""
        if len(rows) == 0:
            raise InputError("a batch needs at least one sample, and there is none")
        taken = replace(self, others=()).take(rows)
        width = max(pad_to or 0, *map(len, taken.tokens))

        def padded(lists: Sequence[Sequence[int]], value: int) -> Tensor:
            return torch.tensor([[*one, *[value] * (width - len(one))] for one in lists])

        ids, mask = padded(taken.tokens, self.padding), padded([[1] * len(tokens) for tokens in taken.tokens], 0)
        types = None if taken.types is None else padded(taken.types, 0)
        others = tuple(other.batch(rows, pad_to) for other in self.others)
        return Batch(ids, mask, types, taken.labels, taken.ids, taken.notes, others)


Tokenizers = PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase]
"""One tokenizer, or one per vocabulary for a model of several encoders: the reference model's first."""


def encode(
    tokenizer: Tokenizers,
    text_a: Sequence[str],
    text_b: Sequence[str] | None = None,
    *,
    max_length: int = 128,
    labels: Sequence[float] | Sequence[int] | None = None,
    ids: Sequence[int] | None = None,
) -> Samples:
    """Tokenise sentences or sentence pairs; what is longer than `max_length` word pieces is cut.

    With several tokenizers the samples hold the first one's tokens, and those of the further ones in `others`.

    Raises:
        InputError: an empty list, an empty or invisible first text (named by its place), second texts not as many
            as the first, or a length that the model cannot take.
    """
    if len(text_a) == 0:
        raise InputError("there is nothing to encode: give at least one sentence")
    for place, text in enumerate(text_a):
        if is_empty(text):
            raise InputError(f"the sentence at place {place} is empty; remove it or give it a text")
    pairs = None if text_b is None or all(map(is_empty, text_b)) else list(text_b)
    if pairs is not None and len(pairs) != len(text_a):
        counts = f"{len(text_a)} first and {len(pairs)} second texts"
        raise InputError(f"pairs need as many second texts as first ones; got {counts}")
    given = None if labels is None else torch.as_tensor(labels)
    numbers = torch.arange(len(text_a)) if ids is None else torch.as_tensor(ids)

    def encoded_by(one: PreTrainedTokenizerBase) -> Samples:
        limit = min(one.model_max_length, 1_000_000)
        if not 3 <= max_length <= limit:
            raise InputError(f"max_length {max_length} does not fit this tokenizer's model: choose 3 to {limit}")
        encoded = one(list(text_a), pairs, truncation=True, max_length=max_length, padding=False)
        types = encoded.get("token_type_ids") if pairs is not None else None
        types = None if types is None else tuple(map(tuple, types))
        return Samples(tuple(map(tuple, encoded["input_ids"])), types, given, numbers, one.pad_token_id)

    first, *further = [tokenizer] if isinstance(tokenizer, PreTrainedTokenizerBase) else tokenizer
    return replace(encoded_by(first), others=tuple(map(encoded_by, further)))


def encode_split(tokenizer: Tokenizers, split: Dataset, max_length: int) -> Samples:
    """Tokenise one split of a task (columns text_a, text_b, label, id), as `encode` does."""
    columns = split.to_dict()
    texts = columns["text_a"], columns["text_b"]
    return encode(tokenizer, *texts, max_length=max_length, labels=columns["label"], ids=columns["id"])


class LengthBuckets(Sampler[list[int]]):
    """Shuffled batches of samples of like length.

    The samples are shuffled, cut into pools of `pool` batches, sorted by length within a pool, and the batches of all
    pools are shuffled: nearly no padding, and still another composition every epoch. The order depends on `seed` and
    the epoch alone, so an interrupted epoch can be taken up where it stopped. With `share` (k, n) the sampler gives the
    k-th of n processes (from 0) its part of each batch. No part is empty: where a last batch has fewer samples than
    there are processes, one of them is repeated.
    """

    def __init__(
        self, lengths: Int[Tensor, " N"], batch_size: int, seed: int, pool: int = 50, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.pool, self.share = lengths, batch_size, seed, pool, share
        self.epoch = self.first = 0

    def start(self, epoch: int, batch: int = 0) -> None:
        """Choose the epoch whose order the next iteration gives, and the batch at which it starts."""
        self.epoch, self.first = epoch, batch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        pools = torch.randperm(len(self.lengths), generator=generator).split(self.pool * self.batch_size)
        by_length = torch.cat([rows[self.lengths[rows].argsort(stable=True)] for rows in pools])
        cut = by_length.split(self.batch_size)
        number, processes = self.share
        for place in torch.randperm(len(cut), generator=generator).tolist()[self.first :]:
            rows = cut[place].tolist()
            yield rows[number::processes] or rows[:1]


def batches(samples: Samples, batch_size: int, progress: str | None = None) -> Iterator[tuple[Tensor, Batch]]:
    """All samples once, in order of length: (row numbers, batch). `progress` names a progress bar."""
    order = samples.lengths.argsort(stable=True).split(batch_size)
    for rows in tqdm(order, desc=progress, disable=progress is None, leave=False, delay=2):
        yield rows, samples.batch(rows.tolist())
